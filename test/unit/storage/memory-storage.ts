import { type BlockStorage, type Done, SECTOR } from '../../../lib/storage/block-storage.js'

/** A disk in memory, whose requests are done in a later turn of the event loop, some later than others. */
export class MemoryStorage implements BlockStorage {
  readonly bytes: Uint8Array
  readonly readonly: boolean
  /** Whether reads are done at once. */
  now = false
  /** What comes next fails. */
  failing: Error | null = null
  readonly calls: string[] = []
  closed = false
  #turn = 0

  constructor(sectors: number, { readonly = false } = {}) {
    this.bytes = new Uint8Array(sectors * SECTOR)
    this.readonly = readonly
  }

  get size(): number {
    return this.bytes.length
  }

  readNow(buffers: readonly Uint8Array[], offset: number): boolean {
    if (!this.now || this.failing) return false
    this.calls.push('readNow')
    this.#fill(buffers, offset)
    return true
  }

  read(buffers: readonly Uint8Array[], offset: number, done: Done): void {
    this.#later('read', done, () => this.#fill(buffers, offset))
  }

  write(buffers: readonly Uint8Array[], offset: number, done: Done): void {
    this.#later('write', done, () => {
      let at = offset
      for (const buffer of buffers) {
        this.bytes.set(buffer, at)
        at += buffer.length
      }
    })
  }

  flush(done: Done): void {
    this.#later('flush', done, () => {})
  }

  discard(offset: number, length: number, done: Done): void {
    this.#later(`discard ${offset}+${length}`, done, () => this.bytes.fill(0, offset, offset + length))
  }

  zero(offset: number, length: number, unmap: boolean, done: Done): void {
    this.#later(`zero ${offset}+${length} ${unmap}`, done, () => this.bytes.fill(0, offset, offset + length))
  }

  close(): void {
    this.closed = true
  }

  #fill(buffers: readonly Uint8Array[], offset: number): void {
    let at = offset
    for (const buffer of buffers) {
      buffer.set(this.bytes.subarray(at, at + buffer.length))
      at += buffer.length
    }
  }

  #later(call: string, done: Done, act: () => void): void {
    this.calls.push(call)
    const error = this.failing
    const finish = () => {
      if (!error) act()
      done(error)
    }
    if (this.#turn++ % 3 === 0) setImmediate(finish)
    else process.nextTick(finish)
  }
}
