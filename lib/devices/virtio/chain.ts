import { GuestAddressError, type GuestMemory } from '../../memory/guest-memory.js'
import type { MemorySpan } from '../../memory/memory-span.js'
import { QueueError } from './queue-error.js'

/** A buffer of a chain, or a part of one that lies across two views: guest memory, straight. */
export type ChainBuffer = MemorySpan

/** A chain of descriptors: what the device is to read, then what it may write (virtio 1.2, 2.7.4.2). */
export interface Chain {
  /** The first descriptor, by which the chain is given back. */
  readonly head: number
  readonly readable: readonly ChainBuffer[]
  readonly writable: readonly ChainBuffer[]
  /** Bytes in all readable buffers. */
  readonly readableLength: number
  /** Bytes in all writable buffers. */
  readonly writableLength: number
}

const DESCRIPTOR = 16
const F_NEXT = 1
const F_WRITE = 2
const F_INDIRECT = 4
/** No chain is longer (2.7.5). */
const LENGTH_MAX = 2 ** 32

/** Follows a chain from `head` on (2.7.5). Never more steps than its table has descriptors, so a loop ends. */
export function readChain(memory: GuestMemory, table: DataView, head: number, indirect: boolean): Chain {
  const readable: ChainBuffer[] = []
  const writable: ChainBuffer[] = []
  let readableLength = 0
  let writableLength = 0
  let descriptors = table
  let index = head
  for (let steps = 0; ; steps++) {
    const count = descriptors.byteLength / DESCRIPTOR
    if (index >= count) throw new QueueError(`descriptor ${index} of a table of ${count}`)
    if (steps >= count) throw new QueueError('a chain that is longer than its table, or a loop')
    const at = index * DESCRIPTOR
    const address = addressOf(descriptors.getUint32(at, true), descriptors.getUint32(at + 4, true))
    const length = descriptors.getUint32(at + 8, true)
    const flags = descriptors.getUint16(at + 12, true)
    const next = descriptors.getUint16(at + 14, true)
    if (flags & F_INDIRECT) {
      if (!indirect) throw new QueueError('an indirect descriptor, which was not negotiated')
      if (descriptors !== table) throw new QueueError('an indirect descriptor in an indirect table')
      if (flags & F_NEXT) throw new QueueError('an indirect descriptor that goes on')
      descriptors = indirectTable(memory, address, length)
      index = 0
      // What came before it counts for the chain, but not for this table.
      steps = -1
      continue
    }
    const isWritable = (flags & F_WRITE) !== 0
    if (!isWritable && writable.length > 0) throw new QueueError('a readable buffer behind a writable one')
    if (length === 0) throw new QueueError('a buffer without bytes')
    if (readableLength + writableLength + length > LENGTH_MAX) throw new QueueError('a chain of more than 2^32 bytes')
    addBuffers(memory, isWritable ? writable : readable, address, length)
    if (isWritable) writableLength += length
    else readableLength += length
    if ((flags & F_NEXT) === 0) break
    index = next
  }
  return { head, readable, writable, readableLength, writableLength }
}

function indirectTable(memory: GuestMemory, address: number, length: number): DataView {
  if (length === 0 || length % DESCRIPTOR !== 0 || length > DESCRIPTOR * 2 ** 16) {
    throw new QueueError(`an indirect table of ${length} bytes`)
  }
  const table: MemorySpan[] = []
  addBuffers(memory, table, address, length)
  const { chunk, offset } = table[0]!
  if (table.length === 1) return new DataView(chunk.buffer, chunk.byteOffset + offset, length)
  const { buffer } = memory.read(address, length)
  return new DataView(buffer)
}

function addBuffers(memory: GuestMemory, buffers: ChainBuffer[], address: number, length: number): void {
  try {
    memory.addSpans(buffers, address, length)
  } catch (error) {
    if (error instanceof GuestAddressError) throw new QueueError(`a buffer outside memory: ${error.message}`)
    throw error
  }
}

function addressOf(low: number, high: number): number {
  // Beyond this there is no memory, and numbers are not exact.
  return high < 2 ** 21 ? high * 2 ** 32 + low : Number.MAX_SAFE_INTEGER
}
