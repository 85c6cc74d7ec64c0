import type { PlacedExtent, PlacedRegion } from './chain.js'
import { PAGE_SIZE } from './format.js'
import type { ProgressOptions } from './memory-file.js'
import { type FilledPiece, MemoryReader } from './memory-reader.js'
import type { Snapshot } from './read.js'

/** Neighbouring pages that differ. */
export interface PageRun {
  /** Guest-physical. */
  readonly address: number
  readonly pages: number
}

export interface MemoryDifference {
  readonly pages: number
  /** In how many runs of neighbouring pages. */
  readonly runs: number
  /** The first of them, ascending. */
  readonly first: readonly PageRun[]
}

/** Runs that are named one by one. */
const NAMED = 64

/**
 * Which pages of guest memory two snapshots have differently. What both take from the same place is not read. Undefined where
 * their memory is not laid out alike.
 *
 * @throws {SnapshotError} the memory of one cannot be read
 */
export async function compareMemory(
  a: Pick<Snapshot, 'memory'>,
  b: Pick<Snapshot, 'memory'>,
  { onProgress, signal }: ProgressOptions = {},
): Promise<MemoryDifference | undefined> {
  const [before, after] = [a.memory.regions, b.memory.regions]
  const alike = ({ guestAddress, size }: PlacedRegion, i: number) =>
    after[i]?.guestAddress === guestAddress && after[i]?.size === size
  if (before.length !== after.length || !before.every(alike)) return undefined
  const parts = before.map(({ extents }, i) => differentPlaces(extents, after[i]!.extents))
  const total = parts.reduce((sum, [ours]) => sum + ours.reduce((s, { length }) => s + length, 0), 0)
  const runs = new Runs()
  let done = 0
  for (const [i, [ours, theirs]] of parts.entries()) {
    for await (const [x, y] of bothChunks(ours, theirs)) {
      signal?.throwIfAborted()
      for (const page of differentPages(x, y)) runs.add(before[i]!.guestAddress + page)
      done += x.reduce((sum, { length }) => sum + length, 0)
      onProgress?.(done, total)
    }
  }
  return runs.result()
}

/** The parts of a region that do not lie in the same place of the same file: the same bytes of it on both sides. */
function differentPlaces(
  a: readonly PlacedExtent[],
  b: readonly PlacedExtent[],
): readonly [PlacedExtent[], PlacedExtent[]] {
  const [ours, theirs]: [PlacedExtent[], PlacedExtent[]] = [[], []]
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    const [x, y] = [a[i]!, b[j]!]
    const from = Math.max(x.offset, y.offset)
    const to = Math.min(x.offset + x.length, y.offset + y.length)
    const part = ({ file, offset, fileOffset }: PlacedExtent) => {
      return { file, offset: from, length: to - from, fileOffset: fileOffset + from - offset }
    }
    if (x.file !== y.file || x.fileOffset - x.offset !== y.fileOffset - y.offset) {
      ours.push(part(x))
      theirs.push(part(y))
    }
    if (x.offset + x.length === to) i++
    if (y.offset + y.length === to) j++
  }
  return [ours, theirs]
}

/** Both sides chunk by chunk; their pieces are of the same places. */
async function* bothChunks(
  a: readonly PlacedExtent[],
  b: readonly PlacedExtent[],
): AsyncGenerator<readonly [FilledPiece[], FilledPiece[]]> {
  const [x, y] = [new MemoryReader(), new MemoryReader()]
  try {
    const theirs = y.chunks(b)
    for await (const { pieces } of x.chunks(a)) {
      const { value } = await theirs.next()
      yield [pieces, value!.pieces]
    }
  } finally {
    await x.close()
    await y.close()
  }
}

function* differentPages(a: readonly FilledPiece[], b: readonly FilledPiece[]): Generator<number> {
  for (const [i, { offset, length, bytes }] of a.entries()) {
    const other = b[i]!.bytes
    if (bytes.equals(other)) continue
    for (let at = 0; at < length; at += PAGE_SIZE) {
      if (bytes.compare(other, at, at + PAGE_SIZE, at, at + PAGE_SIZE) !== 0) yield offset + at
    }
  }
}

class Runs {
  readonly #first: { address: number; pages: number }[] = []
  #end = -1
  #runs = 0
  #pages = 0

  add(page: number): void {
    if (page !== this.#end) {
      this.#runs++
      if (this.#runs <= NAMED) this.#first.push({ address: page, pages: 0 })
    }
    if (this.#runs <= NAMED) this.#first.at(-1)!.pages++
    this.#end = page + PAGE_SIZE
    this.#pages++
  }

  result(): MemoryDifference {
    return { pages: this.#pages, runs: this.#runs, first: this.#first }
  }
}
