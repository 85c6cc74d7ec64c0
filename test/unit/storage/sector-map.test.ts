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
  const model = new Set<number>()
  for (const [from, count] of ranges) {
    map.add(from, count)
    for (let i = from; i < from + count; i++) model.add(i)
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
        for (let i = at; i < at + run.count; i++) if (model.has(i) !== run.present) throw new Error(`sector ${i}`)
        at += run.count
        expect(at).toBeLessThanOrEqual(end)
        if (at < end) expect(model.has(at)).toBe(!run.present)
      }
      const present = [...map.present()]
      expect(present.reduce((sum, run) => sum + run.count, 0)).toBe(model.size)
      for (const run of present)
        for (let i = 0; i < run.count; i++) if (!model.has(run.sector + i)) throw new Error(`${i}`)
      expect(map.isEmpty).toBe(model.size === 0)
    }),
    { numRuns: 200 },
  )
})

it('is the same again from the pieces of its bitmap, each given once', () => {
  fc.assert(
    fc.property(additions, ranges => {
      const { map } = filled(ranges)
      const copy = new SectorMap()
      for (const { offset, bytes } of map.takeChanged()) copy.load(offset, bytes)
      expect([...copy.present()]).toEqual([...map.present()])
      expect(map.takeChanged()).toEqual([])
    }),
    { numRuns: 100 },
  )
})
