import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { FwCfg } from '../../../lib/devices/fw-cfg.js'
import { plainMemory } from '../memory/plain.js'

const FIRST = Uint8Array.of(1, 2, 3, 4, 5)
const SECOND = Uint8Array.from({ length: 300 }, (_, i) => i & 0xff)
const ERROR = 1
const READ = 2
const SKIP = 4
const SELECT = 8
const WRITE = 16

function setUp(size = 0x10000) {
  const memory = plainMemory([[0, size]])
  memory.fill(0, size, 0xee)
  const files = new Map([
    ['etc/first', FIRST],
    ['etc/second', SECOND],
  ])
  const device = new FwCfg({ memory, vcpus: 3, files })
  const select = (key: number) => device.write(0, Uint8Array.of(key & 0xff, key >> 8))
  const bytes = (count: number) =>
    Array.from({ length: count }, () => {
      const data = Uint8Array.of(0xaa)
      device.read(1, data)
      return data[0]!
    })
  const be32 = (value: number) => Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value)
  /** A transfer whose access structure lies at `at`; returns what the device leaves in its control field. */
  const dma = (control: number, length: number, address: bigint, at = 0x8000) => {
    const access = new DataView(new ArrayBuffer(16))
    access.setUint32(0, control)
    access.setUint32(4, length)
    access.setBigUint64(8, address)
    memory.write(at, new Uint8Array(access.buffer))
    device.write(4, be32(0))
    device.write(8, be32(at))
    return new DataView(memory.read(at, 4).buffer).getUint32(0)
  }
  return { memory, device, select, bytes, dma, be32 }
}

describe('FwCfg, byte by byte', () => {
  test('tells its signature, its interfaces and the number of processors', () => {
    const { select, bytes } = setUp()
    select(0)
    expect(Buffer.from(bytes(5)).toString('latin1')).toBe('QEMU\0')
    select(1)
    expect(bytes(4)).toEqual([3, 0, 0, 0])
    for (const key of [5, 0xf]) {
      select(key)
      expect(bytes(3)).toEqual([3, 0, 0])
    }
  })

  test('the directory has the size, key and name of each file, big-endian', () => {
    const { select, bytes } = setUp()
    select(0x19)
    const directory = Buffer.from(bytes(4 + 2 * 64))
    expect(directory.readUInt32BE(0)).toBe(2)
    const entries = [4, 68].map(at => ({
      size: directory.readUInt32BE(at),
      key: directory.readUInt16BE(at + 4),
      reserved: directory.readUInt16BE(at + 6),
      name: directory.toString('latin1', at + 8, directory.indexOf(0, at + 8)),
    }))
    expect(entries).toEqual([
      { size: 5, key: 0x20, reserved: 0, name: 'etc/first' },
      { size: 300, key: 0x21, reserved: 0, name: 'etc/second' },
    ])
    select(0x21)
    expect(bytes(301)).toEqual([...SECOND, 0])
  })

  test('to select begins from the start; what there is not reads 0; data cannot be written', () => {
    const { device, select, bytes } = setUp()
    select(0x20)
    expect(bytes(2)).toEqual([1, 2])
    device.write(1, Uint8Array.of(9))
    device.write(0, Uint8Array.of(9))
    expect(bytes(2)).toEqual([3, 4])
    select(0x20)
    expect(bytes(1)).toEqual([1])
    select(0x22)
    expect(bytes(2)).toEqual([0, 0])
  })

  test('names that do not fit are a bug of ours', () => {
    const files = new Map([['x'.repeat(56), FIRST]])
    expect(() => new FwCfg({ memory: plainMemory([]), vcpus: 1, files })).toThrow(RangeError)
  })
})

describe('FwCfg, by DMA', () => {
  test('its address register reads as a signature', () => {
    const { device } = setUp()
    const data = new Uint8Array(8)
    device.read(4, data)
    expect(Buffer.from(data).toString('latin1')).toBe('QEMU CFG')
    device.read(8, data.subarray(0, 4))
    expect(Buffer.from(data.subarray(0, 4)).toString('latin1')).toBe(' CFG')
  })

  test('selects and reads, zeros behind the end, and goes on where it was', () => {
    const { memory, dma, bytes } = setUp()
    expect(dma((0x20 << 16) | SELECT | READ, 3, 0x100n)).toBe(0)
    expect([...memory.read(0x100, 4)]).toEqual([1, 2, 3, 0xee])
    expect(dma(READ, 4, 0x200n)).toBe(0)
    expect([...memory.read(0x200, 5)]).toEqual([4, 5, 0, 0, 0xee])
    expect(dma((0x99 << 16) | SELECT | READ, 2, 0x300n)).toBe(0)
    expect([...memory.read(0x300, 3)]).toEqual([0, 0, 0xee])
    expect(dma((0x21 << 16) | SELECT | SKIP, 7, 0n)).toBe(0)
    expect(bytes(2)).toEqual([7, 8])
    expect(dma((0x20 << 16) | SELECT, 5, 0n)).toBe(0)
    expect(bytes(1)).toEqual([1])
  })

  test('one access of 8 bytes to its address starts it, too; the upper half of the address counts', () => {
    const { memory, device, be32 } = setUp()
    const access = Buffer.alloc(16)
    access.writeUInt32BE((0x20 << 16) | SELECT | READ, 0)
    access.writeUInt32BE(1, 4)
    access.writeUInt32BE(0x100, 12)
    memory.write(0x8000, access)
    device.write(4, Uint8Array.of(0, 0, 0, 1, ...be32(0x8000)))
    expect([...memory.read(0x100, 1)]).toEqual([0xee])
    device.write(4, Uint8Array.of(0, 0, 0, 0, ...be32(0x8000)))
    expect([...memory.read(0x100, 2)]).toEqual([1, 0xee])
  })

  test('what is refused leaves an error, and all else as it was', () => {
    const { memory, dma } = setUp()
    const select = (0x21 << 16) | SELECT
    expect(dma(select | READ, 300, 0xff00n)).toBe(ERROR) // crosses the end of memory
    expect(dma(select | READ, 1, 2n ** 64n - 1n)).toBe(ERROR)
    expect(dma(select | READ, 0xffff_ffff, 0n)).toBe(ERROR)
    expect(dma(select | WRITE, 1, 0n)).toBe(ERROR)
    expect(memory.read(0, 0x8000).every(byte => byte === 0xee)).toBe(true)
    expect(memory.read(0x8010, 0x7ff0).every(byte => byte === 0xee)).toBe(true)
  })

  test('the padding of one access is limited', () => {
    const memory = plainMemory([[0, 0x40_0000]])
    const device = new FwCfg({ memory, vcpus: 1, files: new Map() })
    const run = (length: number) => {
      const access = Buffer.alloc(16)
      access.writeUInt32BE(READ | SELECT | (0x99 << 16), 0)
      access.writeUInt32BE(length, 4)
      access.writeUInt32BE(0x1000, 12)
      memory.write(0, access)
      device.write(8, Uint8Array.of(0, 0, 0, 0))
      return memory.read(3, 1)[0]
    }
    expect([run(2 ** 20), run(2 ** 20 + 1)]).toEqual([0, ERROR])
  })
})

test('its state comes back, in the middle of an item and of an address', () => {
  const { device, select, bytes, be32 } = setUp()
  select(0x21)
  bytes(5)
  device.write(4, be32(0x12345678))
  const saved = JSON.parse(JSON.stringify(device.saveState()))
  const other = setUp()
  other.device.loadState(saved)
  expect(other.device.saveState()).toEqual(saved)
  expect(other.bytes(2)).toEqual([5, 6])
  expect(saved.dmaHigh).toBe(0x12345678)
  expect(() => device.loadState({ ...saved, selector: 0x10000 })).toThrow('selector')
  expect(() => device.loadState({ ...saved, offset: -1 })).toThrow('offset')
})

test('whatever the guest does, it neither throws nor writes where it was not told to', () => {
  const { memory, device } = setUp(0x1000)
  const size = fc.constantFrom(1, 2, 4, 8)
  const address = fc.oneof(fc.constantFrom(0, 0x800, 0xff0, 0xff8), fc.nat(0x1010), fc.nat(0xffff_ffff))
  const operation = fc.oneof(
    fc.record({ kind: fc.constant('read' as const), offset: fc.nat(11), size }),
    fc.record({ kind: fc.constant('write' as const), offset: fc.nat(11), bytes: fc.uint8Array({ maxLength: 8 }) }),
    fc.record({
      kind: fc.constant('dma' as const),
      at: address,
      control: fc.oneof(fc.nat(31), fc.nat(0xffff_ffff), fc.constantFrom(0x20000a, 0x21000a)),
      length: fc.oneof(fc.nat(400), fc.nat(0xffff_ffff)),
      high: fc.oneof(fc.constant(0), fc.nat(0xffff_ffff)),
      low: address,
    }),
    fc.record({
      kind: fc.constant('load' as const),
      selector: fc.constantFrom(0x20, 0x21),
      offset: fc.nat(Number.MAX_SAFE_INTEGER),
    }),
  )
  const big = (value: number) => Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value)
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 12 }), operations => {
      for (const op of operations) {
        if (op.kind === 'read') device.read(op.offset, new Uint8Array(Math.min(op.size, 12 - op.offset)))
        else if (op.kind === 'write') device.write(op.offset, op.bytes.subarray(0, 12 - op.offset))
        else if (op.kind === 'load') device.loadState({ ...op, dmaHigh: 0, dmaLow: 0 })
        else {
          const fits = memory.contains(op.at, 16)
          const access = Uint8Array.of(...big(op.control), ...big(op.length), ...big(op.high), ...big(op.low))
          if (fits) memory.write(op.at, access)
          const before = memory.read(0, 0x1000)
          device.write(4, big(0))
          device.write(8, big(op.at))
          const after = memory.read(0, 0x1000)
          const inAccess = (i: number) => fits && i >= op.at && i < op.at + 4
          const inTarget = (i: number) =>
            op.high === 0 && i >= op.low && i < op.low + op.length && (op.control & READ) !== 0
          const stray = after.findIndex((byte, i) => byte !== before[i] && !inAccess(i) && !(fits && inTarget(i)))
          expect(stray).toBe(-1)
        }
      }
    }),
    { numRuns: 3000 },
  )
})
