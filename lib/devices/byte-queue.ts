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

  /** Takes as many bytes as there are and as `target` has room for; returns how many. */
  take(target: Uint8Array): number {
    let done = 0
    for (let piece = this.#pieces[0]; piece && done < target.length; piece = this.#pieces[0]) {
      const part = piece.subarray(this.#offset, this.#offset + target.length - done)
      target.set(part, done)
      done += part.length
      this.#offset += part.length
      if (this.#offset < piece.length) break
      this.#pieces.shift()
      this.#offset = 0
    }
    this.#length -= done
    return done
  }

  clear(): void {
    this.#pieces = []
    this.#offset = this.#length = 0
  }

  toArray(): number[] {
    return this.#pieces.flatMap((piece, i) => [...(i === 0 ? piece.subarray(this.#offset) : piece)])
  }
}
