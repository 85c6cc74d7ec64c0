/** A piece of guest-physical memory that lies within one view. */
export class MemorySpan {
  /** Guest-physical address of its first byte. */
  readonly address: number
  /** The view over guest memory, and where in it the piece begins. */
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

  /** The piece itself, not a copy. Made when it is asked for: who only hands its place on, as to a system call, needs none. */
  get bytes(): Uint8Array {
    this.#bytes ??= this.chunk.subarray(this.offset, this.offset + this.length)
    return this.#bytes
  }
}
