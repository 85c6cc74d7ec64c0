import { setImmediate, setTimeout } from 'node:timers/promises'
import { expect, it } from 'vitest'
import type { L1Options } from '../guests/l1.js'
import { hostExtension, L1Run, undisturbed } from './l1-run.js'

const svm = hostExtension() === 'svm'
/** In all; the vmx lab is slower. */
const MOMENTS = svm ? 1000 : 200
/** Of L2's computation, in which it is to be met. */
const PLACES = 20
const LIMIT = 900_000

/** Mostly computing: where L2 is quick, many rounds, or it would be met at its exits only. */
const long = svm ? { rounds: 1 << 21, period: 1 << 18 } : { rounds: 1 << 19, period: 1 << 16 }
const variants: L1Options[] = [
  { ...long, nestedPaging: true, interrupt: 'inject' },
  { ...long, nestedPaging: false, interrupt: 'none' },
  { ...long, nestedPaging: true, interrupt: 'apic' },
  { ...long, nestedPaging: false, interrupt: 'window' },
]

/** Between at once and some milliseconds. */
async function whenever(): Promise<void> {
  if (Math.random() < 0.25) await setImmediate()
  else await setTimeout(1 + Math.floor(Math.random() * 3))
}

it.each(variants)(
  'a random moment, again and again: nested paging $nestedPaging, interrupts: $interrupt',
  async options => {
    const expected = undisturbed(options)
    const began = performance.now()
    const seen = { moments: 0, inL2: 0, runPending: 0, ends: 0, moving: 0 }
    /** L2's counter, in R9, at those moments. */
    const counts = new Set<bigint>()
    const least = MOMENTS / variants.length
    // More, where too many fell into one place.
    const enough = () => seen.moments >= (counts.size > PLACES ? least : 4 * least)
    while (!enough()) {
      using run = new L1Run(options)
      while (!run.ended && !enough()) {
        run.start()
        await whenever()
        await run.pause()
        if (run.ended) break
        seen.moments++
        const { guestMode, runPending } = run.nestedState()
        if (guestMode) {
          seen.inL2++
          counts.add(run.vcpu.getRegs().r9)
        }
        if (runPending) seen.runPending++
        const before = performance.now()
        run.move()
        seen.moving += performance.now() - before
      }
      expect(run.finish()).toBe(expected)
      seen.ends++
    }
    const seconds = (performance.now() - began) / 1000
    console.log(
      `${seen.moments} moments, ${seen.inL2} in L2 at ${counts.size} of its counts, ${seen.runPending} with the entry pending; ` +
        `${seen.ends} runs to the end; ${seconds.toFixed(1)} s, a move ${(seen.moving / seen.moments).toFixed(1)} ms`,
    )
    expect(seen.inL2 / seen.moments).toBeGreaterThan(0.5)
    expect(counts.size).toBeGreaterThan(PLACES)
  },
  LIMIT,
)
