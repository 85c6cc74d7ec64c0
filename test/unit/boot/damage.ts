import fc from 'fast-check'
import { expect } from 'vitest'
import { ConfigError } from '../../../lib/errors.js'

/** Cuts `image` and changes bytes of it, many times; whoever loads that may throw nothing but a ConfigError. */
export function surviveDamage(image: Uint8Array, load: (file: Uint8Array) => void, runs = 2000): void {
  const damage = fc.record({
    length: fc.oneof(fc.constant(image.length), fc.nat(image.length)),
    changes: fc.array(fc.tuple(fc.nat(image.length - 1), fc.nat(255)), { maxLength: 6 }),
  })
  fc.assert(
    fc.property(damage, ({ length, changes }) => {
      const file = image.slice(0, length)
      for (const [at, value] of changes) if (at < length) file[at] = value
      try {
        load(file)
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError)
      }
    }),
    { numRuns: runs },
  )
}
