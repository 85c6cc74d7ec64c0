import type { FileHandle } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import type { PlacedExtent } from './chain.js'
import { CHUNK_SIZE, type Extent } from './format.js'
import { openRegular, readFully } from './read.js'

/** A part of a region with its bytes. */
export interface FilledPiece extends Extent {
  readonly bytes: Buffer
}

/** Reads memory chunk by chunk, the next chunk while the caller works on one. `close` it. */
export class MemoryReader {
  readonly #files = new Map<string, Promise<FileHandle>>()

  /** The extents of a region, ascending. Yields each chunk that they have bytes in, with those. */
  async *chunks(extents: readonly PlacedExtent[]): AsyncGenerator<{ chunk: number; pieces: FilledPiece[] }> {
    let loading: Promise<{ chunk: number; pieces: FilledPiece[] }> | undefined
    for (const { chunk, parts } of chunksOf(extents)) {
      const ready = loading
      loading = this.#load(chunk, parts)
      // The caller may never come back for it.
      loading.catch(() => {})
      if (ready) yield await ready
    }
    if (loading) yield await loading
  }

  async close(): Promise<void> {
    for (const file of this.#files.values()) await file.then(handle => handle.close()).catch(() => {})
  }

  /** One read per file, over the gaps: a chunk may have hundreds of single pages in it. */
  async #load(chunk: number, parts: readonly PlacedExtent[]): Promise<{ chunk: number; pieces: FilledPiece[] }> {
    const spans = new Map<string, { start: number; end: number }>()
    for (const { file, fileOffset, length } of parts) {
      const span = spans.get(file)
      if (span) span.end = fileOffset + length
      else spans.set(file, { start: fileOffset, end: fileOffset + length })
    }
    const contents = new Map<string, Buffer>()
    await Promise.all(
      [...spans].map(async ([path, { start, end }]) => {
        const bytes = Buffer.allocUnsafeSlow(end - start)
        await readFully(path, await this.#open(path), bytes, start)
        contents.set(path, bytes)
      }),
    )
    const pieces = parts.map(({ offset, length, file, fileOffset }) => {
      const start = fileOffset - spans.get(file)!.start
      return { offset, length, bytes: contents.get(file)!.subarray(start, start + length) }
    })
    return { chunk, pieces }
  }

  #open(path: string): Promise<FileHandle> {
    let file = this.#files.get(path)
    if (!file) {
      file = openRegular(dirname(path), basename(path))
      this.#files.set(path, file)
    }
    return file
  }
}

/** Every chunk that an extent has a byte in, ascending, with the parts of the extents in it. */
function* chunksOf(extents: readonly PlacedExtent[]): Generator<{ chunk: number; parts: PlacedExtent[] }> {
  let current: { chunk: number; parts: PlacedExtent[] } | undefined
  for (const { offset, length, file, fileOffset } of extents) {
    const end = offset + length
    for (let at = offset; at < end; ) {
      const chunk = Math.floor(at / CHUNK_SIZE)
      const next = Math.min(end, (chunk + 1) * CHUNK_SIZE)
      const part = { offset: at, length: next - at, file, fileOffset: fileOffset + at - offset }
      if (current?.chunk === chunk) current.parts.push(part)
      else {
        if (current) yield current
        current = { chunk, parts: [part] }
      }
      at = next
    }
  }
  if (current) yield current
}
