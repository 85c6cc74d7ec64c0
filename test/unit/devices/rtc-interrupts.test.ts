import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { Rtc } from '../../../lib/devices/rtc.js'
import { nextAlarm } from '../../../lib/devices/rtc-time.js'

const A = 0x0a
const B = 0x0b
const C = 0x0c
const SET = 0x80
const PIE = 0x40
const AIE = 0x20
const UIE = 0x10
const HOURS_24 = 0x02
const IRQF = 0x80

let line: { level: boolean; rises: number }
let rtc: Rtc

function make(): Rtc {
  const own = { level: false, rises: 0 }
  line = own
  return new Rtc({
    interrupt: {
      set(level) {
        expect(level).not.toBe(own.level)
        own.level = level
        if (level) own.rises++
      },
    },
  })
}

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

/** Hours, minutes, seconds, as they stand in the registers. */
function alarmAt(hours: number, minutes: number, seconds: number): void {
  write(5, hours)
  write(3, minutes)
  write(1, seconds)
}

/** As an interrupt's handler does: each rise is answered by reading C. Gives what was read. */
function attend(milliseconds: number): number[] {
  const taken: number[] = []
  for (let i = 0; i < milliseconds; i++) {
    vi.advanceTimersByTime(1)
    if (line.level) taken.push(read(C))
  }
  return taken
}

beforeEach(() => {
  vi.useFakeTimers()
  vi.setSystemTime(Date.UTC(2024, 1, 29, 23, 58, 7))
  rtc = make()
  rtc.resume()
})

afterEach(() => {
  rtc.pause()
  expect(vi.getTimerCount()).toBe(0)
  vi.useRealTimers()
})

describe('Rtc: alarm', () => {
  test('comes at its time, once, and goes with the reading of C', () => {
    alarmAt(0x23, 0x58, 0x10)
    write(B, HOURS_24 | AIE)
    vi.advanceTimersByTime(2999)
    expect(line.level).toBe(false)
    vi.advanceTimersByTime(1)
    expect(line.level).toBe(true)
    expect(read(C) & ~UIE).toBe(IRQF | AIE)
    expect([line.level, read(C)]).toEqual([false, 0])
    vi.advanceTimersByTime(24 * 3600_000 - 1)
    expect(line.rises).toBe(1)
    vi.advanceTimersByTime(1)
    expect(line.rises).toBe(2)
  })

  test('at the time that it is now comes tomorrow', () => {
    alarmAt(0x23, 0x58, 0x07)
    write(B, HOURS_24 | AIE)
    vi.advanceTimersByTime(24 * 3600_000 - 1)
    expect(line.rises).toBe(0)
    vi.advanceTimersByTime(1)
    expect(line.rises).toBe(1)
  })

  test.each([
    [[0xc0, 0xff, 0xd5], 1],
    [[0xff, 0xff, 0x00], 60],
    [[0xff, 0x00, 0x00], 3600],
    [[0x00, 0xc1, 0x30], 60],
  ] as const)('with parts that do not matter, %j, comes again every %d s', ([hours, minutes, seconds], every) => {
    alarmAt(hours, minutes, seconds)
    write(B, HOURS_24 | AIE)
    // Into the first hour of the next day.
    vi.advanceTimersByTime(200_000)
    expect(line.level).toBe(true)
    vi.advanceTimersByTime(1000 * every)
    const times: number[] = []
    for (let i = 0; i < 4; i++) {
      read(C)
      while (!line.level) vi.advanceTimersByTime(1000)
      times.push(Date.now() / 1000)
    }
    expect(times.slice(1).map((time, i) => time - times[i]!)).toEqual([every, every, every])
  })

  test('that no clock ever shows never comes, and needs no timer', () => {
    alarmAt(0x24, 0x00, 0x00)
    write(B, HOURS_24 | AIE)
    expect(vi.getTimerCount()).toBe(0)
    alarmAt(0x23, 0x5a, 0x00)
    expect(vi.getTimerCount()).toBe(0)
  })

  test('follows the clock that the guest sets', () => {
    alarmAt(0x12, 0x00, 0x00)
    write(B, HOURS_24 | AIE | SET)
    write(4, 0x11)
    write(2, 0x59)
    write(0, 0x58)
    vi.advanceTimersByTime(10_000)
    expect(line.rises).toBe(0)
    write(B, HOURS_24 | AIE)
    vi.advanceTimersByTime(1999)
    expect(line.rises).toBe(0)
    vi.advanceTimersByTime(1)
    expect(line.rises).toBe(1)
    read(C)
    write(4, 0x11)
    write(2, 0x59)
    vi.advanceTimersByTime(60_000)
    expect(line.rises).toBe(2)
  })

  test('comes though nobody asked when the host sets its clock forward, within a minute', () => {
    alarmAt(0x12, 0x00, 0x00)
    write(B, HOURS_24 | AIE)
    vi.setSystemTime(Date.UTC(2024, 2, 1, 12, 0, 30))
    vi.advanceTimersByTime(60_000)
    expect(line.level).toBe(true)
  })

  test('goes on when the host sets its clock back', () => {
    alarmAt(0xff, 0xff, 0x00)
    write(B, HOURS_24 | AIE)
    vi.setSystemTime(Date.UTC(2024, 1, 29, 12, 0, 30))
    vi.advanceTimersByTime(120_000)
    expect(line.level).toBe(true)
  })
})

describe('Rtc: update and periodic interrupts', () => {
  test('an update each second, at its beginning', () => {
    vi.advanceTimersByTime(300)
    write(B, HOURS_24 | UIE)
    vi.advanceTimersByTime(699)
    expect(line.level).toBe(false)
    expect(attend(3001)).toEqual([IRQF | UIE, IRQF | UIE, IRQF | UIE, IRQF | UIE])
  })

  test('none while the clock is stopped, which disables them', () => {
    write(B, HOURS_24 | UIE | SET)
    expect([read(B), vi.getTimerCount()]).toEqual([HOURS_24 | SET, 0])
    vi.advanceTimersByTime(5000)
    expect(read(C)).toBe(0)
    write(B, HOURS_24)
    vi.advanceTimersByTime(999)
    expect(read(C)).toBe(0)
    vi.advanceTimersByTime(1)
    expect(read(C)).toBe(UIE)
  })

  test.each([
    [0x0f, 2],
    [0x0a, 64],
    [0x02, 128],
    [0x01, 256],
  ])('rate %d of register A is %d a second', (rate, hertz) => {
    write(A, 0x20 | rate)
    write(B, HOURS_24 | PIE)
    const taken = attend(1000)
    expect(taken.every(flags => (flags & ~UIE) === (IRQF | PIE))).toBe(true)
    expect(taken).toHaveLength(hertz)
  })

  test('rate 0 is none; at most one a millisecond; none as long as C is not read', () => {
    write(B, HOURS_24 | PIE)
    expect(vi.getTimerCount()).toBe(0)
    write(A, 0x23)
    expect(attend(500)).toHaveLength(500)
    read(C)
    vi.advanceTimersByTime(1)
    expect([line.level, vi.getTimerCount()]).toEqual([true, 0])
  })

  test('what is not enabled is told all the same, and interrupts once it is enabled', () => {
    alarmAt(0xff, 0xff, 0xff)
    write(A, 0x2f)
    vi.advanceTimersByTime(1000)
    expect([line.rises, vi.getTimerCount()]).toEqual([0, 0])
    expect(read(C)).toBe(PIE | AIE | UIE)
    expect(read(C)).toBe(0)
    vi.advanceTimersByTime(1000)
    write(B, HOURS_24 | AIE)
    expect(line.level).toBe(true)
    write(B, HOURS_24)
    expect(line.level).toBe(false)
    expect(read(C)).toBe(PIE | AIE | UIE)
  })
})

describe('Rtc: pause, reset and state', () => {
  test('what becomes due in a pause comes with its end', () => {
    alarmAt(0x23, 0x59, 0x00)
    write(B, HOURS_24 | AIE)
    rtc.pause()
    expect(vi.getTimerCount()).toBe(0)
    vi.advanceTimersByTime(200_000)
    expect(line.level).toBe(false)
    rtc.resume()
    expect(line.level).toBe(true)
  })

  test('what becomes due while it is saved comes when it goes on', () => {
    alarmAt(0x23, 0x59, 0x00)
    write(B, HOURS_24 | AIE)
    rtc.pause()
    const saved = JSON.parse(JSON.stringify(rtc.saveState()))
    vi.advanceTimersByTime(7 * 24 * 3600_000)
    rtc = make()
    rtc.loadState(saved)
    expect([line.level, vi.getTimerCount()]).toEqual([false, 0])
    expect(rtc.saveState()).toEqual(saved)
    rtc.resume()
    expect(line.level).toBe(true)
    expect(read(C)).toBe(IRQF | AIE | UIE)
  })

  test('an interrupt that was not taken is saved with its line', () => {
    write(B, HOURS_24 | UIE)
    vi.advanceTimersByTime(1000)
    rtc.pause()
    const saved = JSON.parse(JSON.stringify(rtc.saveState()))
    rtc = make()
    rtc.loadState(saved)
    expect(line.level).toBe(true)
    rtc.loadState({ ...saved, flags: 0 })
    expect(line.level).toBe(false)
    for (const bad of [{ flags: 0x71 }, { flags: -1 }, { seen: 0.5 }, { seen: undefined }, { seen: 2e15 }]) {
      expect(() => rtc.loadState({ ...saved, ...bad })).toThrow(Object.keys(bad)[0])
    }
  })

  test('a reset takes the interrupt back and enables none', () => {
    alarmAt(0xff, 0xff, 0xff)
    write(B, HOURS_24 | UIE | AIE | PIE)
    vi.advanceTimersByTime(1000)
    rtc.pause()
    rtc.reset()
    expect([line.level, read(B), read(C), read(1)]).toEqual([false, HOURS_24, 0, 0xff])
    rtc.resume()
    expect(vi.getTimerCount()).toBe(0)
  })
})

describe('Rtc: properties', () => {
  /** The register's value for a number: by the data sheet, and not as the code under test does it. */
  const written = (value: number, binary: boolean) => (binary ? value : Number.parseInt(String(value), 16))
  const hourOf = (value: number, binary: boolean, hours24: boolean) => {
    if (hours24) return written(value, binary)
    return written([12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11][value % 12]!, binary) + (value < 12 ? 0 : 128)
  }
  /** What the registers show in each second of a day, by notation. */
  const shown = [true, false].map(binary =>
    [true, false].map(hours24 =>
      Array.from({ length: 86_400 }, (_, second) => {
        const [hour, minute] = [Math.floor(second / 3600), Math.floor(second / 60) % 60]
        return [hourOf(hour, binary, hours24), written(minute, binary), written(second % 60, binary)]
      }),
    ),
  )
  // Mostly what a clock shows at some time.
  const alarmByte = fc.oneof(fc.integer({ min: 0, max: 0x59 }), fc.integer({ min: 0xbe, max: 0xff }), fc.nat(0xff))

  test('the next alarm is the first second at which each part matches', () => {
    fc.assert(
      fc.property(
        fc.tuple(alarmByte, alarmByte, alarmByte),
        fc.boolean(),
        fc.boolean(),
        fc.integer({ min: -100_000_000, max: 4_000_000_000 }),
        fc.nat(999),
        (alarm, binary, hours24, second, part) => {
          const registers = new Uint8Array(128)
          registers[5] = alarm[0]
          registers[3] = alarm[1]
          registers[1] = alarm[2]
          const day = shown[binary ? 0 : 1]![hours24 ? 0 : 1]!
          const matches = (at: number) =>
            day[((at % 86_400) + 86_400) % 86_400]!.every((value, i) => alarm[i]! >= 0xc0 || alarm[i] === value)
          let expected: number | undefined
          for (let at = second + 1; at <= second + 86_400; at++) {
            if (!matches(at)) continue
            expected = at * 1000
            break
          }
          expect(nextAlarm(registers, { binary, hours24 }, second * 1000 + part)).toBe(expected)
        },
      ),
      { numRuns: 200 },
    )
  })

  test('whatever a guest does: the line is up just where C says so, there is one timer at most, and a copy does the same', () => {
    const register = fc.oneof(fc.constantFrom(0, 1, 2, 3, 4, 5, A, B, C, 0x32), fc.nat(127))
    const step = fc.oneof(
      fc.record({ write: register, value: fc.oneof(alarmByte, fc.nat(0xff)) }),
      fc.record({ pass: fc.oneof(fc.nat(3000), fc.nat(90_000_000)) }),
      fc.record({ read: register }),
      fc.constant({ copy: true }),
    )
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), steps => {
        rtc.pause()
        rtc = make()
        rtc.resume()
        for (const step of steps) {
          if ('write' in step) write(step.write, step.value)
          else if ('read' in step) read(step.read)
          else if ('pass' in step) {
            // As a long pause does.
            if (step.pass > 3000) rtc.pause()
            vi.advanceTimersByTime(step.pass)
            if (step.pass > 3000) rtc.resume()
          } else {
            const before = line.level
            rtc.pause()
            const saved = JSON.parse(JSON.stringify(rtc.saveState()))
            rtc = make()
            rtc.loadState(saved)
            expect(line.level).toBe(before)
            expect(rtc.saveState()).toEqual(saved)
            rtc.resume()
          }
          expect(vi.getTimerCount()).toBeLessThanOrEqual(line.level ? 0 : 1)
          const { flags, registerB } = rtc.saveState() as { flags: number; registerB: number }
          expect(line.level).toBe((flags & registerB & 0x70) !== 0)
        }
        const level = line.level
        expect((read(C) & IRQF) !== 0 || !level).toBe(true)
        expect(line.level).toBe(false)
      }),
    )
  })
})
