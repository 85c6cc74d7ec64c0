import { SnapshotError } from '../errors.js'
import { type PlacedRegion, placeMemory } from './chain.js'
import { CHECKSUM_SIZE, ChunkChecksums } from './checksum.js'
import { DAMAGED } from './fields.js'
import { CHUNK_SIZE } from './format.js'
import type { Layer } from './layer.js'
import type { ProgressOptions } from './memory-file.js'
import { MemoryReader } from './memory-reader.js'
import { readChain } from './read.js'
import { systemProblem } from './system-error.js'

/**
 * Reads the memory of a snapshot and of all it is based on, and compares it with its checksums.
 *
 * @throws {SnapshotError} naming the chunk that is not what was written
 */
export async function verifyMemory(directory: string, options: ProgressOptions = {}): Promise<void> {
  const chain = await readChain(directory)
  await verifyChain(chain, options)
}

/** How many bytes of memory `verifyChain` reads. */
export function memoryBytes(chain: readonly Layer[]): number {
  return chain.reduce((sum, layer) => sum + placeMemory([layer]).reduce((s, region) => s + bytesOf(region), 0), 0)
}

export async function verifyChain(chain: readonly Layer[], { onProgress, signal }: ProgressOptions): Promise<void> {
  const total = memoryBytes(chain)
  let done = 0
  for (const layer of chain) {
    for (const [i, region] of placeMemory([layer]).entries()) {
      const before = done
      await verifyRegion(region, layer.regions[i]!.checksums, read => {
        signal?.throwIfAborted()
        done = before + read
        onProgress?.(done, total)
      })
    }
  }
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
      const actual = hex(sum.end())
      const expected = hex(sums.subarray(CHECKSUM_SIZE * next, CHECKSUM_SIZE * ++next))
      if (actual !== expected) {
        const from = region.guestAddress + chunk * CHUNK_SIZE
        const to = region.guestAddress + Math.min(region.size, (chunk + 1) * CHUNK_SIZE) - 1
        const where = `guest memory 0x${from.toString(16)}-0x${to.toString(16)}`
        throw new SnapshotError(path, `${where}: its checksum is ${actual}, not ${expected}`, DAMAGED)
      }
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
