import { ByteQueue } from './byte-queue.js'
import { eachByte, type InterruptLine, type Json, type StatefulDevice, savedBytes, savedIntegers } from './device.js'

// Registers, by offset (National Semiconductor PC16550D data sheet, table II)
const RBR_THR = 0
const IER = 1
const IIR_FCR = 2
const LCR = 3
const MCR = 4
const LSR = 5
const MSR = 6
const SCR = 7

const IER_RX_AVAILABLE = 0x01
const IER_TX_EMPTY = 0x02
const IER_LINE_STATUS = 0x04
const IER_MODEM_STATUS = 0x08
const IER_MASK = 0x0f

const IIR_NONE = 0x01
const IIR_MODEM_STATUS = 0x00
const IIR_TX_EMPTY = 0x02
const IIR_RX_AVAILABLE = 0x04
const IIR_LINE_STATUS = 0x06
const IIR_RX_TIMEOUT = 0x0c
const IIR_FIFOS_ENABLED = 0xc0

const FCR_ENABLE = 0x01
const FCR_CLEAR_RX = 0x02
const FCR_TRIGGER_SHIFT = 6
const FCR_KEPT = 0xc9
const TRIGGER_LEVELS = [1, 4, 8, 14] as const

const LCR_DLAB = 0x80

const MCR_DTR = 0x01
const MCR_RTS = 0x02
const MCR_OUT1 = 0x04
const MCR_OUT2 = 0x08
const MCR_LOOP = 0x10
const MCR_MASK = 0x1f

const LSR_DATA_READY = 0x01
const LSR_OVERRUN = 0x02
const LSR_TX_EMPTY = 0x60

const MSR_CTS = 0x10
const MSR_DSR = 0x20
const MSR_RI = 0x40
const MSR_DCD = 0x80

const FIFO_SIZE = 16
/** Above this much waiting input, `input` asks its caller to hold back. */
const INPUT_HIGH_WATER = 0x1_0000
const OUTPUT_BUFFER_SIZE = 0x1000

/** What the saved registers are at most. */
const SAVED_LIMITS = {
  ...{ ier: 0xf, fcr: 0xff, lcr: 0xff, mcr: 0x1f, scr: 0xff, divisor: 0xffff, overrun: 1, msrDelta: 0xf },
  thrEmptyPending: 1,
}

export interface Uart16550Options {
  /** Its interrupt line: IRQ 4 for COM1. */
  readonly interrupt: InterruptLine
  /** Takes what the guest wrote, in batches. The bytes are the callee's. */
  readonly output: (bytes: Uint8Array) => void
  /** Called once all input is in the guest's hands, after `input` has returned false. */
  readonly drain?: () => void
  /** When to hand over a batch that has begun; by default, after the events at hand. `flush()` does it at once. */
  readonly schedule?: (flush: () => void) => void
}

/**
 * A 16550A UART whose line is infinitely fast: what is written has been sent, what arrives waits until it is read.
 *
 * Its interrupts are level-triggered inwards and make an edge for every new cause, as the PC's IRQ 4 needs.
 */
export class Uart16550 implements StatefulDevice {
  readonly #interrupt: InterruptLine
  readonly #output: (bytes: Uint8Array) => void
  readonly #drain: (() => void) | undefined
  readonly #schedule: (flush: () => void) => void
  readonly #scheduledFlush = () => {
    this.#flushPending = false
    this.flush()
  }

  #ier = 0
  #fcr = 0
  #lcr = 0
  #mcr = 0
  #scr = 0
  #divisor = 12
  #overrun = false
  /** What changed on the modem's lines since MSR was last read: its low four bits. */
  #msrDelta = 0
  /** THR became empty, and IIR has not told so yet. */
  #thrEmptyPending = false
  #fifo: number[] = []
  #waiting = new ByteQueue()
  #held = false
  #level = false

  #batch = new Uint8Array(OUTPUT_BUFFER_SIZE)
  #batchLength = 0
  #flushPending = false

  constructor(options: Uart16550Options) {
    this.#interrupt = options.interrupt
    this.#output = options.output
    this.#drain = options.drain
    this.#schedule = options.schedule ?? setImmediate
  }

  /**
   * Gives the guest something to read. Everything is taken; false means that much is waiting now, and that the caller should hold back
   * until `drain` is called.
   */
  input(bytes: Uint8Array): boolean {
    this.#waiting.push(bytes)
    this.#refill()
    this.#updateInterrupt()
    if (this.#waiting.length > INPUT_HIGH_WATER) this.#held = true
    return !this.#held
  }

  /** Hands over what the guest wrote and what `output` has not had yet. */
  flush(): void {
    if (this.#batchLength === 0) return
    const bytes = this.#batch.slice(0, this.#batchLength)
    this.#batchLength = 0
    this.#output(bytes)
  }

  read(offset: number, data: Uint8Array): void {
    eachByte(offset, data, register => this.#readRegister(register))
  }

  write(offset: number, data: Uint8Array): void {
    for (let i = 0; i < data.length; i++) this.#writeRegister(offset + i, data[i]!)
  }

  /** The registers as after a Master Reset (data sheet, table III). What waits on the line waits for whoever comes next. */
  reset(): void {
    this.flush()
    this.#ier = 0
    this.#fcr = 0
    this.#lcr = 0
    this.#mcr = 0
    this.#scr = 0
    this.#divisor = 12
    this.#overrun = false
    this.#msrDelta = 0
    this.#thrEmptyPending = false
    this.#fifo = []
    this.#refill()
    this.#updateInterrupt()
  }

  saveState(): Json {
    return {
      ier: this.#ier,
      fcr: this.#fcr,
      lcr: this.#lcr,
      mcr: this.#mcr,
      scr: this.#scr,
      divisor: this.#divisor,
      overrun: Number(this.#overrun),
      msrDelta: this.#msrDelta,
      thrEmptyPending: Number(this.#thrEmptyPending),
      fifo: [...this.#fifo],
      waiting: this.#waiting.toArray(),
    }
  }

  loadState(state: Json): void {
    const saved = savedIntegers(state, SAVED_LIMITS)
    const fifo = savedBytes(state, 'fifo', FIFO_SIZE)
    const waiting = savedBytes(state, 'waiting', Number.MAX_SAFE_INTEGER)
    this.#ier = saved.ier
    this.#fcr = saved.fcr
    this.#lcr = saved.lcr
    this.#mcr = saved.mcr
    this.#scr = saved.scr
    this.#divisor = saved.divisor
    this.#overrun = saved.overrun === 1
    this.#msrDelta = saved.msrDelta
    this.#thrEmptyPending = saved.thrEmptyPending === 1
    this.#fifo = [...fifo]
    this.#waiting.clear()
    if (waiting.length > 0) this.#waiting.push(Uint8Array.from(waiting))
    this.#updateInterrupt()
  }

  #readRegister(register: number): number {
    const dlab = this.#lcr & LCR_DLAB
    switch (register) {
      case RBR_THR:
        return dlab ? this.#divisor & 0xff : this.#receive()
      case IER:
        return dlab ? this.#divisor >> 8 : this.#ier
      case IIR_FCR:
        return this.#readIir()
      case LCR:
        return this.#lcr
      case MCR:
        return this.#mcr
      case LSR:
        return this.#readLsr()
      case MSR:
        return this.#readMsr()
      case SCR:
        return this.#scr
      default:
        return 0xff
    }
  }

  #writeRegister(register: number, value: number): void {
    const dlab = this.#lcr & LCR_DLAB
    switch (register) {
      case RBR_THR:
        if (dlab) this.#divisor = (this.#divisor & 0xff00) | value
        else this.#transmit(value)
        break
      case IER:
        if (dlab) this.#divisor = (this.#divisor & 0xff) | (value << 8)
        else this.#writeIer(value)
        break
      case IIR_FCR:
        this.#writeFcr(value)
        break
      case LCR:
        this.#lcr = value
        break
      case MCR:
        this.#writeMcr(value)
        break
      case SCR:
        this.#scr = value
        break
    }
  }

  #transmit(byte: number): void {
    if (this.#mcr & MCR_LOOP) this.#loopBack(byte)
    else this.#send(byte)
    this.#thrEmptyPending = true
    this.#updateInterrupt()
  }

  #send(byte: number): void {
    this.#batch[this.#batchLength++] = byte
    if (this.#batchLength === OUTPUT_BUFFER_SIZE) this.flush()
    if (this.#flushPending || this.#batchLength === 0) return
    this.#flushPending = true
    this.#schedule(this.#scheduledFlush)
  }

  #loopBack(byte: number): void {
    if (this.#fifo.length < this.#fifoSize) this.#fifo.push(byte)
    else this.#overrun = true
  }

  /** The line drops when the last byte is read, and rises again with the next lot: an edge for each. */
  #receive(): number {
    const byte = this.#fifo.shift()
    if (byte === undefined) return 0
    this.#updateInterrupt()
    if (this.#fifo.length === 0) {
      this.#refill()
      this.#updateInterrupt()
    }
    return byte
  }

  /** In loopback the line is cut off from the receiver. */
  #refill(): void {
    if (this.#mcr & MCR_LOOP) return
    while (this.#fifo.length < this.#fifoSize && this.#waiting.length > 0) this.#fifo.push(this.#waiting.shift()!)
    if (this.#held && this.#waiting.length === 0) {
      this.#held = false
      this.#drain?.()
    }
  }

  #readIir(): number {
    const cause = this.#cause()
    if (cause === IIR_TX_EMPTY) {
      this.#thrEmptyPending = false
      this.#updateInterrupt()
    }
    return cause | (this.#fcr & FCR_ENABLE ? IIR_FIFOS_ENABLED : 0)
  }

  #readLsr(): number {
    const value = LSR_TX_EMPTY | (this.#fifo.length > 0 ? LSR_DATA_READY : 0) | (this.#overrun ? LSR_OVERRUN : 0)
    if (this.#overrun) {
      this.#overrun = false
      this.#updateInterrupt()
    }
    return value
  }

  #readMsr(): number {
    const value = this.#modemLines() | this.#msrDelta
    if (this.#msrDelta) {
      this.#msrDelta = 0
      this.#updateInterrupt()
    }
    return value
  }

  #writeIer(value: number): void {
    // Enabling the interrupt while THR is empty raises it at once: drivers begin to send that way.
    if (value & ~this.#ier & IER_TX_EMPTY) this.#thrEmptyPending = true
    this.#ier = value & IER_MASK
    this.#updateInterrupt()
  }

  #writeFcr(value: number): void {
    // Both FIFOs are cleared when they are switched on or off.
    const switched = (value ^ this.#fcr) & FCR_ENABLE
    this.#fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0
    if (switched || value & FCR_CLEAR_RX) {
      this.#fifo = []
      this.#updateInterrupt()
      this.#refill()
    }
    this.#updateInterrupt()
  }

  #writeMcr(value: number): void {
    const before = this.#modemLines()
    this.#mcr = value & MCR_MASK
    const after = this.#modemLines()
    const changed = before ^ after
    // RI only counts when it goes off (trailing edge).
    this.#msrDelta |= ((changed & (MSR_CTS | MSR_DSR | MSR_DCD)) | (changed & before & MSR_RI)) >> 4
    this.#refill()
    this.#updateInterrupt()
  }

  /** The modem is always there and ready; in loopback MCR's outputs are MSR's inputs. */
  #modemLines(): number {
    if (!(this.#mcr & MCR_LOOP)) return MSR_CTS | MSR_DSR | MSR_DCD
    return (
      (this.#mcr & MCR_RTS ? MSR_CTS : 0) |
      (this.#mcr & MCR_DTR ? MSR_DSR : 0) |
      (this.#mcr & MCR_OUT1 ? MSR_RI : 0) |
      (this.#mcr & MCR_OUT2 ? MSR_DCD : 0)
    )
  }

  get #fifoSize(): number {
    return this.#fcr & FCR_ENABLE ? FIFO_SIZE : 1
  }

  /** The interrupt cause of highest priority (data sheet, table IV). */
  #cause(): number {
    if (this.#ier & IER_LINE_STATUS && this.#overrun) return IIR_LINE_STATUS
    if (this.#ier & IER_RX_AVAILABLE && this.#fifo.length > 0) {
      // Time has no length here: what lies below the trigger level has waited long enough.
      const trigger = this.#fcr & FCR_ENABLE ? TRIGGER_LEVELS[this.#fcr >> FCR_TRIGGER_SHIFT]! : 1
      return this.#fifo.length >= trigger ? IIR_RX_AVAILABLE : IIR_RX_TIMEOUT
    }
    if (this.#ier & IER_TX_EMPTY && this.#thrEmptyPending) return IIR_TX_EMPTY
    if (this.#ier & IER_MODEM_STATUS && this.#msrDelta) return IIR_MODEM_STATUS
    return IIR_NONE
  }

  #updateInterrupt(): void {
    const level = this.#cause() !== IIR_NONE
    if (level === this.#level) return
    this.#level = level
    this.#interrupt.set(level)
  }
}
