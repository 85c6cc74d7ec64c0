import { beforeEach, describe, expect, test } from 'vitest'
import { Rtc } from '../../../lib/devices/rtc.js'

let now: number
let rtc: Rtc

beforeEach(() => {
  now = Date.UTC(2024, 1, 29, 23, 58, 7) // a Thursday
  rtc = new Rtc({ interrupt: { set: () => {} }, now: () => now })
})

function read(register: number): number {
  const data = new Uint8Array(1)
  rtc.write(0, Uint8Array.of(register))
  rtc.read(1, data)
  return data[0]!
}

function write(register: number, value: number): void {
  rtc.write(0, Uint8Array.of(register))
  rtc.write(1, Uint8Array.of(value))
}

/** Century, year, month, day, hours, minutes, seconds. */
const clock = () => [0x32, 9, 8, 7, 4, 2, 0].map(read)

describe('Rtc', () => {
  test('tells the time in UTC, BCD and 24 hours', () => {
    expect(clock()).toEqual([0x20, 0x24, 0x02, 0x29, 0x23, 0x58, 0x07])
    expect(read(6)).toBe(5)
    now += 2 * 60_000
    expect(clock()).toEqual([0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x07])
  })

  test('tells it in binary and 12 hours when asked to', () => {
    write(0x0b, 0x04)
    expect(clock()).toEqual([20, 24, 2, 29, 11 | 0x80, 58, 7])
    now = Date.UTC(2024, 0, 1, 0, 30, 0)
    expect(read(4)).toBe(12)
    now = Date.UTC(2024, 0, 1, 12, 30, 0)
    expect(read(4)).toBe(12 | 0x80)
  })

  test('is never in the middle of an update, and its memory is valid', () => {
    expect(read(0x0a) & 0x80).toBe(0)
    expect(read(0x0c)).toBe(0)
    expect(read(0x0d)).toBe(0x80)
  })

  test('is set as Linux sets it: stopped, written, let go', () => {
    write(0x0b, 0x82)
    now += 5000
    expect(read(0)).toBe(0x07)
    for (const [register, value] of [
      [0, 0x10],
      [2, 0x20],
      [4, 0x06],
      [7, 0x31],
      [8, 0x12],
      [9, 0x99],
      [0x32, 0x19],
    ] as const) {
      write(register, value)
    }
    write(0x0b, 0x02)
    expect(clock()).toEqual([0x19, 0x99, 0x12, 0x31, 0x06, 0x20, 0x10])
    now += 61_000
    expect(clock()).toEqual([0x19, 0x99, 0x12, 0x31, 0x06, 0x21, 0x11])
  })

  test('a register written while it runs counts at once', () => {
    write(2, 0x01)
    expect(clock()).toEqual([0x20, 0x24, 0x02, 0x29, 0x23, 0x01, 0x07])
  })

  test('setting the hour works in 12-hour mode', () => {
    for (const [written, hour] of [
      [0x12 | 0x80, 0x12],
      [0x12, 0x00],
      [0x11 | 0x80, 0x23],
    ] as const) {
      write(0x0b, 0x80)
      write(4, written)
      write(0x0b, 0x00)
      expect(read(4)).toBe(written)
      write(0x0b, 0x02)
      expect(read(4)).toBe(hour)
    }
  })

  test('the rest is memory; bit 7 of the index is not part of it; the index does not read back', () => {
    write(0x40, 0xab)
    expect(read(0xc0)).toBe(0xab)
    const data = new Uint8Array(2)
    rtc.read(0, data)
    expect([...data]).toEqual([0xff, 0xab])
  })

  test('whatever is written to it, it goes on', () => {
    write(0x0b, 0x82)
    for (const register of [0, 2, 4, 6, 7, 8, 9, 0x32]) write(register, 0xff)
    write(0x0b, 0x02)
    expect(clock().every(value => value <= 0xff)).toBe(true)
    for (let register = 0; register < 256; register++) write(register, 0xff)
    expect(clock()).toHaveLength(7)
  })

  test('keeps its state', () => {
    write(2, 0x01)
    write(0x40, 0xab)
    const saved = JSON.parse(JSON.stringify(rtc.saveState()))
    rtc = new Rtc({ interrupt: { set: () => {} }, now: () => now })
    rtc.loadState(saved)
    expect(rtc.saveState()).toEqual(saved)
    expect([read(0x40), read(2)]).toEqual([0xab, 0x01])
    expect(() => rtc.loadState({ ...saved, index: 128 })).toThrow('index')
    expect(() => rtc.loadState({ ...saved, offset: 'x' })).toThrow('offset')
    expect(() => rtc.loadState({ ...saved, offset: 2e15 })).toThrow('offset')
  })
})
