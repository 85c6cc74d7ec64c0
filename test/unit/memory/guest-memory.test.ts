import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { GuestAddressError, GuestMemory } from '../../../lib/memory/guest-memory.js'
import { plainMemory } from './plain.js'

// 0x0-0x1000 and 0x1000-0x1800 touch; a hole; 0x4000-0x5000. Views of 0x300 bytes.
const memory = () =>
  plainMemory(
    [
      [0x4000, 0x1000],
      [0, 0x1000],
      [0x1000, 0x800],
    ],
    0x300,
  )

describe('GuestMemory', () => {
  test('sorts its regions and knows its size and end', () => {
    expect(memory().regions.map(region => region.guestAddress)).toEqual([0, 0x1000, 0x4000])
    expect(memory().size).toBe(0x2800)
    expect(memory().end).toBe(0x5000)
    expect(plainMemory([]).end).toBe(0)
  })

  test('refuses regions that overlap', () => {
    expect(() =>
      plainMemory([
        [0, 0x1001],
        [0x1000, 0x1000],
      ]),
    ).toThrow('overlap at 0x1000')
  })

  test.each([
    [0, 0x1800, true],
    [0, 0x1801, false],
    [0xfff, 2, true],
    [0x17ff, 1, true],
    [0x1800, 1, false],
    [0x3fff, 2, false],
    [0x4000, 0x1000, true],
    [0x4fff, 2, false],
    [0x5000, 0, true],
    [0x2000, 0, false],
    [-1, 1, false],
    [0, -1, false],
    [0.5, 1, false],
    [Number.NaN, 1, false],
    [2 ** 53, 1, false],
    [0, Number.POSITIVE_INFINITY, false],
  ])('contains(%d, %d) is %s', (address, length, expected) => {
    expect(memory().contains(address, length)).toBe(expected)
  })

  test('knows its views by address', () => {
    const ram = memory()
    expect(ram.views.map(({ length }) => length)).toEqual([
      ...Array(5).fill(0x300),
      0x100,
      0x300,
      0x300,
      0x200,
      ...Array(5).fill(0x300),
      0x100,
    ])
    expect([0, 0x2ff, 0x300, 0xfff, 0x1000, 0x17ff, 0x4000, 0x4fff].map(address => ram.viewAt(address))).toEqual([
      0, 0, 1, 5, 6, 8, 9, 14,
    ])
    for (const address of [-1, 0x1800, 0x3fff, 0x5000, 2 ** 53, Number.NaN]) expect(ram.viewAt(address)).toBe(-1)
    ram.write(0x1234, Uint8Array.of(99))
    const index = ram.viewAt(0x1234)
    expect(ram.views[index]![0x1234 - ram.viewStarts[index]!]).toBe(99)
  })

  test('knows whether anybody wants to know of what is written', () => {
    const region = { guestAddress: 0, size: 1, chunks: [new Uint8Array(1)] }
    const of = (more: object) => new GuestMemory([{ ...region, ...more }]).logsDirty
    expect(of({})).toBe(false)
    expect(of({ logsDirty: true })).toBe(false)
    expect(of({ markWritten() {} })).toBe(true)
    expect(of({ markWritten() {}, logsDirty: true })).toBe(true)
    expect(of({ markWritten() {}, logsDirty: false })).toBe(false)
  })

  test('what is written is read back, across views and regions', () => {
    const ram = memory()
    const bytes = Uint8Array.from({ length: 0x1700 }, (_, i) => i % 251)
    ram.write(0x80, bytes)
    expect(ram.read(0x80, bytes.length)).toEqual(bytes)
    expect(ram.read(0x7f, 1)).toEqual(Uint8Array.of(0))
    expect(ram.parts(0x80, bytes.length).reduce((sum, part) => sum + part.length, 0)).toBe(bytes.length)
  })

  test('fill touches its range and nothing else', () => {
    const ram = memory()
    ram.fill(0xffe, 4, 7)
    expect([...ram.read(0xffd, 6)]).toEqual([0, 7, 7, 7, 7, 0])
  })

  test('a view is the memory itself, and stays within one chunk', () => {
    const ram = memory()
    ram.view(0x10, 4).set([1, 2, 3, 4])
    expect([...ram.read(0x10, 4)]).toEqual([1, 2, 3, 4])
    expect(() => ram.view(0x2ff, 2)).toThrow('crosses a boundary')
    expect(() => ram.view(0xfff, 2)).toThrow('crosses a boundary')
    expect(() => ram.view(0x4fff, 2)).toThrow(GuestAddressError)
  })

  test('a length beyond memory is refused before anything is allocated or written', () => {
    const ram = memory()
    expect(() => ram.read(0, 2 ** 45)).toThrow(GuestAddressError)
    expect(() => ram.write(0x17ff, Uint8Array.of(1, 2))).toThrow(GuestAddressError)
    expect([...ram.read(0x17ff, 1)]).toEqual([0])
    expect(() => ram.parts(0x17ff, 2)).toThrow('0x17ff+0x2: not in guest memory')
  })

  test('memory that was closed is refused', () => {
    const chunk = new Uint8Array(0x1000)
    const ram = new GuestMemory([{ guestAddress: 0, size: 0x1000, chunks: [chunk] }])
    structuredClone(chunk.buffer, { transfer: [chunk.buffer] })
    expect(() => ram.read(0, 1)).toThrow('closed')
    expect(() => ram.view(0, 1)).toThrow(GuestAddressError)
  })

  test('an access of no bytes gives none', () => {
    expect(memory().view(0x5000, 0)).toHaveLength(0)
    expect(memory().read(0x1800, 0)).toHaveLength(0)
    expect(memory().parts(0, 0)).toEqual([])
  })

  test('whatever is asked for, it is memory or a GuestAddressError', () => {
    const ram = memory()
    const number = fc.oneof(fc.integer({ min: -10, max: 0x6000 }), fc.double(), fc.maxSafeInteger())
    fc.assert(
      fc.property(number, number, (address, length) => {
        for (const access of [
          () => ram.read(address, length),
          () => ram.view(address, length),
          () => ram.parts(address, length),
        ]) {
          try {
            access()
            expect(ram.contains(address, length)).toBe(true)
          } catch (error) {
            expect(error).toBeInstanceOf(GuestAddressError)
          }
        }
      }),
    )
  })
})
