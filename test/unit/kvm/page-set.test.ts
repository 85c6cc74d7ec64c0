import fc from 'fast-check'
import { expect, it } from 'vitest'
import { PageSet } from '../../../lib/kvm/page-set.js'

const PAGE = 4096
/** Ten and a half of the blocks that are compared at once. */
const PAGES = 10.5 * 32 * 256

/** Pages of the set, by its ranges. */
function pagesOf(set: PageSet): number[] {
  return set.ranges().flatMap(({ offset, length }) => {
    return Array.from({ length: length / PAGE }, (_, i) => offset / PAGE + i)
  })
}

const runs = fc.array(
  fc.record({
    // Often where words and blocks meet.
    page: fc.oneof(fc.nat(PAGES - 1), fc.constantFrom(0, 31, 32, 32767, 32768, 65535, 65536, PAGES - 1)),
    pages: fc.oneof(fc.integer({ min: 1, max: 70 }), fc.constantFrom(1, 32, 1024)),
  }),
  { maxLength: 6 },
)

function filled(list: readonly { page: number; pages: number }[]): { set: PageSet; model: Set<number> } {
  const set = new PageSet(PAGES * PAGE)
  const model = new Set<number>()
  for (const { page, pages } of list) {
    const count = Math.min(pages, PAGES - page)
    set.add(page * PAGE, count * PAGE)
    for (let i = 0; i < count; i++) model.add(page + i)
  }
  return { set, model }
}

const sorted = (model: Set<number>) => [...model].sort((a, b) => a - b)

it('tells of the pages that were added, in ranges that do not touch', () => {
  fc.assert(
    fc.property(runs, list => {
      const { set, model } = filled(list)
      expect(pagesOf(set)).toEqual(sorted(model))
      expect(set.count).toBe(model.size)
      const ranges = set.ranges()
      for (const [i, { offset, length }] of ranges.entries()) {
        expect(length).toBeGreaterThan(0)
        if (i > 0) expect(offset).toBeGreaterThan(ranges[i - 1]!.offset + ranges[i - 1]!.length)
      }
    }),
    { numRuns: 100 },
  )
})

it('takes over the pages of another', () => {
  fc.assert(
    fc.property(runs, runs, (a, b) => {
      const [one, other] = [filled(a), filled(b)]
      one.set.addAll(other.set)
      expect(pagesOf(one.set)).toEqual(sorted(new Set([...one.model, ...other.model])))
      expect(pagesOf(other.set)).toEqual(sorted(other.model))
      one.set.clear()
      expect(one.set.ranges()).toEqual([])
    }),
    { numRuns: 100 },
  )
})

it('has the bits where the dirty log has them', () => {
  const set = new PageSet(PAGES * PAGE)
  set.bytes[0] = 0b101
  set.bytes[4096] = 1
  expect(pagesOf(set)).toEqual([0, 2, 32768])
})
