/** Bytes of a sector: what a disk is counted in (virtio 1.2, 5.2.4). */
export const SECTOR = 512

/** Told when something is done, or why it could not be. */
export type Done = (error: Error | null) => void

/**
 * What is behind a disk: bytes that are read and written in whole sectors. Offsets and lengths are bytes, multiples of `SECTOR`, and
 * within `size`; buffers are guest memory, straight. Many requests may be under way at a time, in any order.
 */
export interface BlockStorage {
  /** Bytes. */
  readonly size: number
  readonly readonly: boolean
  /**
   * Fills the buffers if that takes neither a wait nor long, and tells whether it did. If not, their content may be
   * anything: `read` is what can say why.
   */
  readNow(buffers: readonly Uint8Array[], offset: number): boolean
  read(buffers: readonly Uint8Array[], offset: number, done: Done): void
  write(buffers: readonly Uint8Array[], offset: number, done: Done): void
  /** What was written before is on the disk when this is done. */
  flush(done: Done): void
  /** The content of the range is of no use any more. */
  discard(offset: number, length: number, done: Done): void
  /** The range reads as zeros. With `unmap` it need not take room. */
  zero(offset: number, length: number, unmap: boolean, done: Done): void
  /** Nothing is under way. */
  close(): void
}

/** The part `[from, from + length)` of what `buffers` are together. */
export function slice(buffers: readonly Uint8Array[], from: number, length: number): Uint8Array[] {
  const parts: Uint8Array[] = []
  let at = 0
  for (const buffer of buffers) {
    const start = Math.max(from - at, 0)
    const end = Math.min(from + length - at, buffer.length)
    if (start < end) parts.push(start === 0 && end === buffer.length ? buffer : buffer.subarray(start, end))
    at += buffer.length
    if (at >= from + length) break
  }
  return parts
}

export function lengthOf(buffers: readonly Uint8Array[]): number {
  let length = 0
  for (const buffer of buffers) length += buffer.length
  return length
}

/** Does `count` things at a time and tells when the last is done, with the first error. */
export function join(count: number, done: Done): Done {
  let failed: Error | null = null
  return error => {
    failed ??= error
    if (--count === 0) done(failed)
  }
}
