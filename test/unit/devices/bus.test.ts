import { describe, expect, test } from 'vitest'
import { Bus } from '../../../lib/devices/bus.js'
import type { Device } from '../../../lib/devices/device.js'

/** Answers `base + offset` in each byte; records what is written. */
class Probe implements Device {
  readonly log: string[] = []
  readonly base: number

  constructor(base: number) {
    this.base = base
  }

  read(offset: number, data: Uint8Array): void {
    this.log.push(`r${offset}+${data.length}`)
    for (let i = 0; i < data.length; i++) data[i] = this.base + offset + i
  }

  write(offset: number, data: Uint8Array): void {
    this.log.push(`w${offset}=${[...data]}`)
  }
}

function setUp() {
  const [a, b] = [new Probe(0x10), new Probe(0x20)]
  const bus = new Bus()
  bus.add(0x104, 4, b)
  bus.add(0x100, 4, a)
  return { bus, a, b }
}

function read(bus: Bus, address: number, size: number): number[] {
  const data = new Uint8Array(size)
  bus.read(address, data)
  return [...data]
}

describe('Bus', () => {
  test('an access reaches the device, counted from its start', () => {
    const { bus, a, b } = setUp()
    expect(read(bus, 0x102, 2)).toEqual([0x12, 0x13])
    expect(read(bus, 0x104, 4)).toEqual([0x20, 0x21, 0x22, 0x23])
    bus.write(0x101, Uint8Array.of(5))
    expect(a.log).toEqual(['r2+2', 'w1=5'])
    expect(b.log).toEqual(['r0+4'])
  })

  test('what nobody claims reads all ones, and writes go nowhere', () => {
    const { bus, a, b } = setUp()
    expect(read(bus, 0xff, 1)).toEqual([0xff])
    expect(read(bus, 0x108, 4)).toEqual([0xff, 0xff, 0xff, 0xff])
    bus.write(0x108, Uint8Array.of(1, 2))
    expect([...a.log, ...b.log]).toEqual([])
    expect(read(new Bus(), 0, 2)).toEqual([0xff, 0xff])
  })

  test('an access across an edge is split by whom each byte belongs to', () => {
    const { bus, a, b } = setUp()
    expect(read(bus, 0x102, 4)).toEqual([0x12, 0x13, 0x20, 0x21])
    expect(read(bus, 0xfe, 4)).toEqual([0xff, 0xff, 0x10, 0x11])
    expect(read(bus, 0x106, 4)).toEqual([0x22, 0x23, 0xff, 0xff])
    a.log.length = b.log.length = 0
    bus.write(0x103, Uint8Array.of(7, 8))
    expect([a.log, b.log]).toEqual([['w3=7'], ['w0=8']])
  })

  test('string accesses stay at their address', () => {
    const { bus, a } = setUp()
    const data = new Uint8Array(6)
    bus.readRepeated(0x101, 2, data)
    expect([...data]).toEqual([0x11, 0x12, 0x11, 0x12, 0x11, 0x12])
    bus.writeRepeated(0x100, 1, Uint8Array.of(1, 2))
    bus.writeRepeated(0x100, 2, Uint8Array.of(3, 4))
    expect(a.log).toEqual(['r1+2', 'r1+2', 'r1+2', 'w0=1', 'w0=2', 'w0=3,4'])
  })

  test.each([
    [0x100, 1],
    [0xff, 2],
    [0x107, 1],
    [0xf0, 0x40],
  ])('a range that overlaps is refused: %d+%d', (start, length) => {
    expect(() => setUp().bus.add(start, length, new Probe(0))).toThrow('overlaps')
  })

  test('a range may start at 0', () => {
    const bus = new Bus()
    bus.add(0, 1, new Probe(0x30))
    expect(read(bus, 0, 2)).toEqual([0x30, 0xff])
  })

  test.each([
    [0, 0],
    [-1, 1],
    [0.5, 1],
    [2 ** 53, 1],
  ])('a range that is none is refused: %d+%d', (start, length) => {
    expect(() => new Bus().add(start, length, new Probe(0))).toThrow(RangeError)
  })

  test('finds every one of many devices, also above 4 GiB', () => {
    const bus = new Bus()
    const probes = Array.from({ length: 50 }, (_, i) => new Probe(i))
    for (const [i, probe] of probes.entries()) bus.add(2 ** 40 + ((i * 7) % 50) * 0x1000, 0x200, probe)
    for (const i of probes.keys()) {
      expect(read(bus, 2 ** 40 + ((i * 7) % 50) * 0x1000, 1)).toEqual([i])
      expect(read(bus, 2 ** 40 + ((i * 7) % 50) * 0x1000 + 0x200, 1)).toEqual([0xff])
    }
  })
})
