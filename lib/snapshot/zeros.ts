import { PAGE_SIZE } from './format.js'

/** Zero memory is mostly many pages long: so many bytes are compared at once first. */
const BLOCK = 2 ** 16
const ZERO_BLOCK = Buffer.alloc(BLOCK)
const ZERO_PAGE = ZERO_BLOCK.subarray(0, PAGE_SIZE)

/** The runs of pages of `bytes` that are not zero, as [start, end). The last page may be shorter than others. */
export function* nonZeroRuns(bytes: Buffer): Generator<[number, number]> {
  for (let at = 0; ; ) {
    const start = skipZeros(bytes, at)
    if (start === bytes.length) return
    for (at = start + PAGE_SIZE; at < bytes.length && !isZeroPage(bytes, at); ) at += PAGE_SIZE
    at = Math.min(at, bytes.length)
    yield [start, at]
  }
}

function skipZeros(bytes: Buffer, from: number): number {
  for (let at = from; at < bytes.length; ) {
    if (isZeroBlock(bytes, at)) at += BLOCK
    else if (isZeroPage(bytes, at)) at += PAGE_SIZE
    else return at
  }
  return bytes.length
}

// The few bytes looked at first spare most pages that are not zero the call, which costs as much as a comparison.

function isZeroPage(bytes: Buffer, at: number): boolean {
  if (bytes[at] || bytes[at + 8] || bytes[at + 1] || bytes[at + 2]) return false
  const page = bytes.subarray(at, at + PAGE_SIZE)
  return page.equals(page.length === PAGE_SIZE ? ZERO_PAGE : ZERO_PAGE.subarray(0, page.length))
}

function isZeroBlock(bytes: Buffer, at: number): boolean {
  if (at + BLOCK > bytes.length) return false
  if (bytes[at] || bytes[at + PAGE_SIZE] || bytes[at + BLOCK / 2] || bytes[at + 8]) return false
  return bytes.subarray(at, at + BLOCK).equals(ZERO_BLOCK)
}
