import type { FileHandle } from 'node:fs/promises'
import { setImmediate } from 'node:timers/promises'
import { ChunkChecksums } from './checksum.js'
import { type Extent, PAGE_SIZE } from './format.js'
import { SparseFile } from './sparse-file.js'

/** A part of a region that crosses no boundary between checksum chunks; without `bytes` it is known to be zero. */
export interface Piece {
  readonly offset: number
  readonly length: number
  readonly bytes?: Buffer
}

/** What is to be written of a region. */
export interface RegionPlan {
  readonly size: number
  readonly extents: readonly Extent[]
  /** Exactly the bytes of `extents`, ascending. Bytes must stay as they are until all is written. */
  readonly pieces: Iterable<Piece> | AsyncIterable<Piece>
}

export interface WrittenRegion {
  readonly fileOffset: number
  readonly extents: readonly Extent[]
  readonly checksums: Uint8Array
}

export interface ProgressOptions {
  /** Bytes of memory gone through, of how many. Called often. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
  /** Ends it: what was begun is removed, and the signal's reason thrown. */
  readonly signal?: AbortSignal | undefined
}

/** Gone through between two turns of the event loop: about a millisecond. */
const TURN = 2 ** 21
/** Neighbouring runs are written together up to this many bytes. */
const WRITE = 2 ** 21

/** Fills the file `memory`, region after region. Returns when all is with the system; it is not synced. */
export async function writeMemory(
  file: FileHandle,
  regions: readonly RegionPlan[],
  { onProgress, signal }: ProgressOptions,
): Promise<{ regions: WrittenRegion[]; size: number; bytes: number; pages: number }> {
  const size = regions.reduce((sum, region) => sum + region.size, 0)
  const total = regions.reduce((sum, { extents }) => sum + extents.reduce((s, { length }) => s + length, 0), 0)
  await file.truncate(size)
  const out = new SparseFile(file)
  const runs = new RunWriter(out)
  const written: WrittenRegion[] = []
  let fileOffset = 0
  let done = 0
  let turn = 0
  try {
    for (const { extents, pieces, size } of regions) {
      const sums = new ChunkChecksums()
      for await (const { offset, length, bytes } of pieces) {
        let wait: Promise<void> | undefined
        if (bytes) {
          // The sum of a run is taken after it was given to the file: while it is on its way.
          const base = fileOffset
          sums.add(offset, bytes, (run, at) => {
            wait = runs.add(run, base + at) ?? wait
          })
        } else sums.addZeros(offset)
        if (wait) await wait
        done += length
        if (done - turn >= TURN) {
          turn = done
          await setImmediate()
          signal?.throwIfAborted()
          onProgress?.(done, total)
        }
      }
      written.push({ fileOffset, extents, checksums: sums.end() })
      fileOffset += size
    }
    await runs.flush()
  } finally {
    // Also when something failed: no write may outlive the file or the memory.
    await out.drain()
  }
  signal?.throwIfAborted()
  onProgress?.(total, total)
  return { regions: written, size, bytes: out.written, pages: total / PAGE_SIZE }
}

/** Puts runs together that follow one another both in memory and in the file. */
class RunWriter {
  readonly #out: SparseFile
  #bytes: Buffer = Buffer.alloc(0)
  #position = 0

  constructor(out: SparseFile) {
    this.#out = out
  }

  add(run: Buffer, position: number): Promise<void> | undefined {
    const last = this.#bytes
    const follows =
      position === this.#position + last.length &&
      run.buffer === last.buffer &&
      run.byteOffset === last.byteOffset + last.length
    if (follows && last.length + run.length <= WRITE) {
      this.#bytes = Buffer.from(run.buffer, last.byteOffset, last.length + run.length)
      return undefined
    }
    const wait = this.flush()
    this.#bytes = run
    this.#position = position
    return wait
  }

  flush(): Promise<void> | undefined {
    const bytes = this.#bytes
    this.#bytes = Buffer.alloc(0)
    return bytes.length > 0 ? this.#out.write(bytes, this.#position) : undefined
  }
}
