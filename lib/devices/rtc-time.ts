/** How the registers of the MC146818A hold a time, and the alarm's. */

// Registers (Motorola data sheet, figure 11), and the century where the FADT says it is
const SECONDS = 0x00
const SECONDS_ALARM = 0x01
const MINUTES = 0x02
const MINUTES_ALARM = 0x03
const HOURS = 0x04
const HOURS_ALARM = 0x05
const DAY_OF_WEEK = 0x06
const DAY_OF_MONTH = 0x07
const MONTH = 0x08
const YEAR = 0x09
const CENTURY = 0x32
const CLOCK_REGISTERS = [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY] as const

const PM = 0x80
/** An alarm register with both of these goes off at each value ("don't care"). */
const ANY = 0xc0
const SECONDS_A_DAY = 86_400

/** How numbers stand in the registers (DM and 24/12 of register B). */
export interface Notation {
  readonly binary: boolean
  readonly hours24: boolean
}

export function isClock(register: number): boolean {
  return (CLOCK_REGISTERS as readonly number[]).includes(register)
}

export function isAlarm(register: number): boolean {
  return register === SECONDS_ALARM || register === MINUTES_ALARM || register === HOURS_ALARM
}

/** Writes a time, in milliseconds since 1970, into the clock's registers. */
export function putTime(registers: Uint8Array, notation: Notation, milliseconds: number): void {
  const time = new Date(milliseconds)
  const put = (register: number, value: number) => {
    registers[register] = encode(value, notation)
  }
  put(SECONDS, time.getUTCSeconds())
  put(MINUTES, time.getUTCMinutes())
  registers[HOURS] = encodeHours(time.getUTCHours(), notation)
  put(DAY_OF_WEEK, time.getUTCDay() + 1)
  put(DAY_OF_MONTH, time.getUTCDate())
  put(MONTH, time.getUTCMonth() + 1)
  put(YEAR, time.getUTCFullYear() % 100)
  put(CENTURY, Math.floor(time.getUTCFullYear() / 100))
}

/** The time that the clock's registers have, in milliseconds since 1970. */
export function getTime(registers: Uint8Array, notation: Notation): number {
  const get = (register: number) => decode(registers[register]!, notation)
  const year = get(CENTURY) * 100 + get(YEAR)
  const hours = decodeHours(registers[HOURS]!, notation)
  return Date.UTC(year, get(MONTH) - 1, get(DAY_OF_MONTH), hours, get(MINUTES), get(SECONDS))
}

/** When the clock, after a time, next has what the alarm's registers say; undefined for what no clock ever has. */
export function nextAlarm(registers: Uint8Array, notation: Notation, after: number): number | undefined {
  const second = Math.floor(after / 1000) + 1
  const ofDay = second - Math.floor(second / SECONDS_A_DAY) * SECONDS_A_DAY
  const midnight = second - ofDay
  const today = alarmOfDay(registers, notation, ofDay)
  if (today !== undefined) return (midnight + today) * 1000
  const first = alarmOfDay(registers, notation, 0)
  return first === undefined ? undefined : (midnight + SECONDS_A_DAY + first) * 1000
}

/** The first second of a day, from `least` on, at which the alarm goes off. */
function alarmOfDay(registers: Uint8Array, notation: Notation, least: number): number | undefined {
  const first = (register: number, from: number) => firstAlarm(registers[register]!, from, 60, encode, notation)
  const firstHour = (from: number) => firstAlarm(registers[HOURS_ALARM]!, from, 24, encodeHours, notation)
  const [leastHour, leastMinute, leastSecond] = [Math.floor(least / 3600), Math.floor(least / 60) % 60, least % 60]
  const minute = first(MINUTES_ALARM, 0)
  const second = first(SECONDS_ALARM, 0)
  let hour = firstHour(leastHour)
  if (minute === undefined || second === undefined) return undefined
  if (hour === leastHour) {
    let later = first(MINUTES_ALARM, leastMinute)
    if (later === leastMinute) {
      const soon = first(SECONDS_ALARM, leastSecond)
      if (soon !== undefined) return hour * 3600 + later * 60 + soon
      later = first(MINUTES_ALARM, leastMinute + 1)
    }
    if (later !== undefined) return hour * 3600 + later * 60 + second
    hour = firstHour(leastHour + 1)
  }
  return hour === undefined ? undefined : hour * 3600 + minute * 60 + second
}

/** The first number from `from` on, below `end`, at which an alarm register goes off. */
function firstAlarm(
  alarm: number,
  from: number,
  end: number,
  encode: (value: number, notation: Notation) => number,
  notation: Notation,
): number | undefined {
  const any = (alarm & ANY) === ANY
  for (let value = from; value < end; value++) if (any || encode(value, notation) === alarm) return value
  return undefined
}

function encode(value: number, { binary }: Notation): number {
  return binary ? value : (Math.floor(value / 10) << 4) | (value % 10)
}

function decode(value: number, { binary }: Notation): number {
  return binary ? value : (value >> 4) * 10 + (value & 0xf)
}

function encodeHours(hours: number, notation: Notation): number {
  if (notation.hours24) return encode(hours, notation)
  return encode(hours % 12 || 12, notation) | (hours >= 12 ? PM : 0)
}

function decodeHours(value: number, notation: Notation): number {
  if (notation.hours24) return decode(value, notation)
  return (decode(value & ~PM, notation) % 12) + (value & PM ? 12 : 0)
}
