import { ByteQueue } from '../byte-queue.js'
import { type Json, savedBytes, savedIntegers } from '../device.js'
import { readFrom } from './buffers.js'
import type { VirtioLink } from './device.js'
import type { Queue } from './queue.js'
import { QueueError } from './queue-error.js'
import { TurnBasedDevice } from './turn-based.js'

const F_SIZE = 1n << 0n
const QUEUE_SIZE = 64
const RECEIVE = 0
const TRANSMIT = 1

/** Above this much waiting input, `input` asks its caller to hold back. */
const INPUT_HIGH_WATER = 0x1_0000
/** Bytes handed over at once: a buffer may have 4 GiB. */
const OUTPUT_MAX = 0x1_0000

const SAVED_LIMITS = { columns: 0xffff, rows: 0xffff, sent: 2 ** 32, talking: 1 }

export interface VirtioConsoleOptions {
  /** Takes what the guest wrote; the bytes are the callee's. False: no more, until `goOn` is called. */
  readonly output: (bytes: Uint8Array) => boolean
  /** Called once all input is in the guest's hands, after `input` has returned false. */
  readonly drain?: () => void
}

/** The console device with its one port (virtio 1.2, 5.3): hvc0 in Linux. */
export class VirtioConsole extends TurnBasedDevice {
  readonly type = 3
  readonly features = F_SIZE
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE]
  readonly #options: VirtioConsoleOptions
  readonly #waiting = new ByteQueue()
  #held = false
  /** `output` wants no more. */
  #full = false
  /** Bytes of the next chain that were handed over already. */
  #sent = 0
  #columns = 0
  #rows = 0
  /** The driver has written something since it started the device. */
  #talking = false

  constructor(options: VirtioConsoleOptions) {
    super()
    this.#options = options
  }

  /** cols, rows, max_nr_ports, emerg_wr (5.3.4) */
  get config(): Uint8Array {
    const view = new DataView(new ArrayBuffer(12))
    view.setUint16(0, this.#columns, true)
    view.setUint16(2, this.#rows, true)
    view.setUint32(4, 1, true)
    return new Uint8Array(view.buffer)
  }

  /**
   * Gives the guest something to read. Everything is taken; false means that much is waiting now, and that the caller should hold back
   * until `drain` is called.
   */
  input(bytes: Uint8Array): boolean {
    this.#waiting.push(bytes)
    this.work()
    if (this.#waiting.length > INPUT_HIGH_WATER) this.#held = true
    return !this.#held
  }

  /** The guest may write again, after `output` returned false. */
  goOn(): void {
    if (!this.#full) return
    this.#full = false
    this.work()
  }

  /** The terminal has this many columns and rows; 0 where nobody knows. */
  resize(columns: number, rows: number): void {
    if (columns === this.#columns && rows === this.#rows) return
    this.#columns = columns & 0xffff
    this.#rows = rows & 0xffff
    if (this.#talking) this.link?.configChanged()
  }

  override reset(): void {
    super.reset()
    this.#sent = 0
    this.#talking = false
  }

  saveState(): Json {
    return {
      columns: this.#columns,
      rows: this.#rows,
      sent: this.#sent,
      talking: Number(this.#talking),
      waiting: this.#waiting.toArray(),
    }
  }

  loadState(state: Json): void {
    const { columns, rows, sent, talking } = savedIntegers(state, SAVED_LIMITS)
    const waiting = savedBytes(state, 'waiting', Number.MAX_SAFE_INTEGER)
    this.#columns = columns
    this.#rows = rows
    this.#sent = sent
    this.#talking = talking === 1
    this.#waiting.clear()
    this.#waiting.push(Uint8Array.from(waiting))
  }

  protected step({ queues }: VirtioLink): boolean {
    const sent = this.#transmit(queues[TRANSMIT])
    if (sent) this.#tellSize()
    return this.#receive(queues[RECEIVE]) || sent
  }

  /**
   * Linux asks for the size when it is told that it changed, and only then; before its port is there, which the first text shows, it
   * would not find that (drivers/char/virtio_console.c, config_work_handler).
   */
  #tellSize(): void {
    if (this.#talking) return
    this.#talking = true
    if (this.#columns > 0 || this.#rows > 0) this.link?.configChanged()
  }

  #receive(queue: Queue | undefined): boolean {
    if (!queue || this.#waiting.length === 0) return false
    const chain = this.take(queue)
    if (!chain) return false
    if (chain.readable.length > 0) throw new QueueError('a readable buffer to receive into')
    let written = 0
    for (const { bytes } of chain.writable) {
      written += this.#waiting.take(bytes)
      if (this.#waiting.length === 0) break
    }
    this.give(queue, chain, written)
    if (this.#waiting.length > 0) return true
    const held = this.#held
    this.#held = false
    if (held) this.#options.drain?.()
    return this.#waiting.length > 0
  }

  #transmit(queue: Queue | undefined): boolean {
    if (!queue || this.#full) return false
    const chain = this.take(queue)
    if (!chain) return false
    if (chain.writable.length > 0) throw new QueueError('a writable buffer to transmit from')
    const left = Math.max(0, chain.readableLength - this.#sent)
    const bytes = readFrom(chain, this.#sent, Math.min(left, OUTPUT_MAX))
    if (bytes.length < left) {
      this.#sent += bytes.length
      queue.unpop()
    } else {
      this.#sent = 0
      this.give(queue, chain, 0)
    }
    this.#full = !this.#options.output(bytes)
    return !this.#full
  }
}
