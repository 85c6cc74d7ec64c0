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
import { ConfigError } from '../errors.js'
import { type CapabilityName, cap } from '../kvm/capabilities.js'
import type { GuestRegionOptions } from '../kvm/guest-region.js'
import type { Kvm } from '../kvm/kvm.js'
import type { RegionImage } from '../kvm/region-image.js'
import type { Vcpu } from '../kvm/vcpu.js'
import type { Vm } from '../kvm/vm.js'
import { GuestMemory } from '../memory/guest-memory.js'
import { createPlatform, type Platform, type PlatformEvents } from './platform.js'
import { MachineRam } from './ram.js'

/** The configuration of a machine that is to boot. */
export type BootConfig = MachineConfig & { readonly kernel: string | Uint8Array }

/** A machine's parts, wired, before anything runs. */
export interface Parts extends Platform {
  readonly vm: Vm
  readonly ram: MachineRam
  readonly memory: GuestMemory
  readonly vcpus: readonly Vcpu[]
  /** KVM_GET_MSR_INDEX_LIST */
  readonly msrIndices: readonly number[]
}

const NEEDED: readonly CapabilityName[] = ['IRQCHIP', 'PIT2', 'USER_MEMORY', 'IMMEDIATE_EXIT', 'MP_STATE']

/**
 * Builds a machine from its configuration and loads its kernel. On an error, nothing is left open.
 * @throws {ConfigError} what was asked for cannot be had: names the field, the value and the remedy
 * @throws {KvmError} KVM refused
 */
export function buildMachine(kvm: Kvm, config: BootConfig, events: PlatformEvents): Parts {
  // First what needs no VM: a wrong flag is told before anything is made.
  const cpuid = machineCpuid(kvm.supportedCpuid(), parseCpuSpec(config.cpu), {
    tscDeadlineTimer: kvm.checkExtension(cap.TSC_DEADLINE_TIMER) > 0,
  })
  const ranges = layout.memoryRanges(config.memory).map(range => ({ ...range, backing: 'memfd' as const }))
  return wire(kvm, ranges, config.vcpus, events, ({ memory, vcpus, msrIndices }) => {
    const entry = load(memory, config)
    const featureMsrs = kvm.getFeatureMsrs(kvm.featureMsrIndices())
    for (const vcpu of vcpus) {
      const entries = vcpuCpuid(cpuid, vcpu.id, config.vcpus)
      vcpu.setCpuid(entries)
      vcpu.setMsrs(initialMsrs({ indices: msrIndices, featureMsrs, cpuid: entries }))
    }
    // The others wait for their SIPI.
    enterLongMode(vcpus[0]!, memory, entry)
  })
}

/**
 * Builds a machine that is to have the state of another: its memory is a copy-on-write copy of `images`, the rest is `fill`'s
 * task. On an error, nothing is left open.
 */
export function rebuildMachine(
  kvm: Kvm,
  images: readonly { readonly guestAddress: number; readonly image: RegionImage }[],
  vcpus: number,
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
  return wire(kvm, ranges, vcpus, events, fill)
}

function wire(
  kvm: Kvm,
  ranges: readonly GuestRegionOptions[],
  vcpuCount: number,
  events: PlatformEvents,
  fill: (parts: Parts) => void,
): Parts {
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
    vm.createPit2({ speakerDummy: true })
    // Pending and injected exceptions told apart, and a pending triple fault: without them a vCPU's events are not
    // whole, least of all L2's (KVM API 7.14, 7.31).
    for (const name of ['EXCEPTION_PAYLOAD', 'X86_TRIPLE_FAULT_EVENT'] as const) {
      if (kvm.checkExtension(cap[name])) vm.enableCap(cap[name], 1n)
    }
    const ram = new MachineRam(ranges.map(range => vm.addMemory(range)))
    const parts: Parts = {
      vm,
      ram,
      memory: new GuestMemory(ram.regions),
      vcpus: Array.from({ length: vcpuCount }, (_, id) => vm.createVcpu(id)),
      msrIndices: kvm.msrIndices(),
      ...createPlatform(vm, events),
    }
    fill(parts)
    return parts
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

function load(memory: GuestMemory, { kernel, initrd, cmdline, vcpus }: BootConfig): BootEntry {
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
