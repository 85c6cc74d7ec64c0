import { writeSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'

/** So many bytes may be on their way to the file. */
const IN_FLIGHT = 2 ** 23
/** Up to this many bytes a hop to another thread and back costs more than the write. */
const SMALL = 2 ** 16
/** A small write that takes longer has met a disk that cannot follow: the next ones go by the other threads. */
const SLOW_MS = 10
const AFTER_SLOW = 64

/** Writes to a file at any place, several at once, without holding up the event loop. */
export class SparseFile {
  readonly #file: FileHandle
  readonly #writes = new Set<Promise<void>>()
  #inFlight = 0
  #error: unknown
  /** How many small writes still go by the other threads. */
  #detour = 0
  /** Bytes written so far. */
  written = 0

  constructor(file: FileHandle) {
    this.#file = file
  }

  /** Resolves when there is room for more; the bytes must stay as they are until `drain`. */
  write(bytes: Uint8Array, position: number): Promise<void> | undefined {
    if (this.#error) throw this.#error
    this.written += bytes.length
    if (bytes.length <= SMALL && --this.#detour < 0) {
      const started = performance.now()
      for (let at = 0; at < bytes.length; ) {
        at += writeSync(this.#file.fd, bytes, at, bytes.length - at, position + at)
      }
      this.#detour = performance.now() - started > SLOW_MS ? AFTER_SLOW : 0
      return undefined
    }
    this.#inFlight += bytes.length
    const write = this.#write(bytes, position)
      .catch(error => {
        this.#error ??= error
      })
      .finally(() => {
        this.#inFlight -= bytes.length
        this.#writes.delete(write)
      })
    this.#writes.add(write)
    return this.#inFlight > IN_FLIGHT ? this.#room() : undefined
  }

  /** Waits for all writes, and throws what one of them failed with. */
  async drain(): Promise<void> {
    while (this.#writes.size > 0) await Promise.race(this.#writes)
    if (this.#error) throw this.#error
  }

  async #room(): Promise<void> {
    while (this.#inFlight > IN_FLIGHT) await Promise.race(this.#writes)
    if (this.#error) throw this.#error
  }

  async #write(bytes: Uint8Array, position: number): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      at += (await this.#file.write(bytes, at, bytes.length - at, position + at)).bytesWritten
    }
  }
}
