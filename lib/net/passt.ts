import { type ChildProcess, spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import type { PortForward } from '../config/nets.js'
import type { ChainBatch } from '../devices/virtio/chain-batch.js'
import { type NetBackend, type NetEvents, NO_OFFLOADS, type Received } from '../devices/virtio/net-backend.js'
import { ConfigError } from '../errors.js'

/** struct virtio_net_hdr_v1: there is none on the socket. */
const HEADER = 12
/** A frame's length in front of it, big-endian (QEMU: net/stream.c). */
const PREFIX = 4
/** Longer than any frame: what claims more is none. */
const FRAME_MAX = 0x20000
/** Bytes that wait for the guest until passt is made to wait; as many wait for passt until the guest is. */
const WAITING_MAX = 1 << 20
/** What it says first once it is set up: where it has its addresses from. */
const READY = /^Template interface/m
/** Milliseconds after which one that says nothing and has not ended is taken for ready; and for it to end when its socket is closed. */
const PATIENCE = 3000

/**
 * User networking by passt(1): a process beside us that makes the guest's frames sockets of this host. It needs no rights. The guest
 * has an address by DHCP, which is this host's own.
 */
export class Passt implements NetBackend {
  readonly offloads = NO_OFFLOADS
  readonly #socket: Socket
  readonly #child: ChildProcess
  readonly #ended: Promise<unknown>
  #events: NetEvents | undefined
  /** What came and is not with the guest yet. */
  #waiting: Buffer = Buffer.alloc(0)
  #drained = false

  private constructor(child: ChildProcess, ended: Promise<unknown>) {
    this.#child = child
    this.#ended = ended
    this.#socket = child.stdio[3] as Socket
  }

  /**
   * Starts passt. It ends when its socket does, so with us at the latest.
   * @param field names it in errors, as in `nets[0]`
   * @throws {ConfigError} there is none, or it refuses: says what to do
   */
  static async open(forward: readonly PortForward[], field: string): Promise<Passt> {
    for (const [index, port] of forward.entries()) await checkFree(port, `${field}.forward[${index}].host`)
    const ports = forward.flatMap(({ protocol, host, guest }) => [protocol === 'tcp' ? '-t' : '-u', `${host}:${guest}`])
    // A session of its own: a Ctrl-C on our terminal is not for it.
    const child = spawn('passt', ['--foreground', '--fd', '3', ...ports], {
      stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
      detached: true,
    })
    let said = ''
    const ended = new Promise<string>(resolve => {
      child.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message))
      child.once('close', (code, signal) => resolve(`it ended with ${signal ?? `exit code ${code}`}`))
    })
    const ready = new Promise<undefined>(resolve => {
      const timer = setTimeout(() => resolve(undefined), PATIENCE)
      void ended.then(() => clearTimeout(timer))
      child.stderr!.setEncoding('utf8').on('data', (text: string) => {
        said = (said + text).slice(-4096)
        if (!READY.test(said)) return
        clearTimeout(timer)
        resolve(undefined)
      })
    })
    const failure = await Promise.race([ended, ready])
    if (failure === undefined) return new Passt(child, ended)
    if (failure === 'ENOENT') {
      const remedy = 'install it: apt-get install passt; or use a tap'
      throw new ConfigError(
        `${field}.type`,
        'user',
        'user networking needs the program passt, which is not there',
        remedy,
      )
    }
    const lines = said.split('\n').filter(line => line !== '' && !/syslog$/.test(line))
    const problem = `passt could not start (${[...lines.slice(-3), failure].join('; ')})`
    throw new ConfigError(`${field}.type`, 'user', problem, 'see passt(1), or use a tap')
  }

  leaveToGuest(): void {}

  start(events: NetEvents): void {
    this.#events = events
    const gone = () => {
      const events = this.#events
      this.#events = undefined
      events?.gone()
    }
    this.#socket.on('data', data => this.#take(data))
    this.#socket.on('drain', () => this.#events?.writable())
    this.#socket.on('error', gone)
    this.#socket.on('close', gone)
  }

  send(frames: ChainBatch): number {
    const pieces: Buffer[] = []
    let taken = 0
    for (let length = this.#socket.writableLength; taken < frames.count && length < WAITING_MAX; taken++) {
      const parts = frames.partsOf(taken)
      if (parts.length === 0) continue
      const piece = withPrefix(parts, frames.readableLengths[taken]!)
      pieces.push(piece)
      length += piece.length
    }
    if (pieces.length > 0 && this.#socket.writable) this.#socket.write(Buffer.concat(pieces))
    return taken
  }

  receive(buffers: ChainBatch, merge: boolean): Received {
    const lengths: number[] = []
    for (let next = 0; ; ) {
      const frame = this.#next()
      if (!frame) {
        this.#drained = true
        return { lengths, more: false }
      }
      const length = HEADER + frame.length
      const used = roomFor(length, buffers, next, merge)
      if (used > 0) {
        copyBehindHeader(frame, Array.from({ length: used }, (_, i) => buffers.partsOf(next + i)).flat())
        lengths.push(length)
        next += used
      } else if (merge || next === buffers.count) return { lengths, more: true }
      this.drop()
    }
  }

  drop(): void {
    const frame = this.#next()
    if (frame) this.#waiting = this.#waiting.subarray(PREFIX + frame.length)
    if (this.#waiting.length < WAITING_MAX / 2) this.#socket.resume()
  }

  async close(): Promise<void> {
    this.#events = undefined
    this.#socket.destroy()
    const timer = setTimeout(() => this.kill(), PATIENCE)
    await this.#ended
    clearTimeout(timer)
  }

  /** @internal Ends it, as an accident does. */
  kill(): void {
    this.#child.kill('SIGKILL')
  }

  #take(data: Buffer): void {
    this.#waiting = this.#waiting.length > 0 ? Buffer.concat([this.#waiting, data]) : data
    if (this.#waiting.length >= PREFIX && this.#waiting.readUInt32BE() > FRAME_MAX) {
      this.#socket.destroy()
      return
    }
    if (this.#waiting.length > WAITING_MAX) this.#socket.pause()
    if (!this.#drained || !this.#next()) return
    this.#drained = false
    this.#events?.readable()
  }

  /** The first frame that is there as a whole. */
  #next(): Buffer | undefined {
    if (this.#waiting.length < PREFIX) return undefined
    const end = PREFIX + this.#waiting.readUInt32BE()
    return end <= this.#waiting.length ? this.#waiting.subarray(PREFIX, end) : undefined
  }
}

/** passt goes on with whatever it could bind, be that IPv6 alone: whether a port can be had is found out before. */
async function checkFree({ protocol, host }: PortForward, field: string): Promise<void> {
  try {
    if (protocol === 'tcp') {
      const server = createServer().listen(host, '0.0.0.0')
      await once(server, 'listening')
      await new Promise(resolve => server.close(resolve))
    } else {
      const socket = createSocket('udp4').bind(host)
      await once(socket, 'listening')
      await new Promise<void>(resolve => socket.close(resolve))
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EADDRINUSE') throw new ConfigError(field, host, 'another program has this port', 'give another one')
    const remedy = 'give another one; those below 1024 need CAP_NET_BIND_SERVICE'
    throw new ConfigError(field, host, `this port cannot be had (${code})`, remedy)
  }
}

/** A frame, of so many bytes with its header, as it goes over the socket. */
function withPrefix(parts: readonly Uint8Array[], length: number): Buffer {
  const piece = Buffer.allocUnsafe(PREFIX + length - HEADER)
  piece.writeUInt32BE(length - HEADER)
  let at = PREFIX - HEADER
  for (const bytes of parts) {
    const skip = Math.max(0, PREFIX - at)
    if (skip < bytes.length) piece.set(bytes.subarray(skip), at + skip)
    at += bytes.length
  }
  return piece
}

/** How many of the buffers from `first` on a frame needs: 0 where they do not suffice. */
function roomFor(length: number, buffers: ChainBatch, first: number, merge: boolean): number {
  const end = merge ? buffers.count : Math.min(first + 1, buffers.count)
  let room = 0
  for (let i = first; i < end; i++) {
    room += buffers.writableLengths[i]!
    if (room >= length) return i + 1 - first
  }
  return 0
}

/** Copies a header that says nothing, and the frame. */
function copyBehindHeader(frame: Uint8Array, parts: readonly Uint8Array[]): void {
  let at = -HEADER
  for (const part of parts) {
    if (at >= frame.length) return
    const header = Math.min(part.length, Math.max(0, -at))
    part.fill(0, 0, header)
    const from = at + header
    if (header < part.length) part.set(frame.subarray(from, from + part.length - header), header)
    at += part.length
  }
}
