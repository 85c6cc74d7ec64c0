import { describe, expect, test } from 'vitest'
import { AcpiPm } from '../../../lib/devices/acpi-pm.js'
import { Bus } from '../../../lib/devices/bus.js'
import { DebugExit } from '../../../lib/devices/debug-exit.js'
import { I8042 } from '../../../lib/devices/i8042.js'
import { type PanicEvent, PvPanic } from '../../../lib/devices/pvpanic.js'
import { ResetControl } from '../../../lib/devices/reset-control.js'

describe('I8042', () => {
  test('0xfe resets, nothing else does, and the status reads 0', () => {
    let resets = 0
    const i8042 = new I8042(() => resets++)
    const data = Uint8Array.of(0xaa, 0xaa)
    i8042.read(0, data)
    expect([...data]).toEqual([0, 0])
    for (let command = 0; command < 0xfe; command++) i8042.write(0, Uint8Array.of(command))
    i8042.write(0, Uint8Array.of(0xff))
    expect(resets).toBe(0)
    i8042.write(0, Uint8Array.of(0xfe))
    expect(resets).toBe(1)
  })
})

describe('ResetControl', () => {
  test('a byte with RST_CPU at 0xcf9 resets, and neither another one nor a PCI configuration address', () => {
    let resets = 0
    const ports = new Bus()
    ports.add(0xcf8, 4, new ResetControl(() => resets++))
    ports.write(0xcf8, Uint8Array.of(0, 0xff, 0, 0x80))
    ports.write(0xcf9, Uint8Array.of(0xff, 0xff))
    for (const at of [0xcf8, 0xcfa, 0xcfb]) ports.write(at, Uint8Array.of(0xff))
    ports.write(0xcf9, Uint8Array.of(2))
    expect(resets).toBe(0)
    ports.write(0xcf9, Uint8Array.of(6))
    expect(resets).toBe(1)
  })

  test('reads as a register that can be written, in a bus without PCI', () => {
    const device = new ResetControl(() => {})
    const read = (offset: number, length: number) => {
      const data = new Uint8Array(length)
      device.read(offset, data)
      return [...data]
    }
    expect(read(1, 1)).toEqual([0])
    expect(read(0, 4)).toEqual([0xff, 0xff, 0xff, 0xff])
    expect(read(0, 1)).toEqual([0xff])
  })
})

describe('DebugExit', () => {
  test.each([
    [[0], 1],
    [[0x10], 0x21],
    [[0x7f, 0, 0, 0], 0xff],
    [[0x80], 1],
  ])('%j ends with status %d', (bytes, status) => {
    const statuses: number[] = []
    new DebugExit(code => statuses.push(code)).write(0, Uint8Array.from(bytes))
    expect(statuses).toEqual([status])
  })

  test('reads 0', () => {
    const data = Uint8Array.of(0xff)
    new DebugExit(() => {}).read(0, data)
    expect(data[0]).toBe(0)
  })
})

describe('PvPanic', () => {
  test('offers both events, and tells which one came', () => {
    const events: PanicEvent[] = []
    const device = new PvPanic(event => events.push(event))
    const data = new Uint8Array(1)
    device.read(0, data)
    expect(data[0]).toBe(3)
    for (const value of [0, 1, 2, 3, 4, 0xff]) device.write(0, Uint8Array.of(value))
    expect(events).toEqual(['panicked', 'crash-loaded', 'crash-loaded', 'crash-loaded'])
  })
})

describe('AcpiPm', () => {
  function setUp() {
    const state = { sleeps: [] as number[], now: 1_000_000_000_000n, sci: false }
    const sci = {
      set(level: boolean) {
        state.sci = level
      },
    }
    const pm = new AcpiPm({ sleep: type => state.sleeps.push(type), sci, now: () => state.now })
    const read = (offset: number, size: number) => {
      const data = new Uint8Array(4)
      pm.read(offset, data.subarray(0, size))
      return new DataView(data.buffer).getUint32(0, true)
    }
    return { state, pm, read }
  }

  test('is in ACPI mode; no event ever happened; enable bits read back', () => {
    const { pm, read } = setUp()
    expect([read(0, 2), read(2, 2), read(4, 2)]).toEqual([0, 0, 1])
    pm.write(2, Uint8Array.of(0x21, 0x05))
    expect(read(2, 2)).toBe(0x0521)
    expect(read(0, 4)).toBe(0x05210000)
    pm.write(3, Uint8Array.of(0x01))
    expect(read(2, 2)).toBe(0x0121)
    pm.write(0, Uint8Array.of(0xff, 0xff))
    expect(read(0, 2)).toBe(0)
  })

  test('the power button raises the SCI once it is enabled, until its status is cleared by writing a one', () => {
    const { state, pm, read } = setUp()
    pm.pressPowerButton()
    expect([read(0, 2), state.sci]).toEqual([0x100, false])
    pm.write(3, Uint8Array.of(1))
    expect(state.sci).toBe(true)
    const saved = JSON.parse(JSON.stringify(pm.saveState()))
    pm.write(0, Uint8Array.of(0xff, 0))
    expect([read(0, 2), state.sci]).toEqual([0x100, true])
    pm.write(0, Uint8Array.of(0, 1))
    expect([read(0, 2), state.sci]).toEqual([0, false])
    pm.loadState(saved)
    expect([read(0, 2), state.sci]).toEqual([0x100, true])
    pm.reset()
    expect([read(0, 4), state.sci]).toEqual([0, false])
  })

  test('SLP_EN asks for the sleep state, and never reads back', () => {
    const { state, pm, read } = setUp()
    pm.write(4, Uint8Array.of(0x01, 5 << 2))
    expect([state.sleeps, read(4, 2)]).toEqual([[], (5 << 10) | 1])
    pm.write(4, Uint8Array.of(0x01, (5 << 2) | 0x20))
    expect([state.sleeps, read(4, 2)]).toEqual([[5], (5 << 10) | 1])
    pm.write(4, Uint8Array.of(0x20))
    expect(state.sleeps).toEqual([5])
  })

  test('the timer runs at 3.579545 MHz over 32 bits', () => {
    const { state, read } = setUp()
    expect(read(8, 4)).toBe(0)
    state.now += 1_000_000_000n
    expect(read(8, 4)).toBe(3_579_545)
    expect(read(9, 1)).toBe((3_579_545 >> 8) & 0xff)
    state.now += 1_200_000_000_000n
    expect(read(8, 4)).toBe((3_579_545 * 1201) % 2 ** 32)
  })

  test('keeps its state, and the timer goes on from it', () => {
    const { state, pm } = setUp()
    pm.write(2, Uint8Array.of(0x20, 0x01))
    state.now += 12_345_678n
    const saved = JSON.parse(JSON.stringify(pm.saveState()))
    const other = setUp()
    other.state.now = 5n
    other.pm.loadState(saved)
    expect(other.pm.saveState()).toEqual(saved)
    other.state.now += 1_000_000_000n
    expect(Math.abs(other.read(8, 4) - (saved.timer + 3_579_545))).toBeLessThanOrEqual(1)
    expect(() => pm.loadState({ ...saved, sleepType: 8 })).toThrow('sleepType')
    expect(() => pm.loadState({ ...saved, timer: 2 ** 32 })).toThrow('timer')
  })
})
