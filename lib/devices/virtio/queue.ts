import { GuestAddressError, type GuestMemory } from '../../memory/guest-memory.js'
import type { Chain } from './chain.js'
import { ChainBatch } from './chain-batch.js'
import { QueueError } from './queue-error.js'

/** Where a queue lies, as the driver told the transport (virtio 1.2, 2.7). Addresses are guest-physical. */
export interface QueueLayout {
  /** Entries: a power of two up to 32768. */
  readonly size: number
  /** The descriptor table: 16 bytes an entry, aligned to 16. */
  readonly descriptors: number
  /** The driver area, or available ring: aligned to 2. */
  readonly driver: number
  /** The device area, or used ring: aligned to 4. */
  readonly device: number
}

/** What was negotiated that changes how a queue works. */
export interface QueueFeatures {
  /** VIRTIO_F_EVENT_IDX: each side tells the other from which index on it wants to be notified (2.7.7, 2.7.10). */
  readonly eventIndex: boolean
  /** VIRTIO_F_INDIRECT_DESC: a descriptor may stand for a table of descriptors (2.7.5.3). */
  readonly indirect: boolean
}

/** How far a queue has come. */
export interface QueueState {
  /** The next entry of the available ring to take, modulo 2^16. */
  readonly nextAvailable: number
  /** The next entry of the used ring to fill, modulo 2^16. */
  readonly nextUsed: number
}

export const QUEUE_SIZE_MAX = 32768

const AVAIL_F_NO_INTERRUPT = 1
const USED_F_NO_NOTIFY = 1
const USED_ENTRY = 8
/** Descriptors after which no further chain is taken at once: a chain may have as many as the guest likes. */
const STEPS_MAX = 4096

/**
 * The device's side of a split virtqueue (virtio 1.2, 2.7). What lies in its memory is the guest's, and may change at any time: each
 * value is read once, and checked before it is used.
 *
 * The rings' indices are read and written by `Atomics`: other processors look at them, and between a store of one index and a load
 * of another a fence is needed (2.7.7.1, 2.7.10.1).
 */
export class Queue {
  readonly size: number
  readonly #memory: GuestMemory
  readonly #layout: QueueLayout
  readonly #features: QueueFeatures
  readonly #descriptors: Uint32Array
  /** flags, idx, ring, used_event */
  readonly #available: Uint16Array
  /** flags, idx, and two words an entry that `#usedEntries` has; at the end avail_event. */
  readonly #used: Uint16Array
  readonly #usedEntries: Uint32Array
  #nextAvailable = 0
  #nextUsed = 0
  /** For the chain that is taken by itself. */
  readonly #one: ChainBatch
  /** `#nextUsed` when the driver was last told, or decided not to be. */
  #toldUsed = 0

  /** @throws {QueueError} it does not lie in memory as it must */
  constructor(memory: GuestMemory, layout: QueueLayout, features: QueueFeatures) {
    const { size, descriptors, driver, device } = layout
    if (!Number.isInteger(size) || size < 1 || size > QUEUE_SIZE_MAX || (size & (size - 1)) !== 0) {
      throw new QueueError(`a queue of ${size} entries`)
    }
    this.size = size
    this.#memory = memory
    this.#layout = layout
    this.#features = features
    const table = area(memory, 'descriptor table', descriptors, 16 * size, 16)
    this.#descriptors = new Uint32Array(table.buffer, table.byteOffset, 4 * size)
    // With or without the event index its word is there (2.7.6, 2.7.8).
    const available = area(memory, 'driver area', driver, 6 + 2 * size, 2)
    this.#available = new Uint16Array(available.buffer, available.byteOffset, 3 + size)
    const used = area(memory, 'device area', device, 6 + USED_ENTRY * size, 4)
    this.#used = new Uint16Array(used.buffer, used.byteOffset, 3 + (USED_ENTRY / 2) * size)
    this.#usedEntries = new Uint32Array(used.buffer, used.byteOffset + 4, (USED_ENTRY / 4) * size)
    this.#one = new ChainBatch(memory)
  }

  /**
   * Takes the next chain that the driver made available; undefined where there is none.
   * @throws {QueueError} the driver broke the rules: the device needs a reset
   */
  pop(): Chain | undefined {
    this.#one.clear()
    return this.take(this.#one, 1) > 0 ? this.#one.chain(0) : undefined
  }

  /** An empty batch for chains of this queue; for what `runsMax` is, see there. */
  batch(runsMax: number): ChainBatch {
    return new ChainBatch(this.#memory, runsMax)
  }

  /**
   * Takes chains that the driver made available and adds them to `batch`, until it has `want`, there are no more, or they have very many
   * descriptors. Gives how many it took.
   * @throws {QueueError} the driver broke the rules: the device needs a reset
   */
  take(batch: ChainBatch, want: number): number {
    const count = Math.min(this.#waiting(), want - batch.count)
    const { indirect } = this.#features
    let taken = 0
    for (let steps = 0; taken < count && steps < STEPS_MAX; taken++) {
      const head = this.#available[2 + (this.#nextAvailable & (this.size - 1))]!
      this.#nextAvailable = (this.#nextAvailable + 1) & 0xffff
      steps += batch.add(this.#descriptors, head, indirect)
    }
    return taken
  }

  /** Gives a chain back, with how many bytes were written to its buffers from the first on (2.7.8), of which it takes note. */
  push(chain: Chain, written: number): void {
    let left = written
    for (const { address, length } of chain.writable) {
      if (left <= 0) break
      this.#memory.markWritten(address, Math.min(left, length))
      left -= length
    }
    const entry = 2 * (this.#nextUsed & (this.size - 1))
    this.#usedEntries[entry] = chain.head
    this.#usedEntries[entry + 1] = written
    this.#markEntry(this.#nextUsed)
    this.#nextUsed = (this.#nextUsed + 1) & 0xffff
    this.#flush()
  }

  /** Gives the first `count` chains of a batch back, which has them no more: the driver sees none of them before all are there. */
  give(batch: ChainBatch, written: ArrayLike<number>, count: number): void {
    if (count === 0) return
    const entries = this.#usedEntries
    const { heads, counts } = batch
    const mask = this.size - 1
    const first = this.#nextUsed
    let runs = 0
    for (let i = 0; i < count; i++) {
      const entry = 2 * ((first + i) & mask)
      entries[entry] = heads[i]!
      entries[entry + 1] = written[i]!
      runs += counts[i]!
    }
    this.#nextUsed = (first + count) & 0xffff
    if (this.#memory.logsDirty) {
      batch.markWritten(written, count)
      for (let i = 0; i < count; i++) this.#markEntry(first + i)
    }
    batch.shift(count, runs)
    this.#flush()
  }

  /** Leaves the last `count` chains that were taken available, as if they had not been. */
  unpop(count = 1): void {
    this.#nextAvailable = (this.#nextAvailable - count) & 0xffff
  }

  /** Whether the driver wants an interrupt for what was given since this was last asked (2.7.7.2, 2.7.10). */
  needsInterrupt(): boolean {
    const [told, now] = [this.#toldUsed, this.#nextUsed]
    if (told === now) return false
    this.#toldUsed = now
    if (!this.#features.eventIndex) return (Atomics.load(this.#available, 0) & AVAIL_F_NO_INTERRUPT) === 0
    const event = Atomics.load(this.#available, 2 + this.size)
    return ((now - event - 1) & 0xffff) < ((now - told) & 0xffff)
  }

  /** Tells the driver that it need not notify: the queue is being worked on (2.7.10). */
  disableNotifications(): void {
    // With the event index, one that stands behind does that.
    if (!this.#features.eventIndex) this.#tell(0, USED_F_NO_NOTIFY)
  }

  /** Asks the driver to notify of what it makes available from now on. True where something is there already. */
  enableNotifications(): boolean {
    if (this.#features.eventIndex) this.#tell(2 + (USED_ENTRY / 2) * this.size, this.#nextAvailable)
    else this.#tell(0, 0)
    return this.#waiting() > 0
  }

  /** How many chains the driver made available that were not taken yet. More than `size` where it breaks the rules. */
  get waiting(): number {
    return (Atomics.load(this.#available, 1) - this.#nextAvailable) & 0xffff
  }

  get state(): QueueState {
    return { nextAvailable: this.#nextAvailable, nextUsed: this.#nextUsed }
  }

  /** Goes on from a saved state. The driver may get an interrupt too many, but none too few. */
  set state({ nextAvailable, nextUsed }: QueueState) {
    this.#nextAvailable = nextAvailable & 0xffff
    this.#nextUsed = nextUsed & 0xffff
    this.#toldUsed = this.#nextUsed
  }

  #markEntry(index: number): void {
    this.#memory.markWritten(this.#layout.device + 4 + USED_ENTRY * (index & (this.size - 1)), USED_ENTRY)
  }

  /** The entries are there before the index says so. */
  #flush(): void {
    Atomics.store(this.#used, 1, this.#nextUsed)
    this.#memory.markWritten(this.#layout.device, 4)
  }

  #waiting(): number {
    const { waiting } = this
    if (waiting > this.size) throw new QueueError(`${waiting} chains available in a queue of ${this.size}`)
    return waiting
  }

  /** Writes a word of the device area. */
  #tell(word: number, value: number): void {
    if (this.#used[word] !== value) this.#memory.markWritten(this.#layout.device + 2 * word, 2)
    // Also where it stands already, for the fence.
    Atomics.store(this.#used, word, value)
  }
}

function area(memory: GuestMemory, name: string, address: number, length: number, alignment: number): Uint8Array {
  if (address % alignment !== 0) throw new QueueError(`the ${name} at 0x${address.toString(16)} is not aligned`)
  try {
    return memory.view(address, length)
  } catch (error) {
    if (error instanceof GuestAddressError) throw new QueueError(`the ${name}: ${error.message}`)
    throw error
  }
}
