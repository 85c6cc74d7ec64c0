/** Smallest piece of memory taken: many small packets must not cost many times what is in them. */
const BLOCK = 4096

/** What a stream has received and nobody has read yet. */
export class ReceiveBuffer {
  #blocks: { readonly memory: Buffer; length: number }[] = []
  #length = 0

  /** Bytes that wait. */
  get length(): number {
    return this.#length
  }

  /** Adds `bytes`, which are its own from now on. */
  push(bytes: Buffer): void {
    if (bytes.length === 0) return
    this.#length += bytes.length
    const last = this.#blocks.at(-1)
    if (last && last.memory.length - last.length >= bytes.length) {
      last.memory.set(bytes, last.length)
      last.length += bytes.length
    } else if (bytes.length >= BLOCK) this.#blocks.push({ memory: bytes, length: bytes.length })
    else {
      const memory = Buffer.allocUnsafeSlow(BLOCK)
      memory.set(bytes)
      this.#blocks.push({ memory, length: bytes.length })
    }
  }

  /** Takes the first ones, as many as are together. */
  shift(): Buffer | undefined {
    const block = this.#blocks.shift()
    if (!block) return undefined
    this.#length -= block.length
    return block.memory.subarray(0, block.length)
  }

  clear(): void {
    this.#blocks = []
    this.#length = 0
  }
}
