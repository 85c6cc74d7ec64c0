import { join } from 'node:path'
import { SnapshotError } from '../errors.js'
import { type PlacedRegion, placeMemory } from './chain.js'
import { copySparse } from './copy-sparse.js'
import type { Piece, ProgressOptions, RegionPlan } from './memory-file.js'
import { MemoryReader } from './memory-reader.js'
import { machineState, readChain } from './read.js'
import { type SnapshotInfo, saveTo } from './save.js'
import { bytesToVerify, verifyChain } from './verify.js'

/**
 * Makes one full snapshot of a differential and all it is based on. It is the same moment of the same machine, so it keeps
 * its id and its time: differentials that are based on it stay valid if it takes its place. `target` may be `directory`.
 *
 * @throws {SnapshotError} a part of the chain is damaged (memory and disks are checked too: a damage must not get a new checksum),
 * or the target cannot be written
 */
export async function squashSnapshot(
  directory: string,
  target: string,
  { onProgress, signal }: ProgressOptions = {},
): Promise<SnapshotInfo> {
  const chain = await readChain(directory)
  const newest = chain[0]!
  const regions = placeMemory(chain)
  const toVerify = bytesToVerify(chain)
  const total = toVerify + regions.reduce((sum, { size }) => sum + size, 0)
  const reader = new MemoryReader()
  const options = { onProgress: (done: number) => onProgress?.(toVerify + done, total), signal }
  try {
    return await saveTo(target, options, async place => {
      if (chain.slice(1).some(layer => layer.directory === place)) {
        const problem = `the snapshot in ${newest.directory} and maybe others are based on the one that this would replace`
        throw new SnapshotError(place, problem, 'give another target')
      }
      await verifyChain(chain, { onProgress: done => onProgress?.(done, total), signal })
      return {
        state: machineState(newest),
        files: newest.manifest.files.map(({ name }) => ({
          name,
          write: (file, signal) => copySparse(join(newest.directory, name), file, signal),
        })),
        id: newest.manifest.id,
        created: newest.manifest.created,
        guestAddresses: regions.map(({ guestAddress }) => guestAddress),
        plan: regions.map(region => planOf(reader, region)),
      }
    })
  } finally {
    await reader.close()
  }
}

function planOf(reader: MemoryReader, region: PlacedRegion): RegionPlan {
  return { size: region.size, extents: [{ offset: 0, length: region.size }], pieces: piecesOf(reader, region) }
}

async function* piecesOf(reader: MemoryReader, { extents }: PlacedRegion): AsyncGenerator<Piece> {
  for await (const { pieces } of reader.chunks(extents)) yield* pieces
}
