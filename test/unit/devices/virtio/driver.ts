import type { QueueFeatures, QueueLayout } from '../../../../lib/devices/virtio/queue.js'
import type { GuestMemory } from '../../../../lib/memory/guest-memory.js'

export const MEMORY = 0x10000
export const LAYOUT: QueueLayout = { size: 16, descriptors: 0x1000, driver: 0x2000, device: 0x3000 }

export const NEXT = 1
export const WRITE = 2
export const INDIRECT = 4

/** The driver's side of a queue, as a guest has it, in plain stores (virtio 1.2, 2.7). */
export class Driver {
  readonly #memory: GuestMemory
  readonly #layout: QueueLayout
  readonly #features: QueueFeatures
  #available = 0
  #seen = 0
  /** Chains collected so far. */
  usedCount = 0

  constructor(memory: GuestMemory, layout: QueueLayout, features: QueueFeatures) {
    this.#memory = memory
    this.#layout = layout
    this.#features = features
  }

  /** Begins with both indices at `index`. */
  start(index: number): void {
    this.#available = index
    this.#seen = index
    this.setAvailable(index)
    this.#set16(this.#layout.device + 2, index)
  }

  describe(index: number, address: number, length: number, flags: number, next = 0): void {
    this.table(this.#layout.descriptors + 16 * index, [[address, length, flags, next]])
  }

  table(at: number, descriptors: readonly (readonly [number, number, number, number])[]): void {
    const bytes = new DataView(new ArrayBuffer(16 * descriptors.length))
    for (const [i, [address, length, flags, next]] of descriptors.entries()) {
      bytes.setBigUint64(16 * i, BigInt(address), true)
      bytes.setUint32(16 * i + 8, length, true)
      bytes.setUint16(16 * i + 12, flags, true)
      bytes.setUint16(16 * i + 14, next, true)
    }
    this.#memory.write(at, new Uint8Array(bytes.buffer))
  }

  offer(head: number): void {
    this.#set16(this.#layout.driver + 4 + 2 * (this.#available % this.#layout.size), head)
    this.#available = (this.#available + 1) & 0xffff
    this.setAvailable(this.#available)
  }

  setAvailable(index: number): void {
    this.#set16(this.#layout.driver + 2, index)
  }

  noInterrupt(on: boolean): void {
    this.#set16(this.#layout.driver, on ? 1 : 0)
  }

  /** Asks for an interrupt once `more` than one chain further are used; returns the count at which it is due. */
  wantInterruptAfter(more: number): number {
    this.#set16(this.#layout.driver + 4 + 2 * this.#layout.size, this.#seen + more)
    return this.usedCount + more + 1
  }

  /** Whether the driver has to notify of the chain that it offers next. */
  notifies(): boolean {
    const { device, size } = this.#layout
    if (this.#features.eventIndex) return this.#get16(device + 4 + 8 * size) === this.#available
    return (this.#get16(device) & 1) === 0
  }

  /** What was used since the last time. */
  collect(): { id: number; length: number }[] {
    const { device, size } = this.#layout
    const used = []
    for (; this.#seen !== this.#get16(device + 2); this.#seen = (this.#seen + 1) & 0xffff) {
      const entry = this.#memory.read(device + 4 + 8 * (this.#seen % size), 8)
      const view = new DataView(entry.buffer)
      used.push({ id: view.getUint32(0, true), length: view.getUint32(4, true) })
    }
    this.usedCount += used.length
    return used
  }

  /** Fills descriptors and rings with what a hostile driver may write: much of it nearly right. */
  scramble(seed: number): void {
    let state = seed | 1
    const random = (below: number) => {
      state ^= state << 13
      state ^= state >>> 17
      state ^= state << 5
      return (state >>> 0) % below
    }
    const { size } = this.#layout
    const descriptor = (): [number, number, number, number] => [
      random(8) ? random(MEMORY) : random(2 ** 32) * 2 ** random(21),
      random(16) ? random(64) : random(2 ** 32),
      random(4) ? [0, WRITE, NEXT, NEXT | WRITE][random(4)]! : random(2 ** 16),
      random(16) ? random(size) : random(2 ** 16),
    ]
    const table = (length: number) => Array.from({ length }, descriptor)
    this.table(this.#layout.descriptors, table(size))
    // An indirect table, which some descriptors point to.
    this.table(0xa000, table(8))
    if (random(2)) this.describe(random(size), 0xa000, 16 * random(9), INDIRECT)
    for (let i = 0; i < size; i++)
      this.#set16(this.#layout.driver + 4 + 2 * i, random(8) ? random(size) : random(2 ** 16))
    this.setAvailable(random(16) ? random(size + 1) : random(2 ** 16))
    this.#set16(this.#layout.driver, random(2 ** 16))
    this.#set16(this.#layout.driver + 4 + 2 * size, random(2 ** 16))
  }

  #set16(at: number, value: number): void {
    this.#memory.write(at, Uint8Array.of(value & 0xff, (value >> 8) & 0xff))
  }

  #get16(at: number): number {
    const [low, high] = this.#memory.read(at, 2)
    return low! | (high! << 8)
  }
}
