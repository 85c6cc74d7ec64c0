import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { ChainBatch } from '../../../../lib/devices/virtio/chain-batch.js'
import { QueueError } from '../../../../lib/devices/virtio/queue-error.js'
import { GuestMemory, type MemoryRegion } from '../../../../lib/memory/guest-memory.js'
import { plainMemory } from '../../memory/plain.js'
import { INDIRECT, NEXT, WRITE } from './driver.js'

type Piece = readonly [address: number, length: number]

/** Regions that touch at 0x3000, and views of 0x1000 bytes. */
const memory = () =>
  plainMemory(
    [
      [0, 0x3000],
      [0x3000, 0x5000],
    ],
    0x1000,
  )

/** A table with one chain, from descriptor 0 on. */
function table(readable: readonly Piece[], writable: readonly Piece[] = []): Uint32Array {
  const pieces = [...readable, ...writable]
  return Uint32Array.from(
    pieces.flatMap(([address, length], i) => {
      const flags = (i < readable.length ? 0 : WRITE) | (i + 1 < pieces.length ? NEXT : 0)
      return [address % 2 ** 32, Math.floor(address / 2 ** 32), length, flags | ((i + 1) << 16)]
    }),
  )
}

const hex = (parts: readonly Uint8Array[]) => Buffer.concat(parts).toString('hex')

/** What a batch knows of each of its chains, with the bytes that they have now. */
const content = (batch: ChainBatch) =>
  Array.from({ length: batch.count }, (_, i) => {
    const { readable, writable } = batch.chain(i)
    const [read, write] = [readable, writable].map(buffers => hex(buffers.map(({ bytes }) => bytes)))
    expect(hex(batch.partsOf(i))).toBe(`${read}${write}`)
    return { toRead: batch.readableLengths[i], toWrite: batch.writableLengths[i], read, write }
  })

describe('a batch', () => {
  const piece = fc.tuple(fc.nat(0x7000), fc.integer({ min: 1, max: 0x1000 }))
  const act = fc.oneof(
    { weight: 4, arbitrary: fc.record({ readable: fc.array(piece), writable: fc.array(piece) }) },
    fc.record({ shift: fc.nat() }),
    fc.record({ blank: fc.nat() }),
  )

  it('has the chains that were added, in order, whatever is taken away', () => {
    const guest = memory()
    guest.write(
      0,
      Uint8Array.from({ length: 0x8000 }, (_, i) => i * 7 + (i >> 8)),
    )
    fc.assert(
      fc.property(fc.array(act, { maxLength: 200 }), acts => {
        const batch = new ChainBatch(guest)
        const model: ReturnType<typeof content> = []
        const heads: number[] = []
        for (const act of acts) {
          if ('shift' in act) {
            const count = act.shift % (model.length + 1)
            const runs = batch.counts.subarray(0, count).reduce((sum, n) => sum + n, 0)
            batch.shift(count, runs)
            model.splice(0, count)
            heads.splice(0, count)
          } else if ('blank' in act) {
            if (model.length === 0) continue
            batch.blank(act.blank % model.length)
            Object.assign(model[act.blank % model.length]!, { read: '', write: '' })
          } else if (act.readable.length + act.writable.length > 0) {
            // Each chain somewhere else in its table.
            const first = heads.length
            const words = table(act.readable, act.writable)
            for (let i = 3; i < words.length; i += 4) words[i]! += first << 16
            expect(batch.add(Uint32Array.of(...new Uint32Array(4 * first), ...words), first, false)).toBe(
              act.readable.length + act.writable.length,
            )
            heads.push(first)
            const length = (pieces: readonly Piece[]) => pieces.reduce((sum, [, n]) => sum + n, 0)
            const bytes = (pieces: readonly Piece[]) => hex(pieces.map(([address, n]) => guest.read(address, n)))
            model.push({
              toRead: length(act.readable),
              toWrite: length(act.writable),
              read: bytes(act.readable),
              write: bytes(act.writable),
            })
          }
        }
        expect(content(batch)).toEqual(model)
        expect([...batch.heads.subarray(0, batch.count)]).toEqual(heads)
      }),
    )
  })

  it('grows', () => {
    const batch = new ChainBatch(memory())
    for (let i = 0; i < 1000; i++) batch.add(table([[i, 1]], [[0x1000 + i, 2]]), 0, false)
    expect(batch.count).toBe(1000)
    expect(batch.chain(999).writable).toMatchObject([{ address: 0x13e7, offset: 0x3e7, length: 2 }])
  })

  it('has no more runs of a chain than it may, but all its bytes', () => {
    const batch = new ChainBatch(memory(), 3)
    const many = Array.from({ length: 10 }, (_, i): Piece => [i, 1])
    batch.add(table(many), 0, false)
    batch.add(table(many.slice(0, 3)), 0, false)
    batch.add(table([[0xfff, 0x6001]]), 0, false)
    expect([...batch.counts.subarray(0, 3)]).toEqual([4, 3, 4])
    expect([...batch.readableLengths.subarray(0, 3)]).toEqual([10, 3, 0x6001])
  })

  it('follows an indirect table wherever it lies', () => {
    const guest = memory()
    // Aligned, at an odd address, and across two views.
    for (const at of [0x2000, 0x2001, 0xff8]) {
      guest.write(at, new Uint8Array(table([[0x4000, 8]], [[0x5000, 9]]).buffer))
      const batch = new ChainBatch(guest)
      batch.add(Uint32Array.of(at, 0, 32, INDIRECT), 0, true)
      expect(batch.chain(0)).toMatchObject({
        readable: [{ address: 0x4000, length: 8 }],
        writable: [{ address: 0x5000, length: 9 }],
      })
    }
  })

  it('takes nothing from memory that was closed', () => {
    const bytes = new Uint8Array(0x1000)
    const batch = new ChainBatch(new GuestMemory([{ guestAddress: 0, size: 0x1000, chunks: [bytes] }]))
    batch.add(table([[0, 1]]), 0, false)
    batch.clear()
    structuredClone(0, { transfer: [bytes.buffer] })
    expect(() => batch.add(table([[0, 1]]), 0, false)).toThrow(QueueError)
  })

  it('tells of what was written, of the chains that were, and as far as they were', () => {
    const told: number[][] = []
    const region = (guestAddress: number, size: number): MemoryRegion => ({
      guestAddress,
      size,
      chunks: [new Uint8Array(size)],
      markWritten: (offset, length) => told.push([guestAddress + offset, length]),
    })
    const batch = new ChainBatch(new GuestMemory([region(0, 0x1000), region(0x1000, 0x1000)]))
    batch.add(
      table(
        [[0, 5]],
        [
          [0xff0, 0x20],
          [0x100, 9],
        ],
      ),
      0,
      false,
    )
    batch.add(table([], [[0x200, 100]]), 0, false)
    batch.add(table([], [[0x300, 100]]), 0, false)
    batch.markWritten([0x21, 7, 100], 2)
    expect(told).toEqual([
      [0xff0, 0x10],
      [0x1000, 0x10],
      [0x100, 1],
      [0x200, 7],
    ])
  })
})
