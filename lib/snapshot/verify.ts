import { SnapshotError } from '../errors.js'
import { type PlacedRegion, placeMemory } from './chain.js'
import { CHECKSUM_SIZE, ChunkChecksums } from './checksum.js'
import { DAMAGED } from './fields.js'
import { CHUNK_SIZE } from './format.js'
import type { Layer, LayerFile } from './layer.js'
import type { ProgressOptions } from './memory-file.js'
import { MemoryReader } from './memory-reader.js'
import { openRegular, readChain, readFully } from './read.js'
import { sumOf } from './summed-file.js'
import { systemProblem } from './system-error.js'

const ZERO_SUM: Uint8Array = new Uint8Array(CHECKSUM_SIZE)

/**
 * Reads what was written to a snapshot's disks, its memory and that of all it is based on, and compares it with its checksums.
 *
 * @throws {SnapshotError} naming the chunk that is not what was written
 */
export async function verifySnapshot(directory: string, options: ProgressOptions = {}): Promise<void> {
  const chain = await readChain(directory)
  await verifyChain(chain, options)
}

/** How many bytes `verifyChain` reads. */
export function bytesToVerify(chain: readonly Layer[]): number {
  const ofFiles = (layer: Layer) => layer.files.reduce((sum, { size }) => sum + size, 0)
  const ofMemory = (layer: Layer) => placeMemory([layer]).reduce((sum, region) => sum + bytesOf(region), 0)
  return chain.reduce((sum, layer) => sum + ofFiles(layer) + ofMemory(layer), 0)
}

export async function verifyChain(chain: readonly Layer[], { onProgress, signal }: ProgressOptions): Promise<void> {
  const total = bytesToVerify(chain)
  let done = 0
  /** Tells of what one part has read, from its beginning. */
  const meter = () => {
    const before = done
    return (read: number) => {
      signal?.throwIfAborted()
      done = before + read
      onProgress?.(done, total)
    }
  }
  for (const layer of chain) {
    for (const [i, region] of placeMemory([layer]).entries()) {
      await verifyRegion(region, layer.regions[i]!.checksums, meter())
    }
    for (const file of layer.files) await verifyFile(layer.directory, file, meter())
  }
}

/** All of it: what is to be a hole must be zero. */
async function verifyFile(
  directory: string,
  { name, size, checksums }: LayerFile,
  onRead: (bytes: number) => void,
): Promise<void> {
  const path = `${directory}/${name}`
  const file = await openRegular(directory, name)
  const buffer = Buffer.alloc(CHUNK_SIZE)
  try {
    for (let at = 0; at < size; at += CHUNK_SIZE) {
      const bytes = buffer.subarray(0, Math.min(CHUNK_SIZE, size - at))
      await readFully(path, file, bytes, at)
      compare(path, `bytes ${at}-${at + bytes.length - 1}`, sumOf(at, bytes), checksums.get(at / CHUNK_SIZE))
      onRead(at + bytes.length)
    }
  } catch (error) {
    throw systemProblem(path, 'reading it', error)
  } finally {
    await file.close()
  }
}

function compare(path: string, where: string, actual = ZERO_SUM, expected = ZERO_SUM): void {
  if (Buffer.compare(actual, expected) === 0) return
  throw new SnapshotError(path, `${where}: its checksum is ${hex(actual)}, not ${hex(expected)}`, DAMAGED)
}

async function verifyRegion(region: PlacedRegion, sums: Uint8Array, onRead: (bytes: number) => void): Promise<void> {
  const path = region.extents[0]?.file ?? ''
  const reader = new MemoryReader()
  let next = 0
  let read = 0
  try {
    for await (const { chunk, pieces } of reader.chunks(region.extents)) {
      const sum = new ChunkChecksums()
      for (const { offset, length, bytes } of pieces) {
        sum.add(offset, bytes)
        read += length
      }
      const from = region.guestAddress + chunk * CHUNK_SIZE
      const to = region.guestAddress + Math.min(region.size, (chunk + 1) * CHUNK_SIZE) - 1
      const where = `guest memory 0x${from.toString(16)}-0x${to.toString(16)}`
      compare(path, where, sum.end(), sums.subarray(CHECKSUM_SIZE * next, CHECKSUM_SIZE * ++next))
      onRead(read)
    }
  } catch (error) {
    throw systemProblem(path, 'reading it', error)
  } finally {
    await reader.close()
  }
}

function bytesOf(region: PlacedRegion): number {
  return region.extents.reduce((sum, { length }) => sum + length, 0)
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
