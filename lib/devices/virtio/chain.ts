import type { ChainBuffer } from './chain-buffer.js'

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
