import type { Chain } from './chain.js'
import type { ChainBuffer } from './chain-buffer.js'

/** A copy of `length` bytes from byte `from` on of what a chain has to read; it has them. */
export function readFrom({ readable }: Pick<Chain, 'readable'>, from: number, length: number): Buffer {
  const copy = Buffer.allocUnsafe(length)
  each(readable, from, length, (part, at) => copy.set(part, at))
  return copy
}

/** Writes `bytes` to a chain's writable buffers, from byte `from` on; they have room. */
export function writeTo({ writable }: Pick<Chain, 'writable'>, from: number, bytes: Uint8Array): void {
  each(writable, from, bytes.length, (part, at) => part.set(bytes.subarray(at, at + part.length)))
}

function each(
  buffers: readonly ChainBuffer[],
  from: number,
  length: number,
  visit: (part: Uint8Array, at: number) => void,
): void {
  let [skip, done] = [from, 0]
  for (const { bytes } of buffers) {
    if (done === length) break
    const part = bytes.subarray(skip, skip + length - done)
    if (part.length > 0) visit(part, done)
    done += part.length
    skip = Math.max(0, skip - bytes.length)
  }
}
