/** A piece of guest-physical memory and the bytes behind it. */
export interface MemoryRegion {
  /** Guest-physical address of the first byte. */
  readonly guestAddress: number
  /** Bytes. */
  readonly size: number
  /** Views over the memory, in order, each at most `CHUNK_SIZE` bytes. */
  readonly chunks: readonly Uint8Array[]
  /** Takes note that `[offset, offset + length)` was written by the host. */
  markWritten?(offset: number, length: number): void
  /** Where false, nobody wants to know of that now. */
  readonly logsDirty?: boolean
}

/** A view is at most this long: `fs.read` and older V8s take no more at once. */
export const CHUNK_SIZE = 2 ** 31

/** An access outside guest memory. What the guest asks for is hostile: callers expect this. */
export class GuestAddressError extends RangeError {
  override readonly name = 'GuestAddressError'
}

/**
 * Guest-physical memory: bounds-checked access over regions that need not be contiguous.
 *
 * Addresses and sizes are bytes, as numbers: guest-physical addresses here stay below 2^53.
 */
export class GuestMemory {
  readonly regions: readonly MemoryRegion[]
  /** All views over all regions, by address. */
  readonly views: readonly Uint8Array[]
  /** Guest-physical address of the first byte of each. */
  readonly viewStarts: readonly number[]

  constructor(regions: readonly MemoryRegion[]) {
    this.regions = [...regions].sort((a, b) => a.guestAddress - b.guestAddress)
    for (let i = 1; i < this.regions.length; i++) {
      const before = this.regions[i - 1]!
      if (before.guestAddress + before.size > this.regions[i]!.guestAddress) {
        throw new RangeError(`memory regions overlap at ${hex(this.regions[i]!.guestAddress)}`)
      }
    }
    this.views = this.regions.flatMap(({ chunks }) => chunks)
    this.viewStarts = this.regions.flatMap(({ guestAddress, chunks }) => {
      let at = guestAddress
      return chunks.map(({ length }) => {
        at += length
        return at - length
      })
    })
  }

  /** Bytes in all regions together. */
  get size(): number {
    return this.regions.reduce((sum, region) => sum + region.size, 0)
  }

  /** One past the highest guest-physical address. */
  get end(): number {
    const last = this.regions.at(-1)
    return last ? last.guestAddress + last.size : 0
  }

  /** Whether `[address, address + length)` lies in memory, regions that touch counting as one. */
  contains(address: number, length: number): boolean {
    if (!Number.isSafeInteger(address) || !Number.isSafeInteger(length) || address < 0 || length < 0) return false
    const end = address + length
    let at = address
    for (const { guestAddress, size } of this.regions) {
      if (at < guestAddress) break
      if (at > guestAddress + size) continue
      at = Math.max(at, guestAddress + size)
      if (at >= end) return true
    }
    return false
  }

  /**
   * A view, not a copy, of `length` bytes; whoever writes through it tells so (`markWritten`). Throws `GuestAddressError` where they are not all memory, or
   * where they cross from one view to another (use `read` there).
   */
  view(address: number, length: number): Uint8Array {
    this.#check(address, length)
    if (length === 0) return new Uint8Array()
    const part = this.#partAt(address, length)
    if (part.length < length) {
      throw new GuestAddressError(`${hex(address)}+${hex(length)}: crosses a boundary between memory views`)
    }
    return part
  }

  /** A copy of `length` bytes. */
  read(address: number, length: number): Uint8Array {
    // Checked before anything is allocated: the length may be the guest's.
    this.#check(address, length)
    const bytes = new Uint8Array(length)
    this.#each(address, length, (part, at) => bytes.set(part, at))
    return bytes
  }

  /** Writes `bytes` at `address`. */
  write(address: number, bytes: Uint8Array): void {
    this.#each(address, bytes.length, (part, at) => part.set(bytes.subarray(at, at + part.length)))
    this.markWritten(address, bytes.length)
  }

  /** Sets `length` bytes to `value`. */
  fill(address: number, length: number, value = 0): void {
    this.#each(address, length, part => part.fill(value))
    this.markWritten(address, length)
  }

  /**
   * Tells that `[address, address + length)` was written through `view` or `parts`: what nobody tells is missing in
   * differential snapshots and rollbacks. `write` and `fill` tell by themselves.
   */
  markWritten(address: number, length: number): void {
    if (this.logsDirty) this.#markWritten(address, length)
  }

  #markWritten(address: number, length: number): void {
    for (const region of this.regions) {
      const from = Math.max(address, region.guestAddress)
      const to = Math.min(address + length, region.guestAddress + region.size)
      if (from < to) region.markWritten?.(from - region.guestAddress, to - from)
    }
  }

  /** Whether anybody wants to know of what is written. */
  get logsDirty(): boolean {
    for (let i = 0; i < this.regions.length; i++) {
      const region = this.regions[i]!
      if (region.markWritten && region.logsDirty !== false) return true
    }
    return false
  }

  /** Index of the view that has this address; -1 where none has it. The views of a region that was closed have no bytes. */
  viewAt(address: number): number {
    for (let i = 0; i < this.views.length; i++) {
      const offset = address - this.viewStarts[i]!
      if (offset >= 0 && offset < this.views[i]!.length) return i
    }
    return -1
  }

  /**
   * The parts of memory behind `[address, address + length)`, in order: for scatter-gather I/O straight on memory. What is written
   * there is to be told (`markWritten`).
   */
  parts(address: number, length: number): Uint8Array[] {
    const parts: Uint8Array[] = []
    this.#each(address, length, part => parts.push(part))
    return parts
  }

  #check(address: number, length: number): void {
    if (!this.contains(address, length)) {
      throw new GuestAddressError(`${hex(address)}+${hex(length)}: not in guest memory`)
    }
  }

  #each(address: number, length: number, visit: (part: Uint8Array, at: number) => void): void {
    this.#check(address, length)
    for (let at = 0; at < length; ) {
      const part = this.#partAt(address + at, length - at)
      visit(part, at)
      at += part.length
    }
  }

  /** From `address` on, up to `length` bytes, as far as one view has them. There is none where a region was closed and its views are detached. */
  #partAt(address: number, length: number): Uint8Array {
    const index = this.viewAt(address)
    const view = this.views[index]
    if (!view) throw new GuestAddressError(`${hex(address)}: this memory has been closed`)
    const offset = address - this.viewStarts[index]!
    return view.subarray(offset, offset + length)
  }
}

function hex(n: number): string {
  return Number.isFinite(n) ? `0x${n.toString(16)}` : String(n)
}
