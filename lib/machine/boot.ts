import { basename } from 'node:path'
import { type AcpiOptions, writeAcpi } from '../arch/x86_64/acpi.js'
import { acpiFiles } from '../arch/x86_64/acpi-loader.js'
import { virtioMmioDevices } from '../arch/x86_64/acpi-virtio.js'
import * as layout from '../arch/x86_64/layout.js'
import { writeIdentityMap } from '../arch/x86_64/paging.js'
import { registers } from '../arch/x86_64/registers.js'
import { longModeSregs, protectedModeSregs } from '../arch/x86_64/segments.js'
import { firmwareFiles, loadFirmware } from '../boot/firmware.js'
import { type BootEntry, loadKernel } from '../boot/kernel.js'
import type { MachineConfig } from '../config/machine-config.js'
import { FwCfg } from '../devices/fw-cfg.js'
import { ConfigError } from '../errors.js'
import type { Vcpu } from '../kvm/vcpu.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { ContentFiles } from './content.js'
import type { VirtioBus } from './virtio-bus.js'

/** The parts of a machine that are made ready for its first instruction. */
export interface BootParts {
  readonly memory: GuestMemory
  readonly vcpus: readonly Vcpu[]
  readonly virtio: Pick<VirtioBus, 'peripherals'>
}

/**
 * Loads what the machine boots, with the tables that belong to it, and sets the registers of vCPU 0 to enter it; the others wait for
 * their SIPI. The memory is all zero before, and the vCPUs as KVM makes them, but for CPUID and MSRs.
 * @throws {ConfigError} a file cannot be loaded: names the field, the value and the remedy
 * @throws {KvmError} KVM refused the registers
 */
export function bootMachine({ memory, vcpus, virtio }: BootParts, config: MachineConfig): void {
  using files = new ContentFiles()
  if (config.boot === 'firmware') {
    // A vCPU starts at the reset vector by itself, and the tables go through fw_cfg.
    loadFirmware(memory, files.whole('firmware', required('firmware', config.firmware)))
    return
  }
  const rsdp = writeAcpi(memory, acpiOptions(config, virtio.peripherals.length))
  enter(vcpus[0]!, memory, load(files, memory, config, config.boot, rsdp))
}

/** The device through which firmware is told what the machine has; undefined where none boots. */
export function createFwCfg(memory: GuestMemory, config: MachineConfig, virtioDevices: number): FwCfg | undefined {
  if (config.boot !== 'firmware') return undefined
  const files = new Map([...firmwareFiles(memory), ...acpiFiles(acpiOptions(config, virtioDevices))])
  return new FwCfg({ memory, vcpus: config.vcpus, files })
}

function acpiOptions({ vcpus }: MachineConfig, virtioDevices: number): AcpiOptions {
  return { vcpus, devices: virtioMmioDevices(virtioDevices) }
}

function enter(vcpu: Vcpu, memory: GuestMemory, entry: BootEntry): void {
  const current = vcpu.getSregs()
  vcpu.setSregs(
    entry.mode === 'long'
      ? longModeSregs(memory, current, writeIdentityMap(memory, layout.PAGE_TABLES_ADDRESS))
      : protectedModeSregs(memory, current),
  )
  vcpu.setRegs(registers(entry.registers))
}

/** Files but the kernel may be large: they go straight into guest memory. */
function load(
  files: ContentFiles,
  memory: GuestMemory,
  config: MachineConfig,
  boot: Exclude<MachineConfig['boot'], 'firmware'>,
  rsdp: number,
): BootEntry {
  const kernel = required('kernel', config.kernel)
  const initrd = config.initrd === undefined ? undefined : files.open('initrd', config.initrd)
  const modules = config.modules.map(({ file, cmdline }, i) => {
    const field = `modules[${i}]`
    return { field, content: files.open(field, required(field, file)), name: nameOf(file, 'module'), cmdline }
  })
  const entry = loadKernel(memory, {
    kernel: files.whole('kernel', kernel),
    boot: boot === 'auto' ? undefined : boot,
    name: nameOf(kernel, 'kernel'),
    initrd,
    modules,
    cmdline: config.cmdline,
    rsdp,
  })
  files.fill(memory, initrd, entry.initrd)
  for (const [i, { content }] of modules.entries()) files.fill(memory, content, entry.modules[i])
  return entry
}

function nameOf(file: string | Uint8Array | undefined, otherwise: string): string {
  return typeof file === 'string' ? basename(file) : otherwise
}

/** What a configuration lacks only where the machine was restored and it had been given as bytes. */
function required(field: string, content: string | Uint8Array | undefined): string | Uint8Array {
  if (content !== undefined) return content
  throw new ConfigError(field, content, 'it was given as bytes, which a snapshot does not keep', 'give it as a file')
}
