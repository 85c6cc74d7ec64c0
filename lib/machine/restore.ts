import { totalmem } from 'node:os'
import { missingFeatures } from '../arch/x86_64/compatibility.js'
import { cpuHost } from '../arch/x86_64/cpu-host.js'
import type { MemoryRange } from '../arch/x86_64/layout.js'
import { cpuidOf, msrsOf } from '../arch/x86_64/vcpu-state.js'
import type { ClockMode } from '../arch/x86_64/vm-state.js'
import { type MachineConfig, resetPolicy, type TripleFault } from '../config/machine-config.js'
import { parseSavedConfig } from '../config/saved-config.js'
import { withVsockPath } from '../config/vsock.js'
import { SnapshotError } from '../errors.js'
import { cap } from '../kvm/capabilities.js'
import type { Kvm } from '../kvm/kvm.js'
import { RegionImage } from '../kvm/region-image.js'
import type { Snapshot } from '../snapshot/read.js'
import { type Blueprint, machineRanges, rebuildMachine } from './builder.js'
import { loadDisks } from './disk-states.js'
import { applyMoment } from './state.js'

export interface RestoreOptions {
  /**
   * What becomes of the time that has passed since: the guest's clocks make up for it (`realtime`, the default), or go on from
   * where they stood.
   */
  readonly clock?: ClockMode
  /** Reads all of the memory, and of what was written to disks, first and checks it against its sums. */
  readonly verify?: boolean
  /** Told how much has been checked, in bytes. */
  readonly onProgress?: (done: number, total: number) => void
  /** Ends the check; its reason is thrown. */
  readonly signal?: AbortSignal
  /** As in `MachineOptions`. Default: what the machine had that was saved. */
  readonly reboot?: boolean
  /** As in `MachineOptions`. Default: what the machine had that was saved. */
  readonly onTripleFault?: TripleFault
  /** The Unix socket of its vsock, in place of the one that it had; null for none. */
  readonly vsockPath?: string | null | undefined
}

/**
 * The configuration of a machine that is restored: the snapshot's, but for what `options` change.
 * @throws as `checkSnapshot`
 */
export function restoredConfig(snapshot: Snapshot, kvm: Kvm, options: RestoreOptions): MachineConfig {
  const saved = withVsockPath(checkSnapshot(snapshot, kvm), options.vsockPath)
  const { reboot = saved.reboot, onTripleFault = saved.onTripleFault } = options
  return { ...saved, ...resetPolicy({ reboot, onTripleFault }) }
}

/**
 * A machine that goes on where the one of the snapshot was.
 * @throws {KvmError} a file of its memory cannot be opened
 */
export function restoration(
  snapshot: Snapshot,
  kvm: Kvm,
  config: MachineConfig,
  { clock = 'realtime' }: RestoreOptions,
): Blueprint {
  const images = openImages(snapshot)
  return {
    config,
    state: 'paused',
    build: (peripherals, events) => {
      loadDisks(peripherals, snapshot.files)
      return rebuildMachine(kvm, images, config, peripherals, events, parts =>
        applyMoment(parts, snapshot.state, { clock }),
      )
    },
  }
}

/**
 * A snapshot's configuration, if a machine of it can be had here.
 * @throws {SnapshotError} it is no machine's, or this host lacks something that its vCPUs have: all of it is named
 * @throws {ConfigError} a field of its configuration is wrong, or beyond what this host has
 */
function checkSnapshot({ directory, state, memory }: Snapshot, kvm: Kvm): MachineConfig {
  const config = parseSavedConfig(state.config, {
    memory: totalmem(),
    vcpus: kvm.checkExtension(cap.MAX_VCPUS),
  })
  const ranges = machineRanges(config)
  const sameRange = ({ guestAddress, size }: MemoryRange, i: number) =>
    memory.regions[i]?.guestAddress === guestAddress && memory.regions[i]?.size === size
  if (ranges.length !== memory.regions.length || !ranges.every(sameRange)) {
    throw foreign(directory, `its memory regions are not those of a machine with ${config.memory} bytes`)
  }
  if (state.vcpus.length !== config.vcpus || !state.vcpus.every(({ id }, i) => id === i)) {
    throw foreign(directory, `it has the states of ${state.vcpus.length} vCPUs, not of ${config.vcpus}`)
  }
  const host = cpuHost(kvm)
  const missing = new Set(
    state.vcpus.flatMap(({ state }) => {
      return missingFeatures({ cpuid: cpuidOf(state), msrs: msrsOf(state) }, host)
    }),
  )
  if (missing.size > 0) {
    const problem = `its vCPUs have what KVM on this host does not offer: ${[...missing].join(', ')}`
    throw new SnapshotError(directory, problem, 'restore it on a host like the one where it was taken')
  }
  return config
}

/** The memory of a snapshot, not read: its time does not depend on the size. */
function openImages({ memory }: Snapshot): { guestAddress: number; image: RegionImage }[] {
  return memory.regions.map(({ guestAddress, size, extents }) => ({
    guestAddress,
    image: RegionImage.fromFiles(size, extents),
  }))
}

function foreign(directory: string, problem: string): SnapshotError {
  return new SnapshotError(directory, problem, 'give the snapshot of a machine, unchanged')
}
