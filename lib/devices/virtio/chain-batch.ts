import type { GuestMemory } from '../../memory/guest-memory.js'
import type { Chain } from './chain.js'
import { ChainBuffer } from './chain-buffer.js'
import { QueueError } from './queue-error.js'

/** Words of a descriptor, of 32 bits each: the address (low, high), the length, flags and next (virtio 1.2, 2.7.5). */
const DESCRIPTOR = 4
const F_NEXT = 1
const F_WRITE = 2
const F_INDIRECT = 4
/** No chain has more bytes (2.7.5). */
const LENGTH_MAX = 2 ** 32
/** Descriptors of an indirect table: their numbers have 16 bits. */
const TABLE_MAX = 2 ** 16
const NO_ADDRESS = Number.MAX_SAFE_INTEGER

/** Numbers of a run. */
const RUN = 3
/** Chains and runs that there is room for at first. */
const ROOM = 64

/**
 * Chains that were taken from a queue and are not given back yet, in order. They lie flat in a few arrays, as a system call for many of them
 * wants it, and there is nothing to make for each: a network card has hundreds of thousands a second.
 */
export class ChainBatch {
  readonly memory: GuestMemory
  /** How many there are. */
  count = 0
  /** Of each chain: the first descriptor, by which it is given back. */
  heads = new Uint16Array(ROOM)
  /** Of each chain: bytes that the device is to read. */
  readableLengths = new Float64Array(ROOM)
  /** Of each chain: bytes that the device may write. */
  writableLengths = new Float64Array(ROOM)
  /** Of each chain: how many runs it has, those to read first. */
  counts = new Uint32Array(ROOM)
  /** Of each chain: how many of its runs are to be read. */
  readableCounts = new Uint32Array(ROOM)
  /** The runs of all chains, three numbers each: which of the memory's views it is in, its offset there, its length. */
  runs = new Float64Array(RUN * ROOM)
  #runCount = 0
  readonly #runsMax: number
  /** The view that the last buffer was in, its address and its size. */
  #view = 0
  #start = 0
  #size = 0

  /** @param runsMax of a chain with more runs than this, one more is kept and the rest forgotten: there may be as many as the guest likes */
  constructor(memory: GuestMemory, runsMax = Number.POSITIVE_INFINITY) {
    this.memory = memory
    this.#runsMax = runsMax
  }

  /**
   * Follows a chain from `head` on (virtio 1.2, 2.7.5) and adds it; never more steps than its table has descriptors, so a loop ends. Gives how many
   * steps it took. `table` is the guest's: each of its words is read once.
   * @throws {QueueError} the driver broke the rules: the batch is of no use any more
   */
  add(table: Uint32Array, head: number, indirect: boolean): number {
    const chain = this.count
    if (chain === this.heads.length) this.#growChains()
    const firstRun = this.#runCount
    let descriptors = table
    let size = table.length / DESCRIPTOR
    let index = head
    let readable = 0
    let writable = 0
    let readableRuns = 0
    for (let steps = 0; ; steps++) {
      if (index >= size) throw new QueueError(`descriptor ${index} of a table of ${size}`)
      if (steps >= size) throw new QueueError('a chain that is longer than its table, or a loop')
      const at = DESCRIPTOR * index
      const low = descriptors[at]!
      const high = descriptors[at + 1]!
      const length = descriptors[at + 2]!
      const last = descriptors[at + 3]!
      // Beyond this there is no memory, and numbers are not exact.
      const address = high < 2 ** 21 ? high * 2 ** 32 + low : NO_ADDRESS
      if (last & F_INDIRECT) {
        if (!indirect) throw new QueueError('an indirect descriptor, which was not negotiated')
        if (descriptors !== table) throw new QueueError('an indirect descriptor in an indirect table')
        if (last & F_NEXT) throw new QueueError('an indirect descriptor that goes on')
        descriptors = this.#indirectTable(address, length)
        size = descriptors.length / DESCRIPTOR
        index = 0
        // What came before it counts for the chain, but not for this table.
        steps = -1
        continue
      }
      if (length === 0) throw new QueueError('a buffer without bytes')
      if (readable + writable + length > LENGTH_MAX) throw new QueueError('a chain of more than 2^32 bytes')
      const offset = address - this.#start
      if (offset < 0 || offset + length > this.#size) {
        this.#addFarRuns(firstRun, address, length)
      } else {
        const run = this.#runCount
        if (RUN * run === this.runs.length) this.#growRuns()
        if (run - firstRun <= this.#runsMax) {
          const { runs } = this
          runs[RUN * run] = this.#view
          runs[RUN * run + 1] = offset
          runs[RUN * run + 2] = length
          this.#runCount = run + 1
        }
      }
      if (last & F_WRITE) {
        writable += length
      } else {
        if (writable > 0) throw new QueueError('a readable buffer behind a writable one')
        readable += length
        readableRuns = this.#runCount - firstRun
      }
      if ((last & F_NEXT) === 0) {
        this.heads[chain] = head
        this.readableLengths[chain] = readable
        this.writableLengths[chain] = writable
        this.counts[chain] = this.#runCount - firstRun
        this.readableCounts[chain] = readableRuns
        this.count = chain + 1
        return steps + 1
      }
      index = last >>> 16
    }
  }

  /** Takes all runs from a chain. */
  blank(chain: number): void {
    const from = this.#firstRunOf(chain)
    const count = this.counts[chain]!
    this.runs.copyWithin(RUN * from, RUN * (from + count), RUN * this.#runCount)
    this.#runCount -= count
    this.counts[chain] = 0
    this.readableCounts[chain] = 0
  }

  /** Takes away the first `count` chains, which have so many runs together. */
  shift(count: number, runs: number): void {
    const left = this.count - count
    if (left === 0) {
      this.clear()
      return
    }
    this.heads.copyWithin(0, count, this.count)
    this.readableLengths.copyWithin(0, count, this.count)
    this.writableLengths.copyWithin(0, count, this.count)
    this.counts.copyWithin(0, count, this.count)
    this.readableCounts.copyWithin(0, count, this.count)
    this.runs.copyWithin(0, RUN * runs, RUN * this.#runCount)
    this.#runCount -= runs
    this.count = left
  }

  clear(): void {
    this.count = 0
    this.#runCount = 0
    // Memory may have been closed since.
    this.#size = 0
  }

  /** The buffers of a chain, those to read first: views, not copies. */
  partsOf(chain: number): Uint8Array[] {
    const first = this.#firstRunOf(chain)
    return Array.from({ length: this.counts[chain]! }, (_, i) => {
      const at = RUN * (first + i)
      const offset = this.runs[at + 1]!
      return this.memory.views[this.runs[at]!]!.subarray(offset, offset + this.runs[at + 2]!)
    })
  }

  /** A chain by itself. */
  chain(index: number): Chain {
    const readable: ChainBuffer[] = []
    const writable: ChainBuffer[] = []
    const first = this.#firstRunOf(index)
    for (let i = 0; i < this.counts[index]!; i++) {
      const at = RUN * (first + i)
      const view = this.runs[at]!
      const offset = this.runs[at + 1]!
      const address = this.memory.viewStarts[view]! + offset
      const buffer = new ChainBuffer(address, this.memory.views[view]!, offset, this.runs[at + 2]!)
      if (i < this.readableCounts[index]!) readable.push(buffer)
      else writable.push(buffer)
    }
    return {
      head: this.heads[index]!,
      readable,
      writable,
      readableLength: this.readableLengths[index]!,
      writableLength: this.writableLengths[index]!,
    }
  }

  /** Tells the memory that the first `count` chains were written to, so many bytes from their first writable one on. */
  markWritten(written: ArrayLike<number>, count: number): void {
    for (let chain = 0, run = 0; chain < count; chain++) {
      let left = written[chain]!
      const end = run + this.counts[chain]!
      for (run += this.readableCounts[chain]!; run < end; run++) {
        const at = RUN * run
        const length = Math.min(left, this.runs[at + 2]!)
        if (length > 0) this.memory.markWritten(this.memory.viewStarts[this.runs[at]!]! + this.runs[at + 1]!, length)
        left -= length
      }
    }
  }

  /** Where the buffer is not in the view of the one before, or lies across two. */
  #addFarRuns(first: number, address: number, length: number): void {
    for (let at = address; at < address + length; ) {
      this.#view = this.memory.viewAt(at)
      const view = this.memory.views[this.#view]
      if (!view) throw new QueueError(`a buffer outside memory: 0x${address.toString(16)}+0x${length.toString(16)}`)
      this.#start = this.memory.viewStarts[this.#view]!
      this.#size = view.length
      const offset = at - this.#start
      const count = Math.min(address + length - at, this.#size - offset)
      if (this.#runCount - first <= this.#runsMax) {
        if (RUN * this.#runCount === this.runs.length) this.#growRuns()
        this.runs.set([this.#view, offset, count], RUN * this.#runCount++)
      }
      at += count
    }
  }

  #firstRunOf(chain: number): number {
    let run = 0
    for (let i = 0; i < chain; i++) run += this.counts[i]!
    return run
  }

  #growRuns(): void {
    this.runs = grown(this.runs, Float64Array)
  }

  #growChains(): void {
    this.heads = grown(this.heads, Uint16Array)
    this.readableLengths = grown(this.readableLengths, Float64Array)
    this.writableLengths = grown(this.writableLengths, Float64Array)
    this.counts = grown(this.counts, Uint32Array)
    this.readableCounts = grown(this.readableCounts, Uint32Array)
  }

  #indirectTable(address: number, length: number): Uint32Array {
    const bytes = 4 * DESCRIPTOR
    if (length === 0 || length % bytes !== 0 || length > bytes * TABLE_MAX) {
      throw new QueueError(`an indirect table of ${length} bytes`)
    }
    if (!this.memory.contains(address, length)) {
      throw new QueueError(`an indirect table outside memory: 0x${address.toString(16)}+0x${length.toString(16)}`)
    }
    const index = this.memory.viewAt(address)
    const view = this.memory.views[index]
    const offset = address - (this.memory.viewStarts[index] ?? 0)
    if (view && (view.byteOffset + offset) % 4 === 0 && offset + length <= view.length) {
      return new Uint32Array(view.buffer, view.byteOffset + offset, length / 4)
    }
    return new Uint32Array(this.memory.read(address, length).buffer)
  }
}

function grown<T extends Uint16Array | Uint32Array | Float64Array>(array: T, kind: new (length: number) => T): T {
  const larger = new kind(2 * array.length)
  larger.set(array)
  return larger
}
