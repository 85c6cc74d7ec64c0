import { gzipSync } from 'node:zlib'
import { expect, test } from 'vitest'
import { unpacked } from '../../../lib/boot/gzip.js'
import { loadKernel } from '../../../lib/boot/kernel.js'
import { ConfigError } from '../../../lib/errors.js'
import { plainMemory } from '../memory/plain.js'
import { surviveDamage } from './damage.js'
import { bzImage } from './images.js'

const packed = gzipSync(bzImage())

test('a kernel may be gzip’d', () => {
  const load = (kernel: Uint8Array) => loadKernel(plainMemory([[0, 32 << 20]]), { kernel })
  expect(load(packed)).toEqual(load(bzImage()))
  expect(unpacked(bzImage())).toEqual(bzImage())
  expect(unpacked(Uint8Array.of(0x1f))).toEqual(Uint8Array.of(0x1f))
})

test('what is damaged, or becomes too large, is a ConfigError', () => {
  const failure = (file: Uint8Array, max?: number) => {
    try {
      unpacked(file, max)
    } catch (error) {
      return error
    }
    throw new Error('this was accepted')
  }
  expect(failure(packed.subarray(0, 100))).toMatchObject({
    field: 'kernel',
    message: expect.stringContaining('cannot be unpacked'),
  })
  expect(failure(Uint8Array.of(0x1f, 0x8b))).toBeInstanceOf(ConfigError)
  const zeros = gzipSync(new Uint8Array(2 ** 20))
  expect(unpacked(zeros)).toHaveLength(2 ** 20)
  expect(failure(zeros, 2 ** 20 - 1)).toMatchObject({
    field: 'kernel',
    message: expect.stringContaining('unpacks to more than 1048575 bytes'),
  })
  surviveDamage(packed, file => unpacked(file), 500)
})
