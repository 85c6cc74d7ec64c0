import { describe, expect, it } from 'vitest'
import { WakeUps } from '../../../lib/machine/wake-ups.js'

function setUp() {
  const changes: boolean[] = []
  const wakeUps = new WakeUps(patient => changes.push(patient))
  return {
    changes,
    wakeUps,
    wake(times: number, found: number) {
      for (let i = 0; i < times; i++) wakeUps.woken(found)
    },
  }
}

describe('how this thread is woken', () => {
  it('is at once at first, patiently after some times, and so as long as there is much each time', () => {
    const { changes, wake } = setUp()
    wake(7, 1)
    expect(changes).toEqual([])
    wake(1, 1)
    expect(changes).toEqual([true])
    wake(1000, 4)
    expect(changes).toEqual([true])
  })

  it('goes by what the wake-ups of a trial find together', () => {
    const { changes, wake } = setUp()
    wake(8, 1)
    for (let i = 0; i < 10; i++) {
      wake(3, 1)
      wake(1, 13)
    }
    expect(changes).toEqual([true])
    wake(3, 1)
    wake(1, 12)
    expect(changes).toEqual([true, false])
  })

  it('is tried ever more seldom where it does not pay, but again and again', () => {
    const { changes, wakeUps } = setUp()
    const tried: number[] = []
    let given = 0
    for (let time = 1; time <= 6000; time++) {
      wakeUps.woken(1)
      if (changes.length === given) continue
      given = changes.length
      if (changes.at(-1)) tried.push(time)
    }
    const waits = tried.map((time, i) => time - (tried[i - 1] ?? -4) - 4)
    expect(waits).toEqual([8, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024, 1024])
  })

  it('is tried soon again after it has paid', () => {
    const { changes, wake } = setUp()
    for (let i = 0; i < 4; i++) wake(2000, 1)
    while (!changes.at(-1)) wake(1, 1)
    wake(4, 32)
    wake(4, 1)
    expect(changes.at(-1)).toBe(false)
    wake(7, 1)
    expect(changes.at(-1)).toBe(false)
    wake(1, 1)
    expect(changes.at(-1)).toBe(true)
  })

  it('is at once where nothing is to wake it', () => {
    const { changes, wake, wakeUps } = setUp()
    wakeUps.rest()
    expect(changes).toEqual([])
    wake(8, 32)
    wakeUps.rest()
    wakeUps.rest()
    expect(changes).toEqual([true, false])
    wake(7, 32)
    expect(changes).toEqual([true, false])
    wake(1, 32)
    expect(changes).toEqual([true, false, true])
  })
})
