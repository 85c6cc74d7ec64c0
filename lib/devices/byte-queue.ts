/** Bytes that wait, first in first out; adding and taking do not depend on how many there are. */
export class ByteQueue {
  #pieces: Uint8Array[] = []
  #offset = 0
  #length = 0

  get length(): number {
    return this.#length
  }

  /** Adds a copy of `bytes`. */
  push(bytes: Uint8Array): void {
    if (bytes.length === 0) return
    this.#pieces.push(bytes.slice())
    this.#length += bytes.length
  }

  /** Takes the first byte; undefined if there is none. */
  shift(): number | undefined {
    const piece = this.#pieces[0]
    if (!piece) return undefined
    const byte = piece[this.#offset++]!
    this.#length--
    if (this.#offset === piece.length) {
      this.#pieces.shift()
      this.#offset = 0
    }
    return byte
  }

  clear(): void {
    this.#pieces = []
    this.#offset = this.#length = 0
  }

  toArray(): number[] {
    return this.#pieces.flatMap((piece, i) => [...(i === 0 ? piece.subarray(this.#offset) : piece)])
  }
}
