import { SnapshotError } from '../errors.js'
import { CHECKSUM_SIZE, checkSum, countChunks, parseChecksums } from './checksum.js'
import { DAMAGED } from './fields.js'
import { type Blobs, type BlobTable, CHUNK_SIZE, type Extent, FILES, type Manifest, PAGE_SIZE } from './format.js'
import { parseManifest } from './manifest.js'
import { NUMBERED_SUM_SIZE } from './summed-file.js'

export interface LayerRegion {
  readonly guestAddress: number
  readonly size: number
  readonly fileOffset: number
  /** What this snapshot has of the region, ascending, not adjacent: the whole of it where it is no differential. */
  readonly extents: readonly Extent[]
  /** As `ChunkChecksums` gives them. */
  readonly checksums: Uint8Array
}

export interface LayerFile {
  readonly name: string
  readonly size: number
  /** The sums of its chunks by their numbers, ascending, but for those that are all zero. */
  readonly checksums: ReadonlyMap<number, Uint8Array>
}

/** One snapshot of a chain: its files read and checked, but for `memory` and those of disks. */
export interface Layer {
  readonly directory: string
  readonly manifest: Manifest
  readonly state: Uint8Array
  readonly regions: readonly LayerRegion[]
  readonly files: readonly LayerFile[]
}

/** Checks the sum of a manifest, then reads it: a newer version's files may be others than ours, but not these two. */
export function readManifest(directory: string, manifest: Uint8Array, checksums: Uint8Array): Manifest {
  const sums = parseChecksums(`${directory}/${FILES.checksums}`, checksums)
  const path = `${directory}/${FILES.manifest}`
  checkSum(path, sums, FILES.manifest, manifest)
  return parseManifest(path, manifest)
}

/** Takes the tables of the memory from `state`, after its sum was checked. */
export function readLayer(directory: string, manifest: Manifest, state: Uint8Array, checksums: Uint8Array): Layer {
  const path = `${directory}/${FILES.state}`
  checkSum(path, parseChecksums(`${directory}/${FILES.checksums}`, checksums), FILES.state, state)
  if (state.length !== manifest.stateSize) {
    throw new SnapshotError(path, `it has ${state.length} bytes, not ${manifest.stateSize}`, DAMAGED)
  }
  const regions = manifest.memory.regions.map((region, i): LayerRegion => {
    const { guestAddress, size, fileOffset } = region
    const extents = region.extents
      ? decodeExtents(path, `extents of memory.regions[${i}]`, slice(state, region.extents), size)
      : [{ offset: 0, length: size }]
    const checksums = slice(state, region.checksums).slice()
    const wanted = CHECKSUM_SIZE * countChunks(extents)
    if (checksums.length !== wanted) {
      const problem = `checksums of memory.regions[${i}]: ${checksums.length} bytes, not ${wanted}`
      throw new SnapshotError(path, problem, DAMAGED)
    }
    return { guestAddress, size, fileOffset, extents, checksums }
  })
  const files = manifest.files.map(({ name, size, checksums }, i): LayerFile => {
    const table = slice(state, checksums).slice()
    return { name, size, checksums: decodeSums(path, `checksums of files[${i}]`, table, size) }
  })
  return { directory, manifest, state, regions, files }
}

/** The blobs that a table names: views, not copies. */
export function blobsOf(state: Uint8Array, table: BlobTable): Blobs {
  return Object.fromEntries(Object.entries(table).map(([name, extent]) => [name, slice(state, extent)]))
}

export function encodeExtents(extents: readonly Extent[]): Buffer {
  const bytes = Buffer.alloc(16 * extents.length)
  extents.forEach(({ offset, length }, i) => {
    bytes.writeBigUInt64LE(BigInt(offset), 16 * i)
    bytes.writeBigUInt64LE(BigInt(length), 16 * i + 8)
  })
  return bytes
}

/** Whole pages within the region, ascending, with a gap between any two: only so is each page there once. */
function decodeExtents(path: string, field: string, bytes: Uint8Array, size: number): Extent[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const extents: Extent[] = []
  let end = -1
  for (let at = 0; at < bytes.length; at += 16) {
    // Beyond 2^53 a number is rounded, but stays beyond every size.
    const offset = Number(view.getBigUint64(at, true))
    const length = Number(view.getBigUint64(at + 8, true))
    const bad = (problem: string) => {
      return new SnapshotError(path, `${field}: number ${at / 16}: ${offset}+${length}: ${problem}`, DAMAGED)
    }
    if (offset % PAGE_SIZE !== 0 || length % PAGE_SIZE !== 0 || length === 0) throw bad('these are no whole pages')
    if (offset + length > size) throw bad(`it leaves the region's ${size} bytes`)
    if (offset <= end) throw bad('it is not after the one before, with a gap')
    end = offset + length
    extents.push({ offset, length })
  }
  return extents
}

/** Numbers of chunks, ascending, within the file, each with its sum. */
function decodeSums(path: string, field: string, bytes: Uint8Array, size: number): Map<number, Uint8Array> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const sums = new Map<number, Uint8Array>()
  let last = -1
  for (let at = 0; at < bytes.length; at += NUMBERED_SUM_SIZE) {
    const chunk = Number(view.getBigUint64(at, true))
    if (chunk <= last || chunk * CHUNK_SIZE >= size) {
      const problem = `${field}: number ${at / NUMBERED_SUM_SIZE}: chunk ${chunk} is not after the one before, within ${size} bytes`
      throw new SnapshotError(path, problem, DAMAGED)
    }
    last = chunk
    sums.set(chunk, bytes.subarray(at + 8, at + NUMBERED_SUM_SIZE))
  }
  return sums
}

function slice(state: Uint8Array, { offset, length }: Extent): Uint8Array {
  return state.subarray(offset, offset + length)
}
