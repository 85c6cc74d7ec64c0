import { ConfigError } from '../errors.js'
import { cutAtChunks } from './checksum.js'
import { type Extent, LIMITS, type MemorySource, PAGE_SIZE } from './format.js'
import type { Piece, RegionPlan } from './memory-file.js'

type SourceRegion = MemorySource['regions'][number]

/** @throws {ConfigError} `memory` is not what `MemorySource` says */
export function checkSource({ regions }: MemorySource): void {
  if (regions.length > LIMITS.regions) bad('regions', regions.length, `there are more than ${LIMITS.regions}`)
  let guestEnd = 0
  let total = 0
  regions.forEach((region, i) => {
    const { guestAddress, size, chunks, data } = region
    const name = `regions[${i}]`
    if (!isPages(guestAddress) || guestAddress > 2 ** 52)
      bad(`${name}.guestAddress`, guestAddress, 'no address of a page')
    if (guestAddress < guestEnd) bad(`${name}.guestAddress`, guestAddress, 'the regions overlap or are not ascending')
    if (!isPages(size) || size === 0) bad(`${name}.size`, size, 'no whole pages')
    total += size
    if (total > LIMITS.memory) bad(`${name}.size`, size, `memory is larger than ${LIMITS.memory} in all`)
    guestEnd = guestAddress + size
    const bytes = chunks.reduce((sum, chunk) => sum + chunk.length, 0)
    if (bytes !== size) bad(`${name}.chunks`, bytes, `these are not the ${size} bytes of the region (is it closed?)`)
    if (!chunks.every(({ length }) => isPages(length))) bad(`${name}.chunks`, bytes, 'one has no whole pages')
    let end = 0
    for (const { offset, length } of data) {
      const ok = isPages(offset) && isPages(length) && offset >= end && offset + length <= size
      if (!ok) bad(`${name}.data`, `${offset}+${length}`, 'no whole pages of the region, ascending')
      end = offset + length
    }
  })
}

/** All of each region, zero outside of `data`. */
export function planFull({ regions }: MemorySource): RegionPlan[] {
  return regions.map(region => {
    const extents = [{ offset: 0, length: region.size }]
    return { size: region.size, extents, pieces: piecesOf(region, extents, region.data) }
  })
}

/** The pages of `data` only. */
export function planDifferential({ regions }: MemorySource): RegionPlan[] {
  let extents = regions.map(({ data }) => mergeCloser(data, 1))
  // Pages between two extents hold what the parent has of them: to save them again is right too, it only takes space.
  for (let gap = 2 * PAGE_SIZE; count(extents) > LIMITS.extents; gap *= 2) {
    extents = extents.map(ofRegion => mergeCloser(ofRegion, gap))
  }
  return regions.map((region, i) => {
    return { size: region.size, extents: extents[i]!, pieces: piecesOf(region, extents[i]!, extents[i]!) }
  })
}

/** Extents with less than `gap` bytes between them become one. */
function mergeCloser(extents: readonly Extent[], gap: number): Extent[] {
  const merged: Extent[] = []
  for (const { offset, length } of extents) {
    if (length === 0) continue
    const last = merged.at(-1)
    if (last && offset - (last.offset + last.length) < gap) {
      merged[merged.length - 1] = { offset: last.offset, length: offset + length - last.offset }
    } else merged.push({ offset, length })
  }
  return merged
}

function* piecesOf(region: SourceRegion, extents: readonly Extent[], data: readonly Extent[]): Generator<Piece> {
  const views = new Views(region.chunks)
  let next = 0
  for (const { offset, length } of cutAtChunks(extents)) {
    const end = offset + length
    for (let at = offset; at < end; ) {
      while (next < data.length && data[next]!.offset + data[next]!.length <= at) next++
      const from = data[next]?.offset ?? Number.POSITIVE_INFINITY
      if (from > at) {
        const to = Math.min(end, from)
        yield { offset: at, length: to - at }
        at = to
      } else {
        const bytes = views.at(at, Math.min(end, from + data[next]!.length) - at)
        yield { offset: at, length: bytes.length, bytes }
        at += bytes.length
      }
    }
  }
}

/** The bytes of a region over its views, asked for in ascending order. */
class Views {
  readonly #chunks: readonly Buffer[]
  #index = 0
  #start = 0

  constructor(chunks: readonly Uint8Array[]) {
    this.#chunks = chunks.map(chunk => Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length))
  }

  /** At most `length` bytes: less where a view ends. */
  at(offset: number, length: number): Buffer {
    while (offset >= this.#start + this.#chunks[this.#index]!.length) {
      this.#start += this.#chunks[this.#index]!.length
      this.#index++
    }
    return this.#chunks[this.#index]!.subarray(offset - this.#start, offset - this.#start + length)
  }
}

function count(extents: readonly (readonly Extent[])[]): number {
  return extents.reduce((sum, ofRegion) => sum + ofRegion.length, 0)
}

function isPages(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0 && value % PAGE_SIZE === 0
}

function bad(field: string, value: unknown, problem: string): never {
  throw new ConfigError(`memory.${field}`, value, problem, 'give memory as MemorySource describes it')
}
