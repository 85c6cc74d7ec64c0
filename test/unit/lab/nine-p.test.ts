import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { Channel, ChannelFile } from '../../../lib/lab/nine-p/channel-file.js'
import { HostFile } from '../../../lib/lab/nine-p/host-file.js'
import { NinePServer } from '../../../lib/lab/nine-p/server.js'
import { Reader, RLERROR, T, Writer } from '../../../lib/lab/nine-p/wire.js'

const { EROFS, ELOOP, ENOENT, EINVAL, EBADF, EINTR, EPERM } = constants.errno
const O_RDWR = 2
const NOFID = 0xffffffff

/** The guest's side: sends requests, gives what is in the replies, throws an error's number. */
class Client {
  readonly #socket: Socket
  #rest = Buffer.alloc(0)
  readonly #waiting = new Map<number, (reply: Reader) => void>()
  readonly closed: Promise<void>
  /** Tags, in the order of the replies. */
  readonly replied: number[] = []
  #tag = 0

  constructor(port: number) {
    this.#socket = connect(port, '127.0.0.1')
    this.#socket.on('error', () => {})
    this.closed = new Promise(resolve => this.#socket.once('close', () => resolve()))
    this.#socket.on('data', bytes => {
      this.#rest = Buffer.concat([this.#rest, bytes])
      while (this.#rest.length >= 4 && this.#rest.length >= this.#rest.readUInt32LE(0)) {
        const size = this.#rest.readUInt32LE(0)
        const reply = new Reader(Buffer.from(this.#rest.subarray(0, size)))
        this.#rest = this.#rest.subarray(size)
        this.replied.push(reply.tag)
        this.#waiting.get(reply.tag)?.(reply)
      }
    })
  }

  send(bytes: Buffer): void {
    this.#socket.write(bytes)
  }

  end(): void {
    this.#socket.destroy()
  }

  /** The tag of the request that was sent last. */
  get tag(): number {
    return this.#tag
  }

  call(type: number, fill: (writer: Writer) => Writer = writer => writer): Promise<Reader> {
    const tag = ++this.#tag
    this.send(fill(new Writer()).finish(type, tag))
    return new Promise((resolve, reject) => {
      this.#waiting.set(tag, reply => {
        if (reply.type === RLERROR) reject(reply.u32())
        else resolve(reply)
      })
    })
  }

  attach(fid: number, name: string): Promise<Reader> {
    return this.call(T.attach, w => w.u32(fid).u32(NOFID).string('').string(name).u32(0))
  }

  async walk(from: number, to: number, ...names: string[]): Promise<number> {
    const reply = await this.call(T.walk, w => {
      w.u32(from).u32(to).u16(names.length)
      for (const name of names) w.string(name)
      return w
    })
    return reply.u16()
  }

  open(fid: number, flags = 0): Promise<Reader> {
    return this.call(T.lopen, w => w.u32(fid).u32(flags))
  }

  async read(fid: number, offset: number, count: number): Promise<string> {
    const reply = await this.call(T.read, w => w.u32(fid).u64(BigInt(offset)).u32(count))
    return reply.bytes(reply.u32()).toString('latin1')
  }

  async write(fid: number, offset: number, data: string): Promise<number> {
    const bytes = Buffer.from(data)
    const reply = await this.call(T.write, w => w.u32(fid).u64(BigInt(offset)).u32(bytes.length).bytes(bytes))
    return reply.u32()
  }

  async names(fid: number, count: number): Promise<string[]> {
    const names: string[] = []
    for (let offset = 0n; ; ) {
      const reply = await this.call(T.readdir, w => w.u32(fid).u64(offset).u32(count))
      let left = reply.u32()
      if (left === 0) return names
      while (left > 0) {
        reply.bytes(13)
        offset = reply.u64()
        reply.u8()
        const name = reply.string()
        names.push(name)
        left -= 24 + name.length
      }
    }
  }
}

let directory: string
let server: NinePServer
let client: Client
const channel = new Map<string, Channel>()

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'nine-p-'))
  channel.set('stdin', new Channel())
  server = await NinePServer.listen(name => {
    if (name === 'secret/rw') return HostFile.attach(directory, true)
    if (name === 'secret/ro') return HostFile.attach(directory, false)
    return name === 'secret/channels' ? new ChannelFile(channel) : undefined
  })
  client = new Client(server.port)
  const version = await client.call(T.version, w => w.u32(1 << 20).string('9P2000.L'))
  expect([version.u32(), version.string()]).toEqual([512_000, '9P2000.L'])
})
afterEach(() => {
  client.end()
  server.close()
  rmSync(directory, { recursive: true })
})

const file = (name: string) => join(directory, name)

test('a file is walked to, read and written, at any place', async () => {
  mkdirSync(file('sub'))
  writeFileSync(file('sub/é'), '0123456789')
  await client.attach(0, 'secret/rw')
  const name = Buffer.from('é').toString('latin1')
  expect(await client.walk(0, 1, 'sub', name)).toBe(2)
  await client.open(1, O_RDWR)
  expect(await client.read(1, 3, 4)).toBe('3456')
  expect(await client.read(1, 10, 4)).toBe('')
  expect(await client.write(1, 8, 'xyz')).toBe(3)
  expect(readFileSync(file('sub/é'), 'utf8')).toBe('01234567xyz')
})

test('entries are made, renamed with all that is open below them, and removed', async () => {
  await client.attach(0, 'secret/rw')
  await client.call(T.mkdir, w => w.u32(0).string('a').u32(0o755).u32(0))
  await client.walk(0, 1, 'a')
  await client.call(T.lcreate, w => w.u32(1).string('f').u32(O_RDWR).u32(0o640).u32(0))
  await client.write(1, 0, 'text')
  await client.walk(0, 2, 'a', 'f')
  await client.call(T.renameat, w => w.u32(0).string('a').u32(0).string('b'))
  expect(readFileSync(file('b/f'), 'utf8')).toBe('text')
  expect(statSync(file('b/f')).mode & 0o777).toBe(0o640)
  await client.open(2)
  expect(await client.read(2, 0, 9)).toBe('text')
  await client.call(T.unlinkat, w => w.u32(0).string('b').u32(0x200)).catch(errno => expect(errno).toBe(39))
  await client.walk(0, 3, 'b')
  await client.call(T.unlinkat, w => w.u32(3).string('f').u32(0))
  await client.call(T.unlinkat, w => w.u32(0).string('b').u32(0x200))
  expect(await client.names(0, 4096)).toEqual(['.', '..'])
  // What is open stays readable, as on any file system.
  expect(await client.read(2, 0, 9)).toBe('text')
})

test('a directory larger than one reply is listed whole', async () => {
  const names = Array.from({ length: 300 }, (_, index) => `entry-${index}`)
  for (const name of names) writeFileSync(file(name), '')
  await client.attach(0, 'secret/ro')
  expect((await client.names(0, 1000)).sort()).toEqual(['.', '..', ...names].sort())
})

test('attributes are those of the file, and can be changed', async () => {
  writeFileSync(file('f'), 'x'.repeat(5000))
  await client.attach(0, 'secret/rw')
  await client.walk(0, 1, 'f')
  // mode, size and mtime, which is given
  const change = (w: Writer) =>
    w
      .u32(1)
      .u32(1 | 8 | 0x20 | 0x100)
      .u32(0o600)
      .u32(0)
      .u32(0)
      .u64(7n)
  await client.call(T.setattr, w => change(w).u64(0n).u64(0n).u64(1_000_000n).u64(0n))
  const stat = statSync(file('f'))
  expect([stat.size, stat.mode & 0o777, stat.mtimeMs]).toEqual([7, 0o600, 1_000_000_000])
  const reply = await client.call(T.getattr, w => w.u32(1).u64(0x7ffn))
  reply.bytes(8 + 13)
  expect(reply.u32()).toBe(stat.mode)
  reply.bytes(8 + 16)
  expect(reply.u64()).toBe(7n)
})

test('a tree that is read-only is left alone', async () => {
  writeFileSync(file('f'), 'text')
  await client.attach(0, 'secret/ro')
  await client.walk(0, 1, 'f')
  const tries = [
    client.open(1, O_RDWR),
    client.open(1, 0o1000),
    client.call(T.mkdir, w => w.u32(0).string('d').u32(0o755).u32(0)),
    client.call(T.symlink, w => w.u32(0).string('l').string('/').u32(0)),
    client.call(T.mknod, w => w.u32(0).string('n').u32(0o100644).u32(0).u32(0).u32(0)),
    client.call(T.unlinkat, w => w.u32(0).string('f').u32(0)),
    client.call(T.renameat, w => w.u32(0).string('f').u32(0).string('g')),
    client.call(T.link, w => w.u32(0).u32(1).string('g')),
    client.call(T.setattr, w => w.u32(1).u32(8).bytes(Buffer.alloc(52))),
  ]
  for (const result of await Promise.allSettled(tries)) expect(result).toMatchObject({ reason: EROFS })
  expect(readFileSync(file('f'), 'utf8')).toBe('text')
})

test('nothing outside a writable tree is reached', async () => {
  const outside = mkdtempSync(join(tmpdir(), 'outside-'))
  try {
    writeFileSync(join(outside, 'f'), 'text')
    mkdirSync(file('d'))
    writeFileSync(file('d/f'), '')
    await client.attach(0, 'secret/rw')
    await client.walk(0, 1, 'd', 'f')
    await client.walk(0, 2, 'd')
    // Under the fids, the directory becomes a link that leads out.
    renameSync(file('d'), file('e'))
    symlinkSync(outside, file('d'))
    await expect(client.open(1, O_RDWR)).rejects.toBe(ELOOP)
    await expect(client.walk(2, 3, 'f')).rejects.toBe(ELOOP)
    await expect(client.call(T.lcreate, w => w.u32(2).string('n').u32(O_RDWR).u32(0o644).u32(0))).rejects.toBe(ELOOP)
    await expect(client.call(T.unlinkat, w => w.u32(2).string('f').u32(0))).rejects.toBe(ELOOP)
    // A link itself is a file like any other, but never followed.
    symlinkSync(join(outside, 'f'), file('l'))
    await client.walk(0, 4, 'l')
    await expect(client.open(4, O_RDWR)).rejects.toBe(EPERM)
    for (const name of ['', '.', 'a/b', '../f', 'x\0']) await expect(client.walk(0, 5, name)).rejects.toBe(EINVAL)
    expect(await client.walk(0, 6, '..', '..', 'l')).toBe(3)
    expect(readFileSync(join(outside, 'f'), 'utf8')).toBe('text')
  } finally {
    rmSync(outside, { recursive: true })
  }
})

test('who does not know a name gets nothing', async () => {
  void client.attach(0, 'guess/rw').catch(() => {})
  await client.closed
})

test.each([
  ['a size of nothing', Buffer.from([0, 0, 0, 0, 100, 0, 0])],
  ['a size of gigabytes', Buffer.from([0, 0, 0, 0x7f, 100, 0, 0])],
  ['a string that is longer than its message', new Writer().u32(0).u32(0).u16(9999).finish(T.attach, 1)],
  ['data that is longer than its message', new Writer().u32(0).finish(T.write, 1)],
])('%s costs a client its connection, and nobody else', async (_what, bytes) => {
  await client.attach(0, 'secret/rw')
  client.send(bytes)
  await client.closed
  client = new Client(server.port)
  await client.attach(0, 'secret/rw')
})

test('a fid that is not there, and a request that is not known, are errors', async () => {
  await expect(client.open(7)).rejects.toBe(EBADF)
  await expect(client.call(99)).rejects.toBe(constants.errno.EOPNOTSUPP)
  await client.attach(0, 'secret/rw')
  await expect(client.walk(0, 1, 'absent')).rejects.toBe(ENOENT)
})

test('a channel is read as it comes, and ends', async () => {
  await client.attach(0, 'secret/channels')
  await client.walk(0, 1, 'stdin')
  await client.open(1)
  const first = client.read(1, 0, 100)
  channel.get('stdin')!.write('typed')
  expect(await first).toBe('typed')
  // The client's kernel asks on for the rest of its buffer, and is to give the command what there is.
  expect(await client.read(1, 5, 95)).toBe('')
  channel.get('stdin')!.write('0123456789')
  expect(await client.read(1, 5, 4)).toBe('0123')
  expect(await client.read(1, 9, 6)).toBe('456789')
  channel.get('stdin')!.end()
  expect(await client.read(1, 15, 100)).toBe('')
  expect(await client.read(1, 15, 100)).toBe('')
})

test('what the guest writes waits until there is room for it', async () => {
  await client.attach(0, 'secret/channels')
  await client.walk(0, 1, 'stdin')
  let written = 0
  const writes = Array.from({ length: 40 }, () => client.write(1, 0, 'x'.repeat(10_000)).then(() => written++))
  await new Promise(resolve => setTimeout(resolve, 50))
  expect(written).toBeLessThan(20)
  let size = 0
  channel.get('stdin')!.on('data', bytes => {
    size += bytes.length
  })
  await Promise.all(writes)
  expect(size).toBe(400_000)
})

test('a read that waits is given up when it is flushed, and loses nothing', async () => {
  await client.attach(0, 'secret/channels')
  await client.walk(0, 1, 'stdin')
  const read = client.read(1, 0, 10)
  const refused = expect(read).rejects.toBe(EINTR)
  const tag = client.tag
  await client.call(T.flush, w => w.u16(tag))
  await refused
  // flush(9P): the reply to the request comes before the one to its flush.
  expect(client.replied.slice(-2)).toEqual([tag, client.tag])
  channel.get('stdin')!.write('kept')
  expect(await client.read(1, 0, 10)).toBe('kept')
})
