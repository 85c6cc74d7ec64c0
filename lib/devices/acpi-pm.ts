import { eachByte, type InterruptLine, type Json, type StatefulDevice, savedIntegers } from './device.js'

// Offsets in the block; what drives them is in the FADT (ACPI 6.5, section 4.8.3).
const PM1_STATUS = 0
const PM1_ENABLE = 2
const PM1_CONTROL = 4
const PM_TIMER = 8

/** PM1_STS and PM1_EN: the power button was pressed (ACPI 6.5, section 4.8.3.1). */
const PWRBTN = 1 << 8

/** PM1_CNT: the machine is in ACPI mode, always (SMI_CMD is 0 in the FADT). */
const SCI_EN = 1 << 0
const SLP_TYP_SHIFT = 10
const SLP_TYP_MASK = 7
const SLP_EN = 1 << 13

/** The power management timer counts at 3.579545 MHz (ACPI 6.5, section 4.8.3.3). */
const TIMER_HZ = 3_579_545n

/** What the saved registers are at most. */
const SAVED_LIMITS = { status: PWRBTN, enable: 0xffff, sleepType: 7, timer: 0xffff_ffff }

export interface AcpiPmOptions {
  /** The guest asked for a sleep state: SLP_TYP as the DSDT's `_Sx` object names it. */
  readonly sleep: (type: number) => void
  /** The system control interrupt, level-triggered. */
  readonly sci: InterruptLine
  /** Monotonic time in nanoseconds. */
  readonly now?: () => bigint
}

/**
 * ACPI's fixed hardware: the PM1 event block, whose one event is the power button, PM1 control with the sleep request, and the
 * PM timer, 32 bits wide.
 */
export class AcpiPm implements StatefulDevice {
  readonly #sleep: (type: number) => void
  readonly #sci: InterruptLine
  readonly #now: () => bigint
  #status = 0
  #enable = 0
  #sleepType = 0
  /** Of the interrupt line. */
  #level = false
  /** What the timer is ahead of `now`, in nanoseconds. */
  #timerOffset: bigint

  constructor(options: AcpiPmOptions) {
    this.#sleep = options.sleep
    this.#sci = options.sci
    this.#now = options.now ?? process.hrtime.bigint
    this.#timerOffset = -this.#now()
  }

  read(offset: number, data: Uint8Array): void {
    // Taken once, so that the bytes of one access belong to one value.
    const timer = offset + data.length > PM_TIMER ? this.#timer() : 0
    const control = SCI_EN | (this.#sleepType << SLP_TYP_SHIFT)
    eachByte(offset, data, register => {
      if (register >= PM_TIMER) return (timer >>> (8 * (register - PM_TIMER))) & 0xff
      if (register === PM1_CONTROL || register === PM1_CONTROL + 1)
        return (control >> (8 * (register - PM1_CONTROL))) & 0xff
      if (register === PM1_ENABLE || register === PM1_ENABLE + 1)
        return (this.#enable >> (8 * (register - PM1_ENABLE))) & 0xff
      return (this.#status >> (8 * (register - PM1_STATUS))) & 0xff
    })
  }

  write(offset: number, data: Uint8Array): void {
    let sleeps = false
    for (let i = 0; i < data.length; i++) {
      const register = offset + i
      const value = data[i]!
      // Writing a one clears it.
      if (register === PM1_STATUS || register === PM1_STATUS + 1)
        this.#status &= ~(value << (8 * (register - PM1_STATUS)))
      if (register === PM1_ENABLE) this.#enable = (this.#enable & 0xff00) | value
      if (register === PM1_ENABLE + 1) this.#enable = (this.#enable & 0xff) | (value << 8)
      if (register === PM1_CONTROL + 1) {
        this.#sleepType = (value >> (SLP_TYP_SHIFT - 8)) & SLP_TYP_MASK
        sleeps = (value & (SLP_EN >> 8)) !== 0
      }
    }
    this.#updateSci()
    if (sleeps) this.#sleep(this.#sleepType)
  }

  /** Presses the power button: what becomes of that is the guest's choice. */
  pressPowerButton(): void {
    this.#status |= PWRBTN
    this.#updateSci()
  }

  reset(): void {
    this.#status = 0
    this.#enable = 0
    this.#sleepType = 0
    this.#timerOffset = -this.#now()
    this.#updateSci()
  }

  saveState(): Json {
    return { status: this.#status, enable: this.#enable, sleepType: this.#sleepType, timer: this.#timer() }
  }

  /** The timer goes on from where it was. */
  loadState(state: Json): void {
    const { status, enable, sleepType, timer } = savedIntegers(state, SAVED_LIMITS)
    this.#status = status & PWRBTN
    this.#enable = enable
    this.#sleepType = sleepType
    this.#updateSci()
    this.#timerOffset = (BigInt(timer) * 1_000_000_000n + TIMER_HZ - 1n) / TIMER_HZ - this.#now()
  }

  /** Sets the timer forward: the guest's other clocks were. */
  advance(nanoseconds: bigint): void {
    this.#timerOffset += nanoseconds
  }

  #updateSci(): void {
    const level = (this.#status & this.#enable) !== 0
    if (level === this.#level) return
    this.#level = level
    this.#sci.set(level)
  }

  #timer(): number {
    return Number(BigInt.asUintN(32, ((this.#now() + this.#timerOffset) * TIMER_HZ) / 1_000_000_000n))
  }
}
