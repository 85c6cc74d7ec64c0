import { createHash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { SnapshotError } from '../errors.js'
import { DAMAGED } from './fields.js'
import { CHUNK_SIZE, type Extent, FILES } from './format.js'

/*
 * A region of memory is cut into chunks of CHUNK_SIZE, counted from its start. A chunk has a checksum if an extent has a
 * byte in it (a full snapshot has one extent, the region). The checksum is the CRC-32 of the bytes of the extents in that
 * chunk, in order: so it costs a differential what it has of pages, and nothing that is read is without one.
 */

export const ZEROS = Buffer.alloc(CHUNK_SIZE)
const ZERO_CHUNK = crc32(ZEROS)

/** The checksums of a region, as its pieces come by in ascending order. None may cross a boundary between chunks. */
export class ChunkChecksums {
  readonly #values: number[] = []
  #chunk = -1

  /** `zero`: the bytes are known to be all zero. */
  add(offset: number, bytes: Uint8Array, zero = false): void {
    const chunk = Math.floor(offset / CHUNK_SIZE)
    if (chunk !== this.#chunk) {
      this.#chunk = chunk
      this.#values.push(zero && bytes.length === CHUNK_SIZE ? ZERO_CHUNK : crc32(bytes))
    } else this.#values.push(crc32(bytes, this.#values.pop()))
  }

  get values(): readonly number[] {
    return this.#values
  }
}

/** The same bytes in extents that cross no boundary between chunks. */
export function* cutAtChunks(extents: Iterable<Extent>): Generator<Extent> {
  for (const { offset, length } of extents) {
    const end = offset + length
    for (let at = offset; at < end; ) {
      const next = Math.min(end, (Math.floor(at / CHUNK_SIZE) + 1) * CHUNK_SIZE)
      yield { offset: at, length: next - at }
      at = next
    }
  }
}

/** How many chunks `extents` have bytes in. */
export function countChunks(extents: readonly Extent[]): number {
  let count = 0
  let last = -1
  for (const { offset, length } of extents) {
    const first = Math.floor(offset / CHUNK_SIZE)
    const end = Math.floor((offset + length - 1) / CHUNK_SIZE)
    count += end - first + (first === last ? 0 : 1)
    last = end
  }
  return count
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** The file `checksums`. */
export function encodeChecksums(manifest: Uint8Array, state: Uint8Array): Buffer {
  return Buffer.from(`${sha256(manifest)}  ${FILES.manifest}\n${sha256(state)}  ${FILES.state}\n`)
}

/** What `checksums` says, by file. Strict: a bit that flips in here must not go by either. */
export function parseChecksums(path: string, bytes: Uint8Array): ReadonlyMap<string, string> {
  const sums = new Map<string, string>()
  const lines = Buffer.from(bytes).toString('latin1').split('\n')
  if (lines.pop() !== '') throw new SnapshotError(path, 'it is cut short', DAMAGED)
  for (const line of lines) {
    const match = /^([0-9a-f]{64}) {2}([a-z.]+)$/.exec(line)
    if (!match || sums.has(match[2]!)) {
      throw new SnapshotError(path, `${JSON.stringify(line.slice(0, 100))}: it is no line of sha256sum`, DAMAGED)
    }
    sums.set(match[2]!, match[1]!)
  }
  return sums
}

/** @throws {SnapshotError} `bytes` are not those that were written as `file` */
export function checkSum(path: string, sums: ReadonlyMap<string, string>, file: string, bytes: Uint8Array): void {
  const expected = sums.get(file)
  const actual = sha256(bytes)
  if (expected === actual) return
  const problem = expected ? `its SHA-256 is ${actual}, not ${expected}` : `${FILES.checksums} does not name it`
  throw new SnapshotError(path, problem, DAMAGED)
}
