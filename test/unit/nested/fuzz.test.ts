import { expect, it } from 'vitest'
import { NestedStateError } from '../../../lib/errors.js'
import { describeNested } from '../../../lib/nested/describe.js'
import { diffNested, toJson } from '../../../lib/nested/diff.js'
import { checkNestedState } from '../../../lib/nested/rules.js'
import { decodeNestedState, encodeNestedState } from '../../../lib/nested/state.js'
import { captured } from './captured.js'
import {
  svmGuestMode,
  svmState,
  svmVcpu,
  VMCS_PA,
  VMXON_PA,
  vmcs12,
  vmxGuestMode,
  vmxState,
  vmxVcpu,
} from './states.js'

/** Xorshift: the same states each time, and fast enough for a hundred thousand. */
function random(seed: number): (below: number) => number {
  let x = seed
  return below => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return (x >>> 0) % below
  }
}

const { states, memory } = captured('svm')
const { context } = states.find(({ name }) => name === 'l2')!
const seeds: readonly Uint8Array[] = [
  vmxState(),
  vmxState({ vmxonPa: VMXON_PA }),
  vmxState({ vmxonPa: VMXON_PA, vmcs12Pa: VMCS_PA, data: vmcs12() }),
  vmxGuestMode(),
  svmState(0),
  svmGuestMode(),
  ...states.map(({ nested }) => nested),
]

/** A few changes: bits, bytes, words that are small, large or all ones, and sometimes another length. */
function mutated(next: (below: number) => number): Uint8Array {
  const seed = seeds[next(seeds.length)]!
  const bytes = next(20) === 0 ? seed.slice(0, next(seed.length + 1)) : seed.slice()
  const view = new DataView(bytes.buffer)
  // Half of the changes go to the header.
  const place = (width: number) => next(Math.max(1, (next(2) ? Math.min(128, bytes.length) : bytes.length) - width))
  for (let n = next(4); n >= 0 && bytes.length > 8; n--) {
    const kind = next(4)
    if (kind === 0) bytes[place(1)]! ^= 1 << next(8)
    else if (kind === 1) bytes[place(1)] = next(256)
    else if (kind === 2) view.setUint32(place(4), [0, 1, next(9000), 0xffffffff][next(4)]!, true)
    else view.setBigUint64(place(8), BigInt(next(2 ** 31)) << BigInt(next(34)), true)
  }
  return bytes
}

it('100,000 mutated states: read or refused, in bounded time and memory', { timeout: 300_000 }, () => {
  const next = random(0x5eed)
  const before = process.memoryUsage().heapUsed
  const counts = { unreadable: 0, refused: 0, taken: 0 }
  const first = describeNested(seeds[3]!, context)
  for (let i = 0; i < 100_000; i++) {
    const bytes = mutated(next)
    const format = bytes[2] === 1 ? 'svm' : 'vmx'
    let decoded: ReturnType<typeof decodeNestedState> | undefined
    try {
      decoded = decodeNestedState(bytes)
      const size = new DataView(bytes.buffer).getUint32(4, true)
      if (Buffer.compare(encodeNestedState(decoded), bytes.subarray(0, size)) !== 0) expect.fail(`round trip of ${i}`)
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      counts.unreadable++
    }
    try {
      checkNestedState(bytes, format === 'svm' ? svmVcpu : vmxVcpu)
      counts.taken++
      if (!decoded) expect.fail(`${i} keeps the rules but cannot be read`)
    } catch (error) {
      if (!(error instanceof NestedStateError)) throw error
      counts.refused++
    }
    if (!decoded) continue
    const description = describeNested(bytes, { ...context, memory })
    if (i % 10 === 0) {
      if (JSON.stringify(toJson(description)).length > 200_000) expect.fail(`${i} is told of at length`)
      if (i % 100 === 0) diffNested(first, description)
    }
  }
  expect(counts.unreadable).toBeGreaterThan(1000)
  expect(counts.refused).toBeGreaterThan(10_000)
  expect(counts.taken).toBeGreaterThan(10_000)
  expect(process.memoryUsage().heapUsed - before).toBeLessThan(256 * 2 ** 20)
})
