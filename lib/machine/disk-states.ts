import { ConfigError } from '../errors.js'
import type { OverlayState } from '../storage/overlay.js'
import type { Peripheral } from './peripherals.js'

/** What was written to a machine's disks up to one moment, by the devices' names. */
export type DiskStates = ReadonlyMap<string, OverlayState>

/**
 * Keeps the disks' content of this moment. No device works on anything.
 * @throws {ConfigError} a disk is written in place: what it was cannot be had again
 */
export function freezeDisks(peripherals: readonly Peripheral[]): DiskStates {
  const disks = peripherals.flatMap(({ name, disk }) => {
    if (!disk) return []
    if (!disk.overlay) {
      const problem = 'the guest writes to the image itself, which stays at one moment only'
      throw new ConfigError(name, disk.path, problem, 'give the disk snapshot: true, or readonly')
    }
    return [[name, disk.overlay] as const]
  })
  return new Map(disks.map(([name, overlay]) => [name, overlay.freeze()]))
}

/** Makes the content of the disks what it was. No device works on anything. */
export function thawDisks(peripherals: readonly Peripheral[], states: DiskStates): void {
  for (const { name, disk } of peripherals) {
    const state = states.get(name)
    if (state) disk?.overlay?.thaw(state)
  }
}

export function closeDisks(states: DiskStates): void {
  for (const state of states.values()) state.close()
}
