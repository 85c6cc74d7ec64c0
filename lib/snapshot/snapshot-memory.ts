import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { SnapshotError } from '../errors.js'
import type { PlacedExtent } from './chain.js'
import { DAMAGED } from './fields.js'
import type { Snapshot } from './read.js'
import { systemProblem } from './system-error.js'

/** The guest memory of a snapshot, read where it is asked for; the rest of it stays on disk. `close()` it. */
export class SnapshotMemory {
  readonly #regions: Snapshot['memory']['regions']
  readonly #files = new Map<string, number>()

  constructor({ memory }: Pick<Snapshot, 'memory'>) {
    this.#regions = memory.regions
  }

  /**
   * Reads guest-physical memory.
   * @throws {RangeError} not all of it is guest memory
   * @throws {SnapshotError} the file cannot be read
   */
  read(address: number, length: number): Uint8Array {
    const region = this.#regions.find(({ guestAddress, size }) => {
      return address >= guestAddress && length >= 0 && address + length <= guestAddress + size
    })
    if (!region) throw new RangeError(`0x${address.toString(16)}+${length} is not guest memory`)
    const bytes = new Uint8Array(length)
    const start = address - region.guestAddress
    for (let at = 0, i = find(region.extents, start); at < length; i++) {
      const extent = region.extents[i]!
      const into = start + at - extent.offset
      const count = Math.min(length - at, extent.length - into)
      this.#fill(extent.file, bytes.subarray(at, at + count), extent.fileOffset + into)
      at += count
    }
    return bytes
  }

  close(): void {
    for (const file of this.#files.values()) closeSync(file)
    this.#files.clear()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #fill(path: string, bytes: Uint8Array, position: number): void {
    try {
      const file = this.#open(path)
      for (let at = 0; at < bytes.length; ) {
        const count = readSync(file, bytes, at, bytes.length - at, position + at)
        if (count === 0) throw new SnapshotError(path, `it ends at ${position + at}`, DAMAGED)
        at += count
      }
    } catch (error) {
      throw systemProblem(path, 'reading it', error)
    }
  }

  #open(path: string): number {
    const known = this.#files.get(path)
    if (known !== undefined) return known
    const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
    this.#files.set(path, file)
    if (!fstatSync(file).isFile()) throw new SnapshotError(path, 'it is no regular file', DAMAGED)
    return file
  }
}

/** The extent that `offset` lies in; they cover their region without gaps. */
function find(extents: readonly PlacedExtent[], offset: number): number {
  let [low, high] = [0, extents.length]
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (extents[middle]!.offset <= offset) low = middle
    else high = middle
  }
  return low
}
