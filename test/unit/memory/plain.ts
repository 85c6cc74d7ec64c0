import { GuestMemory } from '../../../lib/memory/guest-memory.js'

/** Guest memory in plain arrays: `[guestAddress, size]` for each region, cut into views of at most `chunk` bytes. */
export function plainMemory(ranges: readonly (readonly [number, number])[], chunk = 2 ** 31): GuestMemory {
  return new GuestMemory(
    ranges.map(([guestAddress, size]) => ({
      guestAddress,
      size,
      chunks: Array.from(
        { length: Math.ceil(size / chunk) },
        (_, i) => new Uint8Array(Math.min(chunk, size - i * chunk)),
      ),
    })),
  )
}
