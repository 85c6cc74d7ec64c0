/** 9P2000.L, as the kernel's client speaks it (Linux: include/net/9p/9p.h, diod: protocol.md). All numbers little endian. */
export const T = {
  statfs: 8,
  lopen: 12,
  lcreate: 14,
  symlink: 16,
  mknod: 18,
  rename: 20,
  readlink: 22,
  getattr: 24,
  setattr: 26,
  xattrwalk: 30,
  xattrcreate: 32,
  readdir: 40,
  fsync: 50,
  lock: 52,
  getlock: 54,
  link: 70,
  mkdir: 72,
  renameat: 74,
  unlinkat: 76,
  version: 100,
  auth: 102,
  attach: 104,
  flush: 108,
  walk: 110,
  read: 116,
  write: 118,
  clunk: 120,
  remove: 122,
} as const

/** The reply to a request is numbered one higher; an error has one number for all. */
export const RLERROR = 7

/** size[4] type[1] tag[2] */
export const HEADER = 7

/** A message is shorter than it says. */
export class Malformed extends Error {}

/** Takes a message apart. Throws Malformed at its end. */
export class Reader {
  readonly #bytes: Buffer
  #at = HEADER

  constructor(message: Buffer) {
    this.#bytes = message
  }

  get type(): number {
    return this.#bytes.readUInt8(4)
  }

  get tag(): number {
    return this.#bytes.readUInt16LE(5)
  }

  u16(): number {
    return this.#bytes.readUInt16LE(this.#take(2))
  }

  u32(): number {
    return this.#bytes.readUInt32LE(this.#take(4))
  }

  u64(): bigint {
    return this.#bytes.readBigUInt64LE(this.#take(8))
  }

  u8(): number {
    return this.#bytes.readUInt8(this.#take(1))
  }

  /** latin1 keeps names that are not UTF-8 as they are: a path goes back to the file system as the same bytes. */
  string(): string {
    const length = this.u16()
    const at = this.#take(length)
    return this.#bytes.toString('latin1', at, at + length)
  }

  bytes(length: number): Buffer {
    const at = this.#take(length)
    return this.#bytes.subarray(at, at + length)
  }

  #take(size: number): number {
    const at = this.#at
    if (at + size > this.#bytes.length) throw new Malformed('a 9P message ends before its fields do')
    this.#at = at + size
    return at
  }
}

/** Puts a reply together. */
export class Writer {
  readonly #pieces: Buffer[] = [Buffer.alloc(HEADER)]
  #size = HEADER

  get size(): number {
    return this.#size
  }

  u8(value: number): this {
    return this.bytes(Buffer.of(value))
  }

  u16(value: number): this {
    const piece = Buffer.allocUnsafe(2)
    piece.writeUInt16LE(value)
    return this.bytes(piece)
  }

  u32(value: number): this {
    const piece = Buffer.allocUnsafe(4)
    piece.writeUInt32LE(value)
    return this.bytes(piece)
  }

  u64(value: bigint): this {
    const piece = Buffer.allocUnsafe(8)
    piece.writeBigUInt64LE(BigInt.asUintN(64, value))
    return this.bytes(piece)
  }

  string(text: string): this {
    return this.u16(text.length).bytes(Buffer.from(text, 'latin1'))
  }

  bytes(piece: Buffer): this {
    this.#pieces.push(piece)
    this.#size += piece.length
    return this
  }

  finish(type: number, tag: number): Buffer {
    const header = this.#pieces[0]!
    header.writeUInt32LE(this.#size, 0)
    header.writeUInt8(type, 4)
    header.writeUInt16LE(tag, 5)
    return Buffer.concat(this.#pieces, this.#size)
  }
}
