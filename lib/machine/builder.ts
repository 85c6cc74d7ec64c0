import { cpuHost } from '../arch/x86_64/cpu-host.js'
import { parseCpuSpec } from '../arch/x86_64/cpu-spec.js'
import { gsiRouting } from '../arch/x86_64/gsi-routing.js'
import * as layout from '../arch/x86_64/layout.js'
import { lackingMessage, machineCpu } from '../arch/x86_64/machine-cpu.js'
import { initialMsrs } from '../arch/x86_64/msrs.js'
import { vcpuCpuid } from '../arch/x86_64/topology.js'
import { giveVmxMsrs } from '../arch/x86_64/vmx-cpu.js'
import type { MachineConfig } from '../config/machine-config.js'
import { ConfigError } from '../errors.js'
import { type CapabilityName, cap } from '../kvm/capabilities.js'
import type { GuestRegionOptions } from '../kvm/guest-region.js'
import type { Kvm } from '../kvm/kvm.js'
import type { RegionImage } from '../kvm/region-image.js'
import type { Vcpu } from '../kvm/vcpu.js'
import type { Vm } from '../kvm/vm.js'
import { GuestMemory } from '../memory/guest-memory.js'
import { bootMachine, createFwCfg } from './boot.js'
import { aboutHugetlb } from './hugetlb.js'
import type { Peripheral } from './peripherals.js'
import { createPlatform, type Platform, type PlatformEvents } from './platform.js'
import { MachineRam } from './ram.js'

/** A machine's parts, wired, before anything runs. */
export interface Parts extends Platform {
  readonly vm: Vm
  readonly ram: MachineRam
  readonly memory: GuestMemory
  readonly vcpus: readonly Vcpu[]
  /** KVM_GET_MSR_INDEX_LIST */
  readonly msrIndices: readonly number[]
  /** What the asked CPU has and the guest goes without, in words. */
  readonly cpuLacks?: string
}

/** What a machine is made of, and how. */
export interface Blueprint {
  readonly config: MachineConfig
  readonly state: 'created' | 'paused'
  /** Network cards have no cable: another machine has the same addresses. */
  readonly unplugged?: boolean
  build(peripherals: readonly Peripheral[], events: PlatformEvents): Parts
}

const NEEDED: readonly CapabilityName[] = [
  'IRQCHIP',
  'IRQ_ROUTING',
  'PIT2',
  'USER_MEMORY',
  'IMMEDIATE_EXIT',
  'MP_STATE',
]

/**
 * Builds a machine from its configuration and loads its kernel. On an error, nothing is left open.
 * @throws {ConfigError} what was asked for cannot be had: names the field, the value and the remedy
 * @throws {KvmError} KVM refused
 */
export function buildMachine(
  kvm: Kvm,
  config: MachineConfig,
  peripherals: readonly Peripheral[],
  events: PlatformEvents,
): Parts {
  // First what needs no VM: a wrong flag is told before anything is made.
  const spec = parseCpuSpec(config.cpu)
  const host = cpuHost(kvm)
  const cpu = machineCpu(host, spec, host)
  const { cpuid, archCapabilities, missing } = cpu
  const ranges = machineRanges(config).map(range => ({
    ...range,
    backing: 'memfd' as const,
    // Firmware's image is small.
    hugePages: range === layout.FIRMWARE_RANGE ? ('auto' as const) : config.hugePages,
  }))
  const fill = (parts: Parts) => {
    const { vcpus, msrIndices } = parts
    for (const vcpu of vcpus) {
      const entries = vcpuCpuid(cpuid, vcpu.id, config.vcpus)
      vcpu.setCpuid(entries)
      giveVmxMsrs(vcpu, cpu)
      vcpu.setMsrs(initialMsrs({ indices: msrIndices, cpuid: entries, archCapabilities }))
    }
    bootMachine(parts, config)
  }
  try {
    const parts = wire(kvm, ranges, config, peripherals, events, fill)
    return missing.length === 0 ? parts : { ...parts, cpuLacks: lackingMessage(spec, missing) }
  } catch (error) {
    throw config.hugePages === 'hugetlb' ? aboutHugetlb(error, config.memory) : error
  }
}

/** The memory of a machine: RAM, and where firmware boots, a region for its image. */
export function machineRanges({ memory, boot }: MachineConfig): layout.MemoryRange[] {
  const ranges = layout.memoryRanges(memory)
  return boot === 'firmware' ? [...ranges, layout.FIRMWARE_RANGE] : ranges
}

/**
 * Builds a machine that is to have the state of another: its memory is a copy-on-write copy of `images`, the rest is `fill`'s
 * task. On an error, nothing is left open.
 */
export function rebuildMachine(
  kvm: Kvm,
  images: readonly { readonly guestAddress: number; readonly image: RegionImage }[],
  config: MachineConfig,
  peripherals: readonly Peripheral[],
  events: PlatformEvents,
  fill: (parts: Parts) => void,
): Parts {
  // With a dirty log from the start: to begin one later, KVM would go through all of the memslot.
  const ranges = images.map(({ guestAddress, image }) => ({
    guestAddress,
    size: image.size,
    backing: image,
    logDirty: true,
  }))
  return wire(kvm, ranges, config, peripherals, events, fill)
}

function wire(
  kvm: Kvm,
  ranges: readonly GuestRegionOptions[],
  config: MachineConfig,
  peripherals: readonly Peripheral[],
  events: PlatformEvents,
  fill: (parts: Parts) => void,
): Parts {
  const vm = createVm(kvm)
  try {
    const canProtect = kvm.checkExtension(cap.READONLY_MEM) > 0
    const isRom = ({ guestAddress }: GuestRegionOptions) => guestAddress === layout.FIRMWARE_RANGE.guestAddress
    const add = (range: GuestRegionOptions) => vm.addMemory({ ...range, readonly: canProtect && isRom(range) })
    const ram = new MachineRam(ranges.map(add))
    const memory = new GuestMemory(ram.regions)
    const parts: Parts = {
      vm,
      ram,
      memory,
      vcpus: Array.from({ length: config.vcpus }, (_, id) => vm.createVcpu(id)),
      msrIndices: kvm.msrIndices(),
      ...createPlatform({ vm, memory, peripherals, fwCfg: createFwCfg(memory, config, peripherals.length) }, events),
    }
    try {
      fill(parts)
    } catch (error) {
      parts.virtio.disconnect()
      throw error
    }
    return parts
  } catch (error) {
    vm.close()
    throw error
  }
}

/**
 * A PC without memory and vCPUs: its interrupt controllers and its timer.
 * @throws {ConfigError} KVM lacks something that a machine needs
 */
export function createVm(kvm: Kvm): Vm {
  for (const name of NEEDED) {
    if (kvm.checkExtension(cap[name])) continue
    throw new ConfigError('/dev/kvm', `KVM_CAP_${name} is 0`, 'a machine needs this capability', 'run a newer kernel')
  }
  const vm = kvm.createVm()
  try {
    // The order is KVM's: these three before any vCPU (KVM API 4.24, 4.66).
    vm.setTssAddress(layout.TSS_ADDRESS)
    vm.setIdentityMapAddress(layout.IDENTITY_MAP_ADDRESS)
    vm.createIrqchip()
    vm.setGsiRouting(gsiRouting())
    vm.createPit2({ speakerDummy: true })
    // Pending and injected exceptions told apart, and a pending triple fault: without them a vCPU's events are not
    // whole, least of all L2's (KVM API 7.14, 7.31).
    for (const name of ['EXCEPTION_PAYLOAD', 'X86_TRIPLE_FAULT_EVENT'] as const) {
      if (kvm.checkExtension(cap[name])) vm.enableCap(cap[name], 1n)
    }
    return vm
  } catch (error) {
    vm.close()
    throw error
  }
}
