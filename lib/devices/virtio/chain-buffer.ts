/** A buffer of a chain, or a part of one that lies across two views: guest memory, straight. */
export class ChainBuffer {
  /** Guest-physical address of its first byte. */
  readonly address: number
  /** The view over guest memory, and where in it the buffer begins. */
  readonly chunk: Uint8Array
  readonly offset: number
  /** Bytes. */
  readonly length: number
  #bytes: Uint8Array | undefined

  constructor(address: number, chunk: Uint8Array, offset: number, length: number) {
    this.address = address
    this.chunk = chunk
    this.offset = offset
    this.length = length
  }

  /** The buffer itself, not a copy. Made when it is asked for. */
  get bytes(): Uint8Array {
    this.#bytes ??= this.chunk.subarray(this.offset, this.offset + this.length)
    return this.#bytes
  }
}
