import { open } from 'node:fs/promises'
import { CHUNK_SIZE } from './format.js'
import type { SummedFile } from './summed-file.js'
import { nonZeroRuns } from './zeros.js'

/** Copies a file; zero pages become holes. */
export async function copySparse(from: string, to: SummedFile, signal: AbortSignal | undefined): Promise<void> {
  const source = await open(from)
  try {
    const { size } = await source.stat()
    await to.resize(size)
    const buffer = Buffer.alloc(CHUNK_SIZE)
    for (let at = 0; at < size; ) {
      signal?.throwIfAborted()
      const { bytesRead } = await source.read(buffer, 0, buffer.length, at)
      if (bytesRead === 0) throw new Error(`${from}: it was cut short while it was read`)
      for (const [start, end] of nonZeroRuns(buffer.subarray(0, bytesRead))) {
        await to.put(at + start, buffer.subarray(start, end))
      }
      at += bytesRead
    }
  } finally {
    await source.close()
  }
}
