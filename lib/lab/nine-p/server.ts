import type { BigIntStats } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { type Change, Errno, errnoOf, type NinePFile } from './file.js'
import { HEADER, Malformed, Reader, RLERROR, T, Writer } from './wire.js'

/** The largest message, both ways. The client's option `msize` may ask for less. */
export const MAX_MESSAGE = 512_000
/** count[4] and the header come before the data of a reply to a read. */
const READ_HEADER = HEADER + 4

const S_IFMT = 0o170000
const S_IFDIR = 0o040000
const S_IFLNK = 0o120000
const AT_REMOVEDIR = 0x200
/** P9_GETATTR_BASIC: the fields of stat(2). */
const GETATTR_BASIC = 0x7ffn
const F_UNLCK = 2

/** Bits of `valid` in Tsetattr. */
const SETATTR = { mode: 1, uid: 2, gid: 4, size: 8, atime: 0x10, mtime: 0x20, atimeSet: 0x80, mtimeSet: 0x100 }

/** The tree behind a name that a client attaches to; undefined for a name that is not ours. */
export type Attach = (name: string) => NinePFile | undefined

/**
 * Serves trees over TCP to whoever knows the name of one: the names have to be secrets, since any process of this machine can connect.
 * It is for one guest, whose kernel is the client; a client that breaks the protocol loses its connection.
 */
export class NinePServer {
  readonly #server: Server
  readonly #connections = new Set<Socket>()

  private constructor(server: Server, attach: Attach) {
    this.#server = server
    server.on('connection', socket => {
      this.#connections.add(socket)
      socket.once('close', () => this.#connections.delete(socket))
      new Connection(socket, attach)
    })
  }

  static async listen(attach: Attach): Promise<NinePServer> {
    const server = createServer({ noDelay: true })
    const started = new NinePServer(server, attach)
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(0, '127.0.0.1', resolve)
    })
    return started
  }

  get port(): number {
    const address = this.#server.address()
    return typeof address === 'object' && address !== null ? address.port : 0
  }

  close(): void {
    this.#server.close()
    for (const socket of this.#connections) socket.destroy()
  }
}

interface Fid {
  file: NinePFile
  /** What a directory held when its reading began. */
  entries?: { name: string; stat: BigIntStats }[]
}

class Connection {
  readonly #socket: Socket
  readonly #attach: Attach
  readonly #fids = new Map<number, Fid>()
  /** Requests that wait, by their tag. */
  readonly #pending = new Map<number, AbortController>()
  readonly #devices: bigint[] = []
  #messageSize = MAX_MESSAGE
  #rest: Buffer[] = []
  #restSize = 0

  constructor(socket: Socket, attach: Attach) {
    this.#socket = socket
    this.#attach = attach
    socket.on('data', bytes => this.#receive(bytes))
    socket.on('error', () => {})
    socket.once('close', () => {
      for (const cancel of this.#pending.values()) cancel.abort()
      this.#clunkAll()
    })
  }

  #receive(bytes: Buffer): void {
    this.#rest.push(bytes)
    this.#restSize += bytes.length
    while (this.#restSize >= 4) {
      let all = this.#rest[0]!
      if (all.length < 4) all = this.#join()
      const size = all.readUInt32LE(0)
      if (size < HEADER || size > MAX_MESSAGE) {
        this.#socket.destroy()
        return
      }
      if (this.#restSize < size) return
      all = this.#join()
      this.#rest = [all.subarray(size)]
      this.#restSize -= size
      this.#serve(new Reader(all.subarray(0, size)))
    }
  }

  #join(): Buffer {
    const all = this.#rest.length === 1 ? this.#rest[0]! : Buffer.concat(this.#rest, this.#restSize)
    this.#rest = [all]
    return all
  }

  #serve(request: Reader): void {
    const { type, tag } = request
    const reply = new Writer()
    try {
      const waiting = this.#handle(type, tag, request, reply)
      if (waiting === undefined) {
        this.#send(reply.finish(type + 1, tag))
        return
      }
      waiting.then(
        () => this.#send(reply.finish(type + 1, tag)),
        error => this.#fail(tag, error),
      )
    } catch (error) {
      this.#fail(tag, error)
    }
  }

  #fail(tag: number, error: unknown): void {
    if (error instanceof Malformed) this.#socket.destroy()
    else this.#send(new Writer().u32(errnoOf(error)).finish(RLERROR, tag))
  }

  #send(message: Buffer): void {
    if (!this.#socket.destroyed) this.#socket.write(message)
  }

  /** Fills the reply, at once or when the promise resolves. */
  #handle(type: number, tag: number, request: Reader, reply: Writer): Promise<void> | undefined {
    switch (type) {
      case T.version:
        return this.#version(request, reply)
      case T.attach:
        return this.#attachTo(request, reply)
      case T.flush:
        this.#pending.get(request.u16())?.abort()
        // The reply to what was flushed has to come first, and does: abort's listeners settle it before this one's turn.
        return new Promise(resolve => setImmediate(resolve))
      case T.walk:
        return this.#walk(request, reply)
      case T.read:
        return this.#read(tag, request, reply)
      case T.write: {
        const { file } = this.#fid(request)
        const offset = request.u64()
        const written = file.write(offset, request.bytes(request.u32()))
        if (typeof written === 'number') reply.u32(written)
        else return written.then(count => void reply.u32(count))
        return undefined
      }
      case T.clunk:
      case T.remove: {
        const number = request.u32()
        const { file } = this.#get(number)
        this.#fids.delete(number)
        try {
          if (type === T.remove) file.remove()
        } finally {
          file.close()
        }
        return undefined
      }
      case T.lopen: {
        const { file } = this.#fid(request)
        file.open(request.u32())
        this.#opened(file, reply)
        return undefined
      }
      case T.lcreate: {
        const { file } = this.#fid(request)
        const [name, flags, mode] = [request.string(), request.u32(), request.u32()]
        file.create(name, flags, mode)
        this.#opened(file, reply)
        return undefined
      }
      case T.getattr:
        this.#attributes(this.#fid(request).file.stat(), reply)
        return undefined
      case T.setattr:
        this.#fid(request).file.change(readChange(request))
        return undefined
      case T.readdir:
        return this.#readdir(request, reply)
      case T.statfs: {
        const { type: kind, bsize, blocks, bfree, bavail, files, ffree } = this.#fid(request).file.statfs()
        reply.u32(kind).u32(bsize)
        for (const count of [blocks, bfree, bavail, files, ffree, 0]) reply.u64(BigInt(count))
        reply.u32(255)
        return undefined
      }
      case T.readlink:
        reply.string(this.#fid(request).file.readlink())
        return undefined
      case T.fsync:
        this.#fid(request).file.sync()
        return undefined
      case T.symlink: {
        const { file } = this.#fid(request)
        this.#made(file.symlink(request.string(), request.string()), reply)
        return undefined
      }
      case T.mknod: {
        const { file } = this.#fid(request)
        this.#made(file.mknod(request.string(), request.u32()), reply)
        return undefined
      }
      case T.mkdir: {
        const { file } = this.#fid(request)
        this.#made(file.mkdir(request.string(), request.u32()), reply)
        return undefined
      }
      case T.link: {
        const { file: directory } = this.#fid(request)
        const { file } = this.#fid(request)
        directory.link(request.string(), file)
        return undefined
      }
      case T.rename: {
        const { file } = this.#fid(request)
        const { file: to } = this.#fid(request)
        file.move(to, request.string())
        return undefined
      }
      case T.renameat: {
        const { file: from } = this.#fid(request)
        const name = request.string()
        const { file: to } = this.#fid(request)
        from.rename(name, to, request.string())
        return undefined
      }
      case T.unlinkat: {
        const { file } = this.#fid(request)
        const name = request.string()
        file.unlink(name, (request.u32() & AT_REMOVEDIR) !== 0)
        return undefined
      }
      case T.lock:
        // Only this guest has the tree, and its kernel keeps locks among its own processes.
        this.#fid(request)
        reply.u8(0)
        return undefined
      case T.getlock: {
        this.#fid(request)
        request.u8()
        const [start, length, process, client] = [request.u64(), request.u64(), request.u32(), request.string()]
        reply.u8(F_UNLCK).u64(start).u64(length).u32(process).string(client)
        return undefined
      }
      default:
        // Extended attributes among them: no ACLs and no capabilities in the guest.
        throw new Errno('EOPNOTSUPP')
    }
  }

  #version(request: Reader, reply: Writer): undefined {
    const size = request.u32()
    const version = request.string()
    this.#clunkAll()
    this.#messageSize = Math.max(4096, Math.min(size, MAX_MESSAGE))
    reply.u32(this.#messageSize).string(version === '9P2000.L' ? version : 'unknown')
  }

  #attachTo(request: Reader, reply: Writer): undefined {
    const fid = request.u32()
    request.u32()
    request.string()
    const file = this.#attach(request.string())
    if (file === undefined) {
      // Who does not know the name does not get to try another.
      this.#socket.destroy()
      throw new Errno('EACCES')
    }
    this.#put(fid, file)
    this.#qid(file.stat(), reply)
  }

  #walk(request: Reader, reply: Writer): undefined {
    const { file: from } = this.#fid(request)
    const to = request.u32()
    const count = request.u16()
    if (count > 16) throw new Errno('EINVAL')
    const names = Array.from({ length: count }, () => request.string())
    let file = from.clone()
    const qids = new Writer()
    let walked = 0
    try {
      for (const name of names) {
        const next = file.walk(name)
        file.close()
        file = next
        this.#qid(file.stat(), qids)
        walked++
      }
    } catch (error) {
      file.close()
      if (walked === 0) throw error
    }
    reply.u16(walked).bytes(qids.finish(0, 0).subarray(HEADER))
    if (walked === count) this.#put(to, file)
  }

  #read(tag: number, request: Reader, reply: Writer): Promise<void> | undefined {
    const { file } = this.#fid(request)
    const offset = request.u64()
    const count = Math.min(request.u32(), this.#messageSize - READ_HEADER)
    const cancel = new AbortController()
    const data = file.read(offset, count, cancel.signal)
    if (!(data instanceof Promise)) {
      reply.u32(data.length).bytes(data)
      return undefined
    }
    this.#pending.set(tag, cancel)
    return data.then(data => void reply.u32(data.length).bytes(data)).finally(() => this.#pending.delete(tag))
  }

  #readdir(request: Reader, reply: Writer): undefined {
    const fid = this.#fid(request)
    const offset = Number(request.u64())
    const count = Math.min(request.u32(), this.#messageSize - READ_HEADER)
    if (offset === 0 || fid.entries === undefined) fid.entries = fid.file.list()
    const data = new Writer()
    for (let index = offset; index < fid.entries.length; index++) {
      const { name, stat } = fid.entries[index]!
      // qid[13] offset[8] type[1] name[2+n]
      if (data.size - HEADER + 24 + name.length > count) break
      this.#qid(stat, data)
      data
        .u64(BigInt(index + 1))
        .u8((Number(stat.mode) & S_IFMT) >> 12)
        .string(name)
    }
    const bytes = data.finish(0, 0).subarray(HEADER)
    reply.u32(bytes.length).bytes(bytes)
  }

  #attributes(stat: BigIntStats, reply: Writer): void {
    reply.u64(GETATTR_BASIC)
    this.#qid(stat, reply)
    reply.u32(Number(stat.mode)).u32(Number(stat.uid)).u32(Number(stat.gid))
    for (const field of [stat.nlink, stat.rdev, stat.size, stat.blksize, stat.blocks]) reply.u64(field)
    for (const time of [stat.atimeNs, stat.mtimeNs, stat.ctimeNs, stat.birthtimeNs])
      reply.u64(time / 1_000_000_000n).u64(time % 1_000_000_000n)
    reply.u64(0n).u64(0n)
  }

  #opened(file: NinePFile, reply: Writer): void {
    this.#qid(file.stat(), reply)
    // No limit of its own for one read or write: the message's is enough.
    reply.u32(0)
  }

  #made(file: NinePFile, reply: Writer): void {
    this.#qid(file.stat(), reply)
    file.close()
  }

  /** type[1] version[4] path[8]; the path is unique over all file systems below the tree. */
  #qid(stat: BigIntStats, reply: Writer): void {
    const type = Number(stat.mode) & S_IFMT
    let device = this.#devices.indexOf(stat.dev)
    if (device < 0) device = this.#devices.push(stat.dev) - 1
    reply.u8(type === S_IFDIR ? 0x80 : type === S_IFLNK ? 0x02 : 0)
    reply.u32(Number(BigInt.asUintN(32, stat.mtimeNs ^ (stat.size << 8n))))
    reply.u64((BigInt(device) << 48n) ^ stat.ino)
  }

  #fid(request: Reader): Fid {
    return this.#get(request.u32())
  }

  #get(number: number): Fid {
    const fid = this.#fids.get(number)
    if (fid === undefined) throw new Errno('EBADF')
    return fid
  }

  #put(number: number, file: NinePFile): void {
    this.#fids.get(number)?.file.close()
    this.#fids.set(number, { file })
  }

  #clunkAll(): void {
    for (const { file } of this.#fids.values()) file.close()
    this.#fids.clear()
  }
}

function readChange(request: Reader): Change {
  const valid = request.u32()
  const [mode, uid, gid, size] = [request.u32(), request.u32(), request.u32(), request.u64()]
  const time = (): number => Number(request.u64()) + Number(request.u64()) / 1e9
  const [atime, mtime] = [time(), time()]
  const has = (bit: number) => (valid & bit) !== 0
  const when = (bit: number, set: number, given: number) => (has(bit) ? (has(set) ? given : 'now') : undefined)
  return {
    mode: has(SETATTR.mode) ? mode : undefined,
    uid: has(SETATTR.uid) ? uid : undefined,
    gid: has(SETATTR.gid) ? gid : undefined,
    size: has(SETATTR.size) ? size : undefined,
    atime: when(SETATTR.atime, SETATTR.atimeSet, atime),
    mtime: when(SETATTR.mtime, SETATTR.mtimeSet, mtime),
  }
}
