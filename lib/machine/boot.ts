import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs'
import { writeAcpi } from '../arch/x86_64/acpi.js'
import { virtioMmioDevices } from '../arch/x86_64/acpi-virtio.js'
import * as layout from '../arch/x86_64/layout.js'
import { writeIdentityMap } from '../arch/x86_64/paging.js'
import { registers } from '../arch/x86_64/registers.js'
import { longModeSregs } from '../arch/x86_64/segments.js'
import { type BootEntry, loadKernel } from '../boot/kernel.js'
import type { MachineConfig } from '../config/machine-config.js'
import { ConfigError } from '../errors.js'
import type { Vcpu } from '../kvm/vcpu.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import type { VirtioBus } from './virtio-bus.js'

/** The configuration of a machine that is to boot. */
export type BootConfig = MachineConfig & { readonly kernel: string | Uint8Array }

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
export function bootMachine({ memory, vcpus, virtio }: BootParts, config: BootConfig): void {
  const rsdp = writeAcpi(memory, { vcpus: config.vcpus, devices: virtioMmioDevices(virtio.peripherals.length) })
  enterLongMode(vcpus[0]!, memory, load(memory, config, rsdp))
}

function enterLongMode(vcpu: Vcpu, memory: GuestMemory, { rip, rsi }: BootEntry): void {
  const cr3 = writeIdentityMap(memory, layout.PAGE_TABLES_ADDRESS)
  vcpu.setSregs(longModeSregs(memory, vcpu.getSregs(), cr3))
  vcpu.setRegs(registers({ rip, rsi }))
}

function load(memory: GuestMemory, { kernel, initrd, cmdline }: BootConfig, rsdp: number): BootEntry {
  const image = typeof kernel === 'string' ? readFileSync(kernel) : kernel
  if (typeof initrd !== 'string') return loadKernel(memory, { kernel: image, initrd, cmdline, rsdp })
  return loadWithInitrdFile(memory, image, initrd, cmdline, rsdp)
}

/** The initrd may be large: it goes from the file straight into guest memory. */
function loadWithInitrdFile(
  memory: GuestMemory,
  kernel: Uint8Array,
  path: string,
  cmdline: string,
  rsdp: number,
): BootEntry {
  const fd = openSync(path, 'r')
  try {
    const { size } = fstatSync(fd)
    const entry = loadKernel(memory, { kernel, initrd: { size }, cmdline, rsdp })
    let done = 0
    for (const part of entry.initrd ? memory.parts(entry.initrd.address, size) : []) {
      for (let at = 0; at < part.length; ) {
        const count = readSync(fd, part, at, part.length - at, done)
        if (count === 0)
          throw new ConfigError(
            'initrd',
            path,
            `it ended after ${done} of ${size} bytes`,
            'do not change it while it is read',
          )
        at += count
        done += count
      }
    }
    return entry
  } finally {
    closeSync(fd)
  }
}
