import type { FileHandle } from 'node:fs/promises'
import { ChunkChecksums } from './checksum.js'
import { CHUNK_SIZE } from './format.js'

/*
 * The checksums of an added file: for each chunk of it that is not all zero, in order, its number as a u64 and its sum, as memory's
 * chunks have it. A file is as long as a disk and mostly hole, so chunks that are all zero take no room.
 */

export const NUMBERED_SUM_SIZE = 16

/** Writes a file in ascending order, pages that are all zero as holes, and takes its checksums as the bytes come by. */
export class SummedFile {
  readonly #file: FileHandle
  readonly #sums: Buffer[] = []
  /** The chunk that is being filled, and its number. */
  readonly #bytes = Buffer.alloc(CHUNK_SIZE)
  #chunk = -1
  #size = 0

  constructor(file: FileHandle) {
    this.#file = file
  }

  /** Before the first bytes: what is not written is zero. */
  async resize(size: number): Promise<void> {
    this.#size = size
    await this.#file.truncate(size)
  }

  async put(position: number, bytes: Uint8Array): Promise<void> {
    if (position + bytes.length > this.#size) throw new RangeError('these bytes lie behind the end of the file')
    for (let at = 0; at < bytes.length; ) {
      const chunk = Math.floor((position + at) / CHUNK_SIZE)
      if (chunk < this.#chunk) throw new RangeError('these bytes lie before others that were written')
      if (chunk > this.#chunk) await this.#flush()
      this.#chunk = chunk
      const start = position + at - chunk * CHUNK_SIZE
      const count = Math.min(bytes.length - at, CHUNK_SIZE - start)
      this.#bytes.set(bytes.subarray(at, at + count), start)
      at += count
    }
  }

  /** Writes what is left, and gives the checksums. */
  async end(): Promise<Buffer> {
    await this.#flush()
    return Buffer.concat(this.#sums)
  }

  async #flush(): Promise<void> {
    if (this.#chunk < 0) return
    const start = this.#chunk * CHUNK_SIZE
    const bytes = this.#bytes.subarray(0, Math.min(CHUNK_SIZE, this.#size - start))
    const runs: [Buffer, number][] = []
    const sum = sumOf(start, bytes, (run, offset) => runs.push([run, offset]))
    if (sum) this.#sums.push(numbered(this.#chunk, sum))
    for (const [run, offset] of runs) {
      for (let at = 0; at < run.length; ) {
        at += (await this.#file.write(run, at, run.length - at, offset + at)).bytesWritten
      }
    }
    this.#bytes.fill(0)
  }
}

/** The checksum of one chunk; undefined for one that is all zero. `onRun` is given its pages that are not. */
export function sumOf(
  offset: number,
  chunk: Buffer,
  onRun?: (run: Buffer, offset: number) => void,
): Uint8Array | undefined {
  const sums = new ChunkChecksums()
  let empty = true
  sums.add(offset, chunk, (run, at) => {
    empty = false
    onRun?.(run, at)
  })
  return empty ? undefined : sums.end()
}

function numbered(chunk: number, sum: Uint8Array): Buffer {
  const entry = Buffer.alloc(NUMBERED_SUM_SIZE)
  entry.writeBigUInt64LE(BigInt(chunk))
  entry.set(sum, 8)
  return entry
}
