import { expect, it } from 'vitest'
import { setWithDeadline } from '../../../lib/arch/x86_64/preemption-timer.js'
import type { Vcpu } from '../../../lib/kvm/vcpu.js'

/** Where the header of a VMX nested state has its flags and the deadline. */
const FLAGS = 28
const AT = 32

function armed(deadline: bigint): Uint8Array {
  const bytes = new Uint8Array(128)
  const view = new DataView(bytes.buffer)
  view.setUint32(4, 128, true)
  view.setUint32(FLAGS, 1, true)
  view.setBigUint64(AT, deadline, true)
  return bytes
}

/** The deadlines that were set by the time it is done; the TSC goes on by `step` ticks each time it is read. */
function deadlines(nested: Uint8Array, khz: number, step: bigint): bigint[] {
  let tsc = 32_000_000n
  const vcpu = {
    getTscKhz: () => khz,
    getMsrs: () => {
      tsc += step
      return [{ index: 0x10, value: tsc }]
    },
  } as unknown as Vcpu
  const set: bigint[] = []
  setWithDeadline(vcpu, nested, bytes => void set.push(new DataView(bytes.buffer).getBigUint64(AT, true)))
  return set
}

it('a deadline to come stays, and one that has passed comes within a millisecond', () => {
  expect(deadlines(armed(5_000_000n), 3_200_000, 32n)).toEqual([5_000_000n])
  expect(deadlines(armed(7n), 3_200_000, 32n)).toEqual([1_000_001n + 100_001n])
})

it('it is set again where it passed on the way, and ends however slow the TSC is', () => {
  const [first, second, ...more] = deadlines(armed(7n), 320, 32n * 15n)
  expect([second! > first!, more]).toEqual([true, []])
  expect(deadlines(armed(7n), 1, 32n).length).toBeLessThan(4)
})

it('a state without one is set as it is', () => {
  const nested = armed(7n)
  new DataView(nested.buffer).setUint32(FLAGS, 0, true)
  expect(deadlines(nested, 3_200_000, 32n)).toEqual([7n])
})
