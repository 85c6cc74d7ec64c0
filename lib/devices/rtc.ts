import { eachByte, type InterruptLine, type Json, type StatefulDevice, savedBytes, savedIntegers } from './device.js'
import { getTime, isAlarm, isClock, type Notation, nextAlarm, putTime } from './rtc-time.js'

const REGISTER_A = 0x0a
const REGISTER_B = 0x0b
const REGISTER_C = 0x0c
const REGISTER_D = 0x0d

/** 32.768 kHz time base, and never an update in progress. */
const A_VALUE = 0x20
const A_RATE = 0x0f
const B_SET = 0x80
const B_UPDATE = 0x10
const B_SQUARE_WAVE = 0x08
const B_BINARY = 0x04
const B_24_HOURS = 0x02
const C_INTERRUPT = 0x80
const D_VALID = 0x80

// Flags of register C; what enables their interrupts stands at the same places in register B.
const PERIODIC = 0x40
const ALARM = 0x20
const UPDATE = 0x10
const FLAGS = PERIODIC | ALARM | UPDATE

const RAM_SIZE = 128
const INDEX_MASK = 0x7f

/** A timer is not set for less: an interrupt for several periods is one. In milliseconds. */
const SHORTEST = 1
/** A timer is not set for more: the host's clock may be set meanwhile. In milliseconds. */
const LONGEST = 60_000

/** Beyond what the registers can hold, in milliseconds: the year 33,658. */
const TIME_LIMIT = 1e15

/** What the saved registers are at most. */
const SAVED_LIMITS = { index: INDEX_MASK, registerB: 0xff, flags: FLAGS }

export interface RtcOptions {
  /** Edge-triggered, on an ISA line: up while an enabled flag of register C is set. */
  readonly interrupt: InterruptLine
  /** The time in milliseconds since 1970. */
  readonly now?: () => number
}

/**
 * The PC's real-time clock and CMOS RAM (MC146818A; index at 0x70, data at 0x71), in UTC, with its alarm, update and periodic
 * interrupts. A guest that sets the clock gets its own offset to the host's.
 *
 * Flags are found out when somebody asks. A timer runs only between `resume` and `pause`, where an interrupt is enabled and the guest has
 * taken note of the one before: however fast the rate, there is at most one for each read of register C.
 */
export class Rtc implements StatefulDevice {
  readonly #interrupt: InterruptLine
  readonly #now: () => number
  #index = 0
  #registerB = B_24_HOURS
  /** Of register C. */
  #flags = 0
  #ram = new Uint8Array(RAM_SIZE)
  /** Milliseconds that the guest's clock is ahead. */
  #offset = 0
  /** The guest's time up to which the flags tell what has happened. */
  #seen: number
  /** Of the interrupt line. */
  #level = false
  #live = false
  #timer: NodeJS.Timeout | undefined

  constructor({ interrupt, now = Date.now }: RtcOptions) {
    this.#interrupt = interrupt
    this.#now = now
    this.#seen = now()
  }

  read(offset: number, data: Uint8Array): void {
    // The index register cannot be read.
    eachByte(offset, data, port => (port === 1 ? this.#readRegister() : 0xff))
  }

  write(offset: number, data: Uint8Array): void {
    for (let i = 0; i < data.length; i++) {
      // Bit 7 of the index port masks NMIs.
      if (offset + i === 0) this.#index = data[i]! & INDEX_MASK
      else this.#writeRegister(data[i]!)
    }
  }

  /** No interrupt comes until `resume`. */
  pause(): void {
    this.#live = false
    this.#setTimer()
  }

  /** Interrupts come, first what has become due meanwhile. */
  resume(): void {
    this.#live = true
    this.#catchUp()
  }

  /** Its battery keeps time and memory; no interrupt is enabled (data sheet, RESET). */
  reset(): void {
    this.#index = 0
    this.#registerB &= ~(B_SET | FLAGS | B_SQUARE_WAVE)
    this.#flags = 0
    this.#seen = this.#time
    this.#update()
  }

  saveState(): Json {
    return {
      index: this.#index,
      registerB: this.#registerB,
      flags: this.#flags,
      ram: [...this.#ram],
      offset: this.#offset,
      seen: this.#seen,
    }
  }

  /** What has become due since it was saved comes with `resume`. */
  loadState(state: Json): void {
    const { index, registerB, flags } = savedIntegers(state, SAVED_LIMITS)
    const ram = savedBytes(state, 'ram', RAM_SIZE)
    const [offset, seen] = [savedTime(state, 'offset'), savedTime(state, 'seen')]
    this.#index = index
    this.#registerB = registerB
    this.#flags = flags & FLAGS
    this.#ram.fill(0, ram.length)
    this.#ram.set(ram)
    this.#offset = offset
    this.#seen = seen
    this.#update()
  }

  #readRegister(): number {
    switch (this.#index) {
      case REGISTER_A:
        return A_VALUE | (this.#ram[REGISTER_A]! & A_RATE)
      case REGISTER_B:
        return this.#registerB
      case REGISTER_C:
        return this.#takeFlags()
      case REGISTER_D:
        return D_VALID
    }
    if (isClock(this.#index) && !this.#stopped) putTime(this.#ram, this.#notation, this.#time)
    return this.#ram[this.#index]!
  }

  #writeRegister(value: number): void {
    const index = this.#index
    if (index === REGISTER_B) this.#writeB(value)
    else if (isClock(index) && !this.#stopped) {
      this.#catchUp()
      putTime(this.#ram, this.#notation, this.#time)
      this.#ram[index] = value
      this.#setTime()
    } else if (isAlarm(index) || index === REGISTER_A) {
      this.#catchUp()
      this.#ram[index] = value
      this.#setTimer()
    } else this.#ram[index] = value
  }

  #writeB(value: number): void {
    this.#catchUp()
    const before = this.#registerB
    // While SET is on, the clock registers stand still and can be written.
    if (!this.#stopped && value & B_SET) putTime(this.#ram, this.#notation, this.#time)
    this.#registerB = value & B_SET ? value & ~B_UPDATE : value
    if (before & B_SET && !this.#stopped) this.#setTime()
    this.#update()
  }

  get #stopped(): boolean {
    return (this.#registerB & B_SET) !== 0
  }

  get #notation(): Notation {
    return { binary: (this.#registerB & B_BINARY) !== 0, hours24: (this.#registerB & B_24_HOURS) !== 0 }
  }

  /** The guest's, in milliseconds. */
  get #time(): number {
    return this.#now() + this.#offset
  }

  /** Milliseconds between two periodic interrupts; undefined for none (data sheet, table 5). */
  get #period(): number | undefined {
    const rate = this.#ram[REGISTER_A]! & A_RATE
    if (rate === 0) return undefined
    // Rates 1 and 2 are those of 8 and 9.
    return (1000 * 2 ** ((rate < 3 ? rate + 7 : rate) - 1)) / 32_768
  }

  #setTime(): void {
    this.#offset = getTime(this.#ram, this.#notation) - this.#now()
    this.#seen = this.#time
    this.#setTimer()
  }

  /** Register C: reading it clears it, and with it the interrupt. */
  #takeFlags(): number {
    this.#catchUp()
    const flags = this.#flags
    const value = flags & this.#registerB ? flags | C_INTERRUPT : flags
    this.#flags = 0
    this.#update()
    return value
  }

  /** Sets the flags of what has happened up to now. */
  #catchUp(): void {
    const time = this.#time
    for (const flag of [PERIODIC, ALARM, UPDATE]) {
      const next = this.#flags & flag ? undefined : this.#next(flag)
      if (next !== undefined && next <= time) this.#flags |= flag
    }
    this.#seen = time
    this.#update()
  }

  /** The guest's time at which a flag is next set. */
  #next(flag: number): number | undefined {
    if (flag === PERIODIC) {
      const period = this.#period
      return period && (Math.floor(this.#seen / period) + 1) * period
    }
    if (this.#stopped) return undefined
    if (flag === ALARM) return nextAlarm(this.#ram, this.#notation, this.#seen)
    return (Math.floor(this.#seen / 1000) + 1) * 1000
  }

  #update(): void {
    const level = (this.#flags & this.#registerB) !== 0
    if (level !== this.#level) {
      this.#level = level
      this.#interrupt.set(level)
    }
    this.#setTimer()
  }

  /** For the next interrupt, if one can come. */
  #setTimer(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (!this.#live || this.#level) return
    let next = Number.POSITIVE_INFINITY
    for (const flag of [PERIODIC, ALARM, UPDATE]) {
      if (this.#registerB & flag) next = Math.min(next, this.#next(flag) ?? next)
    }
    if (next === Number.POSITIVE_INFINITY) return
    const delay = Math.min(Math.max(Math.ceil(next - this.#time), SHORTEST), LONGEST)
    this.#timer = setTimeout(() => this.#catchUp(), delay).unref()
  }
}

function savedTime(state: Json, name: 'offset' | 'seen'): number {
  const value = (state as { readonly [key: string]: Json | undefined })[name]
  if (typeof value !== 'number' || !Number.isInteger(value) || Math.abs(value) > TIME_LIMIT) {
    throw new TypeError(`saved device state: ${name} must be an integer of at most ${TIME_LIMIT}, or its negative`)
  }
  return value
}
