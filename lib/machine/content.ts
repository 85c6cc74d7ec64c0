import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import type { Placement } from '../boot/memory-map.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'

/** Larger files are no kernels. */
const WHOLE_MAX = 2 ** 30

/** Files that are loaded into guest memory, opened until all is in place. */
export class ContentFiles {
  readonly #files: { readonly field: string; readonly path: string; readonly fd: number }[] = []

  /**
   * What is given as bytes, or the size of a file, which `fill` will read. A large file goes straight into guest memory.
   * @throws {ConfigError} `field`: the file cannot be opened
   */
  open(field: string, content: string | Uint8Array): Uint8Array | { readonly size: number; readonly fd: number } {
    if (typeof content !== 'string') return content
    try {
      const fd = openSync(content, 'r')
      this.#files.push({ field, path: content, fd })
      return { size: fstatSync(fd).size, fd }
    } catch (error) {
      throw unreadable(field, content, error)
    }
  }

  /**
   * Reads what `open` gave into the place that it got.
   * @throws {ConfigError} the file became shorter, or cannot be read
   */
  fill(memory: GuestMemory, content: ReturnType<ContentFiles['open']> | undefined, place: Placement | undefined): void {
    if (!content || content instanceof Uint8Array || !place) return
    let done = 0
    for (const part of memory.parts(place.address, place.size)) {
      this.#read(content.fd, part, done, place.size)
      done += part.length
    }
  }

  /**
   * The whole content, as bytes.
   * @throws {ConfigError} `field`: it cannot be read, or is too large
   */
  whole(field: string, content: string | Uint8Array): Uint8Array {
    const opened = this.open(field, content)
    if (opened instanceof Uint8Array) return opened
    if (opened.size > WHOLE_MAX) {
      throw new ConfigError(
        field,
        content,
        `it has ${opened.size} bytes, and at most ${WHOLE_MAX} are read`,
        'strip it',
      )
    }
    const bytes = new Uint8Array(opened.size)
    this.#read(opened.fd, bytes, 0, opened.size)
    return bytes
  }

  [Symbol.dispose](): void {
    for (const { fd } of this.#files.splice(0)) closeSync(fd)
  }

  #read(fd: number, part: Uint8Array, position: number, size: number): void {
    const { field, path } = this.#files.find(file => file.fd === fd)!
    for (let at = 0; at < part.length; ) {
      let count: number
      try {
        count = readSync(fd, part, at, part.length - at, position + at)
      } catch (error) {
        throw unreadable(field, path, error)
      }
      if (count === 0) {
        const problem = `it ended after ${position + at} of ${size} bytes`
        throw new ConfigError(field, path, problem, 'do not change it while it is read')
      }
      at += count
    }
  }
}

function unreadable(field: string, path: string, error: unknown): ConfigError {
  const problem = `it cannot be read (${(error as NodeJS.ErrnoException).code})`
  return new ConfigError(field, path, problem, 'give the path of a file that this user may read')
}
