import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs'
import { writeAcpi } from '../arch/x86_64/acpi.js'
import { parseCpuSpec } from '../arch/x86_64/cpu-spec.js'
import { machineCpuid } from '../arch/x86_64/cpuid.js'
import * as layout from '../arch/x86_64/layout.js'
import { initialMsrs } from '../arch/x86_64/msrs.js'
import { writeIdentityMap } from '../arch/x86_64/paging.js'
import { registers } from '../arch/x86_64/registers.js'
import { longModeSregs } from '../arch/x86_64/segments.js'
import { vcpuCpuid } from '../arch/x86_64/topology.js'
import { type BootEntry, loadKernel } from '../boot/kernel.js'
import type { MachineConfig } from '../config/machine-config.js'
import { AcpiPm } from '../devices/acpi-pm.js'
import { Bus } from '../devices/bus.js'
import { DebugExit } from '../devices/debug-exit.js'
import { I8042 } from '../devices/i8042.js'
import { Rtc } from '../devices/rtc.js'
import { Uart16550 } from '../devices/uart16550.js'
import { ConfigError } from '../errors.js'
import { type CapabilityName, cap } from '../kvm/capabilities.js'
import type { Kvm } from '../kvm/kvm.js'
import type { Vcpu } from '../kvm/vcpu.js'
import type { Vm } from '../kvm/vm.js'
import { GuestMemory } from '../memory/guest-memory.js'
import { Console } from './console.js'

/** What the platform's devices tell the machine. */
export interface PlatformEvents {
  /** ACPI S5. */
  powerOff(): void
  reset(): void
  debugExit(code: number): void
}

/** A machine's parts, wired and loaded, before anything runs. */
export interface Parts {
  readonly vm: Vm
  readonly memory: GuestMemory
  readonly vcpus: readonly Vcpu[]
  readonly ports: Bus
  readonly mmio: Bus
  readonly uart: Uart16550
  readonly console: Console
}

const NEEDED: readonly CapabilityName[] = ['IRQCHIP', 'PIT2', 'USER_MEMORY', 'IMMEDIATE_EXIT', 'MP_STATE']

/**
 * Builds a machine from its configuration. On an error, nothing is left open.
 * @throws {ConfigError} what was asked for cannot be had: names the field, the value and the remedy
 * @throws {KvmError} KVM refused
 */
export function buildMachine(kvm: Kvm, config: MachineConfig, events: PlatformEvents): Parts {
  for (const name of NEEDED) {
    if (kvm.checkExtension(cap[name])) continue
    throw new ConfigError('/dev/kvm', `KVM_CAP_${name} is 0`, 'a machine needs this capability', 'run a newer kernel')
  }
  // First what needs no VM: a wrong flag is told before anything is made.
  const cpuid = machineCpuid(kvm.supportedCpuid(), parseCpuSpec(config.cpu), {
    tscDeadlineTimer: kvm.checkExtension(cap.TSC_DEADLINE_TIMER) > 0,
  })
  const vm = kvm.createVm()
  try {
    // The order is KVM's: these three before any vCPU (KVM API 4.24, 4.66).
    vm.setTssAddress(layout.TSS_ADDRESS)
    vm.setIdentityMapAddress(layout.IDENTITY_MAP_ADDRESS)
    vm.createIrqchip()
    vm.createPit2({ speakerDummy: true })
    // Pending and injected exceptions told apart, and a pending triple fault: without them a vCPU's events are not
    // whole, least of all L2's (KVM API 7.14, 7.31).
    for (const name of ['EXCEPTION_PAYLOAD', 'X86_TRIPLE_FAULT_EVENT'] as const) {
      if (kvm.checkExtension(cap[name])) vm.enableCap(cap[name], 1n)
    }
    const memory = new GuestMemory(layout.memoryRanges(config.memory).map(range => vm.addMemory(range)))
    const entry = load(memory, config)
    const vcpus = Array.from({ length: config.vcpus }, (_, id) => vm.createVcpu(id))
    const source = { indices: kvm.msrIndices(), featureMsrs: kvm.getFeatureMsrs(kvm.featureMsrIndices()) }
    for (const vcpu of vcpus) {
      const entries = vcpuCpuid(cpuid, vcpu.id, config.vcpus)
      vcpu.setCpuid(entries)
      vcpu.setMsrs(initialMsrs({ ...source, cpuid: entries }))
    }
    // The others wait for their SIPI.
    enterLongMode(vcpus[0]!, memory, entry)
    return { vm, memory, vcpus, ...addDevices(vm, events) }
  } catch (error) {
    vm.close()
    throw error
  }
}

function enterLongMode(vcpu: Vcpu, memory: GuestMemory, { rip, rsi }: BootEntry): void {
  const cr3 = writeIdentityMap(memory, layout.PAGE_TABLES_ADDRESS)
  vcpu.setSregs(longModeSregs(memory, vcpu.getSregs(), cr3))
  vcpu.setRegs(registers({ rip, rsi }))
}

function load(memory: GuestMemory, { kernel, initrd, cmdline, vcpus }: MachineConfig): BootEntry {
  const image = typeof kernel === 'string' ? readFileSync(kernel) : kernel
  const rsdp = writeAcpi(memory, { vcpus })
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

function addDevices(vm: Vm, events: PlatformEvents): Pick<Parts, 'ports' | 'mmio' | 'uart' | 'console'> {
  const console = new Console(bytes => uart.input(bytes))
  const uart = new Uart16550({
    interrupt: { set: level => vm.setIrqLine(layout.COM1_IRQ, level) },
    output: bytes => console.output(bytes),
    drain: () => console.drain(),
  })
  const pm = new AcpiPm({ sleep: type => type === layout.ACPI_S5_SLEEP_TYPE && events.powerOff() })
  const ports = new Bus()
  ports.add(layout.COM1_PORT, layout.COM1_PORT_COUNT, uart)
  ports.add(layout.RTC_PORT, layout.RTC_PORT_COUNT, new Rtc(() => Date.now()))
  ports.add(layout.I8042_COMMAND_PORT, 1, new I8042(() => events.reset()))
  ports.add(layout.ACPI_PM_PORT, layout.ACPI_PM_PORT_COUNT, pm)
  ports.add(layout.DEBUG_EXIT_PORT, layout.DEBUG_EXIT_PORT_COUNT, new DebugExit(code => events.debugExit(code)))
  return { ports, mmio: new Bus(), uart, console }
}
