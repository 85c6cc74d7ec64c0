import fc from 'fast-check'
import { expect, it } from 'vitest'
import { PIECE_BYTES, SectorMap } from '../../../lib/storage/sector-map.js'

/** Around the edges of words and pieces. */
const sector = fc.oneof(
  fc.nat(200),
  fc.integer({ min: 8 * PIECE_BYTES - 100, max: 8 * PIECE_BYTES + 100 }),
  fc.nat(300_000),
)
const additions = fc.array(fc.tuple(sector, fc.oneof(fc.integer({ min: 1, max: 100 }), fc.constant(70_000))), {
  maxLength: 12,
})

function filled(ranges: readonly (readonly [number, number])[]) {
  const map = new SectorMap()
  const model = new Uint8Array(400_000)
  for (const [from, count] of ranges) {
    map.add(from, count)
    model.fill(1, from, from + count)
  }
  return { map, model }
}

it('has what was added, in the longest runs that there are', () => {
  fc.assert(
    fc.property(additions, sector, fc.integer({ min: 1, max: 90_000 }), (ranges, from, count) => {
      const { map, model } = filled(ranges)
      const end = from + count
      for (let at = from; at < end; ) {
        const run = map.runAt(at, end)
        expect(run.sector).toBe(at)
        for (let i = at; i < at + run.count; i++) if ((model[i] === 1) !== run.present) throw new Error(`sector ${i}`)
        at += run.count
        expect(at).toBeLessThanOrEqual(end)
        if (at < end) expect(model[at] === 1).toBe(!run.present)
      }
      const present = [...map.present()]
      expect(present.reduce((sum, run) => sum + run.count, 0)).toBe(model.reduce((sum, bit) => sum + bit, 0))
      for (const { sector, count } of present) expect(model.subarray(sector, sector + count).includes(0)).toBe(false)
      expect(map.isEmpty).toBe(!model.includes(1))
    }),
    { numRuns: 100 },
  )
})

it('is the same again from the pieces of its bitmap, and takes in another', () => {
  fc.assert(
    fc.property(additions, additions, (ranges, more) => {
      const { map } = filled(ranges)
      const copy = new SectorMap()
      for (const { offset, bytes } of map.pieces()) copy.load(offset, bytes)
      expect([...copy.present()]).toEqual([...map.present()])
      copy.addAll(filled(more).map)
      expect([...copy.present()]).toEqual([...filled([...ranges, ...more]).map.present()])
    }),
    { numRuns: 100 },
  )
})

it('gives the pieces of its bitmap in ascending order, in whatever order they came', () => {
  const map = new SectorMap()
  for (const sector of [2 ** 17, 5, 2 ** 16]) map.add(sector, 1)
  expect(map.pieces().map(({ offset }) => offset)).toEqual([0, 2 ** 13, 2 ** 14])
})
