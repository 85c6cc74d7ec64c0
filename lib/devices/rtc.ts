import { eachByte, type Json, type StatefulDevice, savedBytes, savedIntegers } from './device.js'

// Registers of the MC146818A (Motorola data sheet, figure 11), and the century where the FADT says it is
const SECONDS = 0x00
const MINUTES = 0x02
const HOURS = 0x04
const DAY_OF_WEEK = 0x06
const DAY_OF_MONTH = 0x07
const MONTH = 0x08
const YEAR = 0x09
const REGISTER_A = 0x0a
const REGISTER_B = 0x0b
const REGISTER_C = 0x0c
const REGISTER_D = 0x0d
const CENTURY = 0x32
const CLOCK_REGISTERS = [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY] as const

/** 32.768 kHz time base, no periodic rate, and never an update in progress. */
const A_VALUE = 0x20
const B_SET = 0x80
const B_BINARY = 0x04
const B_24_HOURS = 0x02
/** Alarm, periodic and update interrupts are not offered. */
const B_MASK = B_SET | B_BINARY | B_24_HOURS | 0x01
const D_VALID = 0x80

const PM = 0x80
const RAM_SIZE = 128
const INDEX_MASK = 0x7f

/** What the saved registers are at most. */
const SAVED_LIMITS = { index: INDEX_MASK, registerB: B_MASK }

/**
 * The PC's real-time clock and CMOS RAM (index at 0x70, data at 0x71), in UTC, without interrupts.
 *
 * `now` gives the time in milliseconds since 1970. A guest that sets the clock gets its own offset to it.
 */
export class Rtc implements StatefulDevice {
  readonly #now: () => number
  #index = 0
  #registerB = B_24_HOURS
  #ram = new Uint8Array(RAM_SIZE)
  /** Milliseconds that the guest's clock is ahead. */
  #offset = 0

  constructor(now: () => number = Date.now) {
    this.#now = now
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

  /** Its battery keeps time and memory. */
  reset(): void {
    this.#index = 0
    this.#registerB &= ~B_SET
  }

  saveState(): Json {
    return {
      index: this.#index,
      registerB: this.#registerB,
      ram: [...this.#ram],
      offset: this.#offset,
    }
  }

  loadState(state: Json): void {
    const { index, registerB } = savedIntegers(state, SAVED_LIMITS)
    const ram = savedBytes(state, 'ram', RAM_SIZE)
    const { offset } = state as { readonly offset?: Json }
    if (typeof offset !== 'number' || !Number.isSafeInteger(offset)) {
      throw new TypeError('saved device state: offset must be an integer')
    }
    this.#index = index
    this.#registerB = registerB & B_MASK
    this.#ram.fill(0, ram.length)
    this.#ram.set(ram)
    this.#offset = offset
  }

  #readRegister(): number {
    switch (this.#index) {
      case REGISTER_A:
        return A_VALUE | (this.#ram[REGISTER_A]! & 0x0f)
      case REGISTER_B:
        return this.#registerB
      case REGISTER_C:
        return 0
      case REGISTER_D:
        return D_VALID
    }
    if (isClock(this.#index) && !(this.#registerB & B_SET)) this.#latchTime()
    return this.#ram[this.#index]!
  }

  #writeRegister(value: number): void {
    if (this.#index === REGISTER_B) {
      const before = this.#registerB
      // While SET is on, the clock registers stand still and can be written.
      if (!(before & B_SET) && value & B_SET) this.#latchTime()
      this.#registerB = value & B_MASK
      if (before & B_SET && !(value & B_SET)) this.#setTime()
      return
    }
    if (isClock(this.#index) && !(this.#registerB & B_SET)) {
      this.#latchTime()
      this.#ram[this.#index] = value
      this.#setTime()
      return
    }
    this.#ram[this.#index] = value
  }

  #latchTime(): void {
    const time = new Date(this.#now() + this.#offset)
    const ram = this.#ram
    ram[SECONDS] = this.#encode(time.getUTCSeconds())
    ram[MINUTES] = this.#encode(time.getUTCMinutes())
    ram[HOURS] = this.#encodeHours(time.getUTCHours())
    ram[DAY_OF_WEEK] = this.#encode(time.getUTCDay() + 1)
    ram[DAY_OF_MONTH] = this.#encode(time.getUTCDate())
    ram[MONTH] = this.#encode(time.getUTCMonth() + 1)
    ram[YEAR] = this.#encode(time.getUTCFullYear() % 100)
    ram[CENTURY] = this.#encode(Math.floor(time.getUTCFullYear() / 100))
  }

  #setTime(): void {
    const [seconds, minutes, day, month, year, century] = [SECONDS, MINUTES, DAY_OF_MONTH, MONTH, YEAR, CENTURY].map(
      register => this.#decode(this.#ram[register]!),
    ) as [number, number, number, number, number, number]
    const hours = this.#decodeHours(this.#ram[HOURS]!)
    const time = Date.UTC(century * 100 + year, month - 1, day, hours, minutes, seconds)
    this.#offset = time - this.#now()
  }

  #encode(value: number): number {
    return this.#registerB & B_BINARY ? value : (Math.floor(value / 10) << 4) | (value % 10)
  }

  #decode(value: number): number {
    return this.#registerB & B_BINARY ? value : (value >> 4) * 10 + (value & 0xf)
  }

  #encodeHours(hours: number): number {
    if (this.#registerB & B_24_HOURS) return this.#encode(hours)
    return this.#encode(hours % 12 || 12) | (hours >= 12 ? PM : 0)
  }

  #decodeHours(value: number): number {
    if (this.#registerB & B_24_HOURS) return this.#decode(value)
    return (this.#decode(value & ~PM) % 12) + (value & PM ? 12 : 0)
  }
}

function isClock(register: number): boolean {
  return (CLOCK_REGISTERS as readonly number[]).includes(register)
}
