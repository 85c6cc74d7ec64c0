import { describe, expect, it } from 'vitest'
import { WakeUps } from '../../../lib/machine/wake-ups.js'

function setUp() {
  const changes: boolean[] = []
  const wakeUps = new WakeUps(patient => changes.push(patient))
  return {
    changes,
    wakeUps,
    ring(times: number, chains: number) {
      for (let i = 0; i < times; i++) wakeUps.rang(chains)
    },
  }
}

describe('how rings wake us', () => {
  it('is at once at first, patiently after some rings, and so as long as each finds many chains', () => {
    const { changes, ring } = setUp()
    ring(7, 1)
    expect(changes).toEqual([])
    ring(1, 1)
    expect(changes).toEqual([true])
    ring(1000, 4)
    expect(changes).toEqual([true])
  })

  it('goes by what the rings of a trial find together', () => {
    const { changes, ring } = setUp()
    ring(8, 1)
    for (let i = 0; i < 10; i++) {
      ring(3, 1)
      ring(1, 13)
    }
    expect(changes).toEqual([true])
    ring(3, 1)
    ring(1, 12)
    expect(changes).toEqual([true, false])
  })

  it('is tried ever more seldom where it does not pay, but again and again', () => {
    const { changes, wakeUps } = setUp()
    const tried: number[] = []
    let given = 0
    for (let ring = 1; ring <= 6000; ring++) {
      wakeUps.rang(1)
      if (changes.length === given) continue
      given = changes.length
      if (changes.at(-1)) tried.push(ring)
    }
    const waits = tried.map((ring, i) => ring - (tried[i - 1] ?? -4) - 4)
    expect(waits).toEqual([8, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024, 1024])
  })

  it('is tried soon again after it has paid', () => {
    const { changes, ring } = setUp()
    for (let i = 0; i < 4; i++) ring(2000, 1)
    while (!changes.at(-1)) ring(1, 1)
    ring(4, 32)
    ring(4, 1)
    expect(changes.at(-1)).toBe(false)
    ring(7, 1)
    expect(changes.at(-1)).toBe(false)
    ring(1, 1)
    expect(changes.at(-1)).toBe(true)
  })

  it('is at once where nobody rings', () => {
    const { changes, ring, wakeUps } = setUp()
    wakeUps.rest()
    expect(changes).toEqual([])
    ring(8, 32)
    wakeUps.rest()
    wakeUps.rest()
    expect(changes).toEqual([true, false])
    ring(7, 32)
    expect(changes).toEqual([true, false])
    ring(1, 32)
    expect(changes).toEqual([true, false, true])
  })
})
