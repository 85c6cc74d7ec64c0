/** A run of sectors that are all in the set, or all not. */
export interface SectorRun {
  readonly sector: number
  readonly count: number
  readonly present: boolean
}

/** Sectors of one piece of the bitmap: 16 MiB of disk in 4 KiB. */
const PIECE = 2 ** 15
const WORD = 32
const ALL = 0xffff_ffff

/** A set of sectors: a bitmap in pieces, of which only those with a bit in them take room. */
export class SectorMap {
  readonly #pieces = new Map<number, Uint32Array>()
  /** Pieces with a bit that was added since `takeChanged`. */
  readonly #changed = new Set<number>()

  get isEmpty(): boolean {
    return this.#pieces.size === 0
  }

  add(sector: number, count: number): void {
    for (let at = sector; at < sector + count; ) {
      const index = Math.floor(at / PIECE)
      const start = at - index * PIECE
      const end = Math.min(sector + count - index * PIECE, PIECE)
      const piece = this.#pieces.get(index) ?? new Uint32Array(PIECE / WORD)
      this.#pieces.set(index, piece)
      for (let bit = start; bit < end; ) {
        const first = bit % WORD
        const last = Math.min(first + end - bit, WORD)
        piece[(bit - first) / WORD]! |= mask(first, last)
        bit += last - first
      }
      this.#changed.add(index)
      at = index * PIECE + end
    }
  }

  /** The longest run that starts at `sector`, up to `end`. */
  runAt(sector: number, end: number): SectorRun {
    const present = this.#bit(sector)
    let at = sector + 1
    while (at < end) {
      const index = Math.floor(at / PIECE)
      const piece = this.#pieces.get(index)
      if (!piece) {
        if (present) break
        at = (index + 1) * PIECE
        continue
      }
      const bit = at - index * PIECE
      const word = piece[Math.floor(bit / WORD)]!
      if (bit % WORD === 0 && word === (present ? ALL : 0)) at += WORD
      else if (((word >>> (bit % WORD)) & 1) === (present ? 1 : 0)) at++
      else break
    }
    return { sector, count: Math.min(at, end) - sector, present }
  }

  /** Every run of sectors that are in the set, ascending. */
  *present(): Generator<SectorRun> {
    const indices = [...this.#pieces.keys()].sort((a, b) => a - b)
    let from = 0
    for (const index of indices) {
      const end = (index + 1) * PIECE
      for (let at = Math.max(from, index * PIECE); at < end; ) {
        // A run of them may reach into the pieces that follow; one of those that are not would have no end.
        const run = this.runAt(at, this.#bit(at) ? Number.MAX_SAFE_INTEGER : end)
        if (run.present) yield run
        at += run.count
        from = at
      }
    }
  }

  /** Adds all that `other` has. */
  addAll(other: SectorMap): void {
    for (const [index, words] of other.#pieces) {
      const piece = this.#pieces.get(index) ?? new Uint32Array(PIECE / WORD)
      this.#pieces.set(index, piece)
      for (let i = 0; i < words.length; i++) piece[i]! |= words[i]!
    }
  }

  /** The bitmap, sector 0 in bit 0 of byte 0, but for the pieces of it that are all zero; ascending. */
  pieces(): { readonly offset: number; readonly bytes: Uint8Array }[] {
    const ascending = [...this.#pieces].sort(([a], [b]) => a - b)
    return ascending.map(([index, words]) => {
      return { offset: index * PIECE_BYTES, bytes: new Uint8Array(words.buffer) }
    })
  }

  /** Copies of those pieces that were added to since the last call. */
  takeChanged(): { readonly offset: number; readonly bytes: Uint8Array }[] {
    const changed = [...this.#changed].map(index => {
      return { offset: index * PIECE_BYTES, bytes: new Uint8Array(this.#pieces.get(index)!.slice().buffer) }
    })
    this.#changed.clear()
    return changed
  }

  /** Undoes a `takeChanged` that was of no use. */
  untakeChanged(pieces: readonly { readonly offset: number }[]): void {
    for (const { offset } of pieces) this.#changed.add(offset / PIECE_BYTES)
  }

  /** Takes over what `pieces` gave for one piece. */
  load(offset: number, bytes: Uint8Array): void {
    const words = new Uint32Array(PIECE / WORD)
    new Uint8Array(words.buffer).set(bytes)
    if (words.some(word => word !== 0)) this.#pieces.set(offset / PIECE_BYTES, words)
  }

  #bit(sector: number): boolean {
    const index = Math.floor(sector / PIECE)
    const bit = sector - index * PIECE
    const word = this.#pieces.get(index)?.[Math.floor(bit / WORD)] ?? 0
    return ((word >>> (bit % WORD)) & 1) === 1
  }
}

/** Bytes of the bitmap in one piece. */
export const PIECE_BYTES = PIECE / 8

/** Bits `[first, last)` of a word. */
function mask(first: number, last: number): number {
  return ((ALL >>> (WORD - (last - first))) << first) >>> 0
}
