import { expect, it } from 'vitest'
import { savedBytes, savedIntegers } from '../../../lib/devices/device.js'

const limits = { a: 3 }

it('a saved state that can change is checked each time', () => {
  const state = { a: 1, bytes: [1, 2] }
  expect(savedIntegers(state, limits)).toEqual({ a: 1 })
  expect(savedBytes(state, 'bytes', 2)).toEqual([1, 2])
  state.a = 4
  state.bytes.push(3)
  expect(() => savedIntegers(state, limits)).toThrow(/a must be an integer from 0 to 3/)
  expect(() => savedBytes(state, 'bytes', 2)).toThrow(/bytes must be a list of at most 2 bytes/)
})

it('a frozen one is checked once, against the same limits', () => {
  const state = Object.freeze({ a: 3, bytes: Object.freeze([1, 2]) })
  for (const _ of [1, 2]) {
    expect(savedIntegers(state, limits)).toMatchObject({ a: 3 })
    expect(savedBytes(state, 'bytes', 2)).toEqual([1, 2])
  }
  expect(() => savedIntegers(state, { a: 2 })).toThrow(/from 0 to 2/)
  expect(() => savedBytes(state, 'bytes', 1)).toThrow(/at most 1 bytes/)
})
