/** A range of bytes. */
export interface ByteRange {
  readonly offset: number
  readonly length: number
}

const PAGE_SIZE = 4096

/** Most of a set is mostly empty: so many words are compared at once first. */
const BLOCK = 1024
const EMPTY = Buffer.alloc(BLOCK * 4)

/** A set of a region's pages: a bit for each, as KVM's dirty log lays them out (KVM API 4.8). */
export class PageSet {
  /** Bytes of the region. */
  readonly size: number
  /** The bitmap itself, page 0 in bit 0 of byte 0. */
  readonly bytes: Uint8Array
  readonly #words: Uint32Array

  constructor(size: number) {
    this.size = size
    this.#words = new Uint32Array(Math.ceil(size / PAGE_SIZE / 64) * 2)
    this.bytes = new Uint8Array(this.#words.buffer)
  }

  /** How many pages are in it. */
  get count(): number {
    let count = 0
    for (let bits of this.#words) for (; bits !== 0; bits &= bits - 1) count++
    return count
  }

  /** Adds the pages that `[offset, offset + length)` touches. */
  add(offset: number, length: number): void {
    if (length === 0) return
    const end = Math.floor((offset + length - 1) / PAGE_SIZE)
    for (let page = Math.floor(offset / PAGE_SIZE); page <= end; page++) this.#words[page >>> 5]! |= 1 << (page & 31)
  }

  addAll(other: PageSet): void {
    const words = this.#words
    const more = other.#words
    for (let block = 0; block < more.length; block += BLOCK) {
      if (other.#isEmpty(block)) continue
      const end = Math.min(block + BLOCK, more.length)
      for (let word = block; word < end; word++) if (more[word] !== 0) words[word]! |= more[word]!
    }
  }

  clear(): void {
    this.#words.fill(0)
  }

  /** The pages as ranges of bytes, ascending, neighbours joined. */
  ranges(): ByteRange[] {
    const ranges: ByteRange[] = []
    const words = this.#words
    const pages = this.size / PAGE_SIZE
    let start = -1
    for (let block = 0; block < words.length; block += BLOCK) {
      if (start < 0 && this.#isEmpty(block)) continue
      const end = Math.min(block + BLOCK, words.length)
      for (let word = block; word < end; word++) {
        const bits = words[word]!
        // Nothing begins or ends in a word that is all zeros, or all ones within a range.
        if (bits === (start < 0 ? 0 : 0xffffffff)) continue
        for (let bit = 0; bit < 32; bit++) {
          const page = word * 32 + bit
          const set = ((bits >>> bit) & 1) === 1 && page < pages
          if (set === start >= 0) continue
          if (!set) ranges.push(bytesOf(start, page))
          start = set ? page : -1
        }
      }
    }
    if (start >= 0) ranges.push(bytesOf(start, pages))
    return ranges
  }

  #isEmpty(block: number): boolean {
    return Buffer.compare(this.bytes.subarray(block * 4, (block + BLOCK) * 4), EMPTY) === 0
  }
}

function bytesOf(firstPage: number, endPage: number): ByteRange {
  return { offset: firstPage * PAGE_SIZE, length: (endPage - firstPage) * PAGE_SIZE }
}
