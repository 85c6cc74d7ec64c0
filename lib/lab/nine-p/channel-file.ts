import type { BigIntStats, StatsFs } from 'node:fs'
import * as fs from 'node:fs'
import { Duplex } from 'node:stream'
import { type DirectoryEntry, Errno, type NinePFile } from './file.js'

/**
 * A byte stream to a file in the guest: what is written here is read there, and the other way round. A read waits for bytes; it gets none at
 * the end only.
 */
export class Channel extends Duplex {
  #incoming: Buffer = Buffer.alloc(0)
  #taken: (() => void) | undefined
  #ended = false
  /** Reads of the guest that wait for bytes, and writes of it that wait for room. */
  readonly #readers = new Set<() => void>()
  readonly #writers = new Set<() => void>()
  /** The client reads on until its buffer is full or there is nothing: after less than it asked for it is told the latter. */
  #short = false

  override _write(bytes: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.#incoming = bytes
    this.#taken = done
    wake(this.#readers)
  }

  override _final(done: () => void): void {
    this.#ended = true
    wake(this.#readers)
    done()
  }

  override _read(): void {
    wake(this.#writers)
  }

  /** The guest is gone. What it wrote can still be read. */
  hangUp(): void {
    this.push(null)
    this.end()
    this.#ended = true
    wake(this.#readers)
    this.#consume(this.#incoming.length)
  }

  /** The guest reads. */
  async toGuest(count: number, cancel: AbortSignal): Promise<Buffer> {
    if (this.#short) {
      this.#short = false
      return Buffer.alloc(0)
    }
    while (this.#incoming.length === 0 && !this.#ended && !cancel.aborted) {
      await new Promise<void>(resolve => {
        this.#readers.add(resolve)
        cancel.addEventListener('abort', () => resolve(), { once: true })
      })
    }
    if (cancel.aborted) throw new Errno('EINTR')
    const bytes = this.#incoming.subarray(0, count)
    this.#short = bytes.length > 0 && bytes.length < count
    this.#consume(bytes.length)
    return bytes
  }

  /** The guest writes: its write lasts until somebody here has room. */
  async fromGuest(bytes: Buffer): Promise<number> {
    if (this.readableEnded || this.destroyed) throw new Errno('EPIPE')
    if (!this.push(Buffer.from(bytes))) await new Promise<void>(resolve => this.#writers.add(resolve))
    return bytes.length
  }

  #consume(count: number): void {
    this.#incoming = this.#incoming.subarray(count)
    if (this.#incoming.length > 0) return
    const taken = this.#taken
    this.#taken = undefined
    taken?.()
  }
}

function wake(waiting: Set<() => void>): void {
  const all = [...waiting]
  waiting.clear()
  for (const resolve of all) resolve()
}

/** A directory of channels, or one of them. */
export class ChannelFile implements NinePFile {
  readonly #channels: ReadonlyMap<string, Channel>
  readonly #name: string | undefined

  constructor(channels: ReadonlyMap<string, Channel>, name?: string) {
    this.#channels = channels
    this.#name = name
  }

  stat(): BigIntStats {
    const index = this.#name === undefined ? 0 : [...this.#channels.keys()].indexOf(this.#name) + 1
    const type = index === 0 ? fs.constants.S_IFDIR | 0o700 : fs.constants.S_IFREG | 0o600
    const zero = {
      uid: 0n,
      gid: 0n,
      rdev: 0n,
      size: 0n,
      blksize: 4096n,
      blocks: 0n,
      atimeNs: 0n,
      mtimeNs: 0n,
      ctimeNs: 0n,
    }
    return { ...zero, dev: 0n, ino: BigInt(index), mode: BigInt(type), nlink: 1n, birthtimeNs: 0n } as BigIntStats
  }

  walk(name: string): ChannelFile {
    if (this.#name !== undefined || !this.#channels.has(name)) throw new Errno('ENOENT')
    return new ChannelFile(this.#channels, name)
  }

  clone(): ChannelFile {
    return new ChannelFile(this.#channels, this.#name)
  }

  read(_offset: bigint, count: number, cancel: AbortSignal): Promise<Buffer> {
    return this.#channel().toGuest(count, cancel)
  }

  write(_offset: bigint, data: Buffer): Promise<number> {
    return this.#channel().fromGuest(data)
  }

  list(): DirectoryEntry[] {
    return [...this.#channels.keys()].map(name => ({ name, stat: this.walk(name).stat() }))
  }

  /** A shell that opens one for writing truncates it: there is nothing to. */
  change(): void {}
  open(): void {}
  sync(): void {}
  close(): void {}

  statfs(): StatsFs {
    return { type: 0, bsize: 4096, blocks: 0, bfree: 0, bavail: 0, files: 0, ffree: 0 } as StatsFs
  }

  readonly readlink = unsupported
  readonly create = unsupported
  readonly mkdir = unsupported
  readonly symlink = unsupported
  readonly mknod = unsupported
  readonly link = unsupported
  readonly unlink = unsupported
  readonly rename = unsupported
  readonly move = unsupported
  readonly remove = unsupported

  #channel(): Channel {
    const channel = this.#name === undefined ? undefined : this.#channels.get(this.#name)
    if (channel === undefined) throw new Errno('EISDIR')
    return channel
  }
}

function unsupported(): never {
  throw new Errno('EPERM')
}
