import { totalmem } from 'node:os'
import { missingFeatures } from '../arch/x86_64/compatibility.js'
import type { MemoryRange } from '../arch/x86_64/layout.js'
import { cpuidOf, msrsOf } from '../arch/x86_64/vcpu-state.js'
import type { MachineConfig } from '../config/machine-config.js'
import { parseSavedConfig } from '../config/saved-config.js'
import { SnapshotError } from '../errors.js'
import { cap } from '../kvm/capabilities.js'
import type { Kvm } from '../kvm/kvm.js'
import { RegionImage } from '../kvm/region-image.js'
import type { Snapshot } from '../snapshot/read.js'
import { machineRanges } from './builder.js'

/**
 * A snapshot's configuration, if a machine of it can be had here.
 * @throws {SnapshotError} it is no machine's, or this host lacks something that its vCPUs have: all of it is named
 * @throws {ConfigError} a field of its configuration is wrong, or beyond what this host has
 */
export function checkSnapshot({ directory, state, memory }: Snapshot, kvm: Kvm): MachineConfig {
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
  const host = { cpuid: kvm.supportedCpuid(), featureMsrs: kvm.getFeatureMsrs(kvm.featureMsrIndices()) }
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
export function openImages({ memory }: Snapshot): { guestAddress: number; image: RegionImage }[] {
  return memory.regions.map(({ guestAddress, size, extents }) => ({
    guestAddress,
    image: RegionImage.fromFiles(size, extents),
  }))
}

function foreign(directory: string, problem: string): SnapshotError {
  return new SnapshotError(directory, problem, 'give the snapshot of a machine, unchanged')
}
