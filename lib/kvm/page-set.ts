/** A range of bytes. */
export interface ByteRange {
  readonly offset: number
  readonly length: number
}

const PAGE_SIZE = 4096

/** Most of a set is mostly empty: so many words are compared at once first. */
const BLOCK = 256
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
    for (let i = other.#skip(0); i < more.length; i = other.#skip(i + 1)) {
      if (more[i] !== 0) words[i]! |= more[i]!
    }
  }

  clear(): void {
    this.#words.fill(0)
  }

  /** The pages as ranges of bytes, ascending, neighbours joined. */
  ranges(): ByteRange[] {
    const ranges: ByteRange[] = []
    const pages = this.size / PAGE_SIZE
    let start = -1
    for (let word = this.#skip(0); word < this.#words.length; word = start < 0 ? this.#skip(word + 1) : word + 1) {
      const bits = this.#words[word]!
      // Nothing begins or ends in a word that is all zeros, or all ones within a range.
      if (bits === 0 && start < 0) continue
      if (bits === 0xffffffff && start >= 0) continue
      for (let bit = 0; bit < 32; bit++) {
        const page = word * 32 + bit
        const set = ((bits >>> bit) & 1) === 1 && page < pages
        if (set && start < 0) start = page
        if (!set && start >= 0) {
          ranges.push(bytesOf(start, page))
          start = -1
        }
      }
    }
    if (start >= 0) ranges.push(bytesOf(start, pages))
    return ranges
  }

  /** `word`, or where it begins an empty block, what comes after that. */
  #skip(word: number): number {
    while (word % BLOCK === 0) {
      const block = this.bytes.subarray(word * 4, (word + BLOCK) * 4)
      if (Buffer.compare(block, EMPTY) !== 0) break
      word += BLOCK
    }
    return word
  }
}

function bytesOf(firstPage: number, endPage: number): ByteRange {
  return { offset: firstPage * PAGE_SIZE, length: (endPage - firstPage) * PAGE_SIZE }
}
