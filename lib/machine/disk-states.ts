import { ConfigError } from '../errors.js'
import type { Snapshot } from '../snapshot/read.js'
import type { FileToAdd } from '../snapshot/save.js'
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

/** What of the disks' content is part of a snapshot: what was written over their images. */
export function diskFiles(peripherals: readonly Peripheral[]): FileToAdd[] {
  return peripherals.flatMap(({ name, disk }) => {
    const overlay = disk?.overlay
    return overlay ? [{ name, write: (file, signal) => overlay.save(file, signal) }] : []
  })
}

/**
 * Gives disks that nothing was written to yet the content that a snapshot has of them.
 * @throws {Error} a file is not what `diskFiles` wrote
 */
export function loadDisks(peripherals: readonly Peripheral[], files: Snapshot['files']): void {
  for (const { name, disk } of peripherals) {
    const file = files.find(file => file.name === name)
    if (!disk?.overlay) continue
    if (!file) throw new Error(`the snapshot has nothing of ${name}`)
    disk.overlay.load(file.path)
  }
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
