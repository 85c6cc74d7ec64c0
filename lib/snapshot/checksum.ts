import { type CipherChaCha20Poly1305, createCipheriv, createHash } from 'node:crypto'
import { SnapshotError } from '../errors.js'
import { DAMAGED } from './fields.js'
import { CHUNK_SIZE, type Extent, FILES, PAGE_SIZE } from './format.js'
import { nonZeroRuns } from './zeros.js'

/*
 * A region of memory is cut into chunks of CHUNK_SIZE, counted from its start. A chunk has a checksum if an extent has a
 * byte in it (a full snapshot has one extent, the region). All zero: 0. Else the first 8 bytes of Poly1305 (RFC 8439, as
 * ChaCha20-Poly1305 gives it for AAD under a key and nonce of zeros) over its pages that are not zero, in order, and a map of
 * 256 bits that tells which these are, lowest bit first. A page that no extent has counts as zero.
 *
 * Why not a CRC: this takes a fifth of the time of zlib's, and what a save does beside copying must not be seen. It finds
 * damage, not malice.
 */

export const CHECKSUM_SIZE = 8
const KEY = Buffer.alloc(32)
const NONCE = Buffer.alloc(12)
const NO_TEXT = { plaintextLength: 0 }
const PAGES_PER_CHUNK = CHUNK_SIZE / PAGE_SIZE

/** The checksums of a region, as its pages come by in ascending order. No piece may cross a boundary between chunks. */
export class ChunkChecksums {
  readonly #values: Uint8Array[] = []
  #chunk = -1
  #sum: CipherChaCha20Poly1305 | undefined
  #map = new Uint8Array(PAGES_PER_CHUNK / 8)

  /** Whole pages, in which the zero ones are looked for. `onRun` is given the others, before their sum is taken. */
  add(offset: number, bytes: Buffer, onRun?: (run: Buffer, offset: number) => void): void {
    this.addZeros(offset)
    for (const [start, end] of nonZeroRuns(bytes)) {
      const run = bytes.subarray(start, end)
      onRun?.(run, offset + start)
      this.#sum ??= createCipheriv('chacha20-poly1305', KEY, NONCE, { authTagLength: 16 })
      this.#sum.setAAD(run, NO_TEXT)
      const page = (offset + start) / PAGE_SIZE
      for (let i = 0; i < run.length / PAGE_SIZE; i++) {
        const bit = (page + i) % PAGES_PER_CHUNK
        this.#map[bit >> 3]! |= 1 << (bit & 7)
      }
    }
  }

  /** Pages that are known to be zero. */
  addZeros(offset: number): void {
    const chunk = Math.floor(offset / CHUNK_SIZE)
    if (chunk === this.#chunk) return
    this.#finish()
    this.#chunk = chunk
  }

  /** One after the other; nothing can be added after this. */
  end(): Uint8Array {
    this.#finish()
    return Buffer.concat(this.#values)
  }

  #finish(): void {
    if (this.#chunk < 0) return
    let value: Uint8Array = new Uint8Array(CHECKSUM_SIZE)
    if (this.#sum) {
      this.#sum.setAAD(this.#map, NO_TEXT)
      this.#sum.final()
      value = this.#sum.getAuthTag().subarray(0, CHECKSUM_SIZE)
      this.#sum = undefined
      this.#map.fill(0)
    }
    this.#values.push(value)
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
