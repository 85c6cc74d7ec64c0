import { Duplex } from 'node:stream'
import { GuestError } from '../../../errors.js'
import { OP, SHUTDOWN, type VsockHeader } from './packet.js'
import { ReceiveBuffer } from './receive-buffer.js'

/** Bytes that the guest may send ahead of what is read here: `buf_alloc` (virtio 1.2, 5.10.6.3). */
export const BUFFER = 1 << 18
/** Payload of one packet. */
const PAYLOAD_MAX = 1 << 16

/** What a connection has of its device. */
export interface VsockCarrier {
  /** The connection may have a packet to send. */
  ready(connection: VsockConnection): void
  /** It is over: with SHUTDOWN, which the guest answers, or at once with RST; silent where the guest never heard of it. */
  over(connection: VsockConnection, how: 'silent' | 'shutdown' | 'reset'): void
}

/** A packet that a connection wants to send. */
export interface VsockSending {
  readonly op: number
  readonly flags: number
  readonly payload?: Uint8Array
}

/** Who asked for it and is not answered yet; `closed`: the guest knows nothing of it any more. */
type State = 'host-asks' | 'guest-asks' | 'open' | 'closed'

/**
 * A stream between the host and a port of the guest (virtio 1.2, 5.10.6). Its end is a half-close; destroyed before both sides have ended, it
 * is reset.
 */
export class VsockConnection extends Duplex {
  readonly guestPort: number
  readonly hostPort: number
  readonly #carrier: VsockCarrier
  #state: State
  /** Operations that are to be sent, beside data. */
  readonly #due = new Set<number>()
  #settled: { resolve(): void; reject(error: Error): void } | undefined

  // What is written here and the guest is to read.
  #chunk: Uint8Array | undefined
  #chunkDone: (() => void) | undefined
  #finishing = false
  #sent = 0
  #peerAlloc = 0
  #peerFwdCnt = 0
  #askedForCredit = false

  // What the guest sent and is to be read here.
  readonly #received = new ReceiveBuffer()
  #receivedCount = 0
  #fwdCnt = 0
  #toldFwdCnt = 0
  #reading = false
  /** What the guest has said it does not do any more: bits of SHUTDOWN. */
  #peerShutdown = 0

  /** @internal */
  constructor(carrier: VsockCarrier, ports: { guestPort: number; hostPort: number }, asks: 'host' | 'guest') {
    // Nothing is read ahead: what was read counts as taken.
    super({ allowHalfOpen: true, readableHighWaterMark: 0, writableHighWaterMark: PAYLOAD_MAX })
    this.guestPort = ports.guestPort
    this.hostPort = ports.hostPort
    this.#carrier = carrier
    this.#state = asks === 'host' ? 'host-asks' : 'guest-asks'
    // Who reads or writes is told by its streams; nobody has to.
    this.on('error', () => {})
    this.on('end', () => this.#endWithPeer())
  }

  /** @internal Asks the guest for it; resolves once it has accepted. */
  request(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#settled = { resolve, reject }
      this.#send(OP.REQUEST)
    })
  }

  /** @internal Answers the guest that asked for it. To refuse it, destroy it. */
  accept(): void {
    if (this.#state !== 'guest-asks') return
    this.#state = 'open'
    this.#send(OP.RESPONSE)
    this.#deliver()
  }

  /** @internal Whether there is a packet to send now. */
  get pending(): boolean {
    return this.#due.size > 0 || (this.#state === 'open' && this.#chunk !== undefined && this.#credit > 0)
  }

  /** @internal Takes the next packet, whose payload has at most `room` bytes. */
  next(room: number): VsockSending | undefined {
    for (const op of [OP.REQUEST, OP.RESPONSE]) if (this.#due.delete(op)) return this.#packet(op)
    const size = Math.min(room, PAYLOAD_MAX, this.#credit, this.#chunk?.length ?? 0)
    if (this.#state === 'open' && this.#chunk && size > 0) {
      const payload = this.#chunk.subarray(0, size)
      this.#chunk = this.#chunk.subarray(size)
      this.#sent = (this.#sent + size) >>> 0
      if (this.#chunk.length === 0) {
        this.#chunk = undefined
        // Not before the payload has been copied.
        process.nextTick(this.#chunkDone!)
      } else this.#needCredit()
      return { ...this.#packet(OP.RW), payload }
    }
    const [op] = this.#due
    if (op === undefined) return undefined
    this.#due.delete(op)
    const flags = op === OP.SHUTDOWN ? (this.destroyed ? SHUTDOWN.BOTH : SHUTDOWN.SEND) : 0
    return { ...this.#packet(op), flags }
  }

  /** @internal Bytes of buffer, and how many were taken out of there: fields of each packet. */
  get window(): { bufAlloc: number; fwdCnt: number } {
    return { bufAlloc: BUFFER, fwdCnt: this.#fwdCnt }
  }

  /**
   * @internal Takes a packet of the guest, whose `payload` is copied if need be. False: it does not belong here, the connection is to be
   * reset.
   */
  receive(header: VsockHeader, payload: () => Buffer): boolean {
    this.#peerAlloc = header.bufAlloc
    this.#peerFwdCnt = header.fwdCnt
    switch (header.op) {
      case OP.RESPONSE:
        if (this.#state !== 'host-asks') return false
        this.#state = 'open'
        this.#settled?.resolve()
        break
      case OP.RW:
        if (this.#state !== 'open' || this.#peerShutdown & SHUTDOWN.SEND) return false
        // More than it has credit for (5.10.6.3).
        if (header.length > BUFFER - ((this.#receivedCount - this.#fwdCnt) >>> 0)) return false
        this.#receivedCount = (this.#receivedCount + header.length) >>> 0
        this.#received.push(payload())
        break
      case OP.SHUTDOWN:
        if (this.#state !== 'open') return false
        this.#peerShutdown |= header.flags & SHUTDOWN.BOTH
        this.#endWithPeer()
        break
      case OP.CREDIT_UPDATE:
        break
      case OP.CREDIT_REQUEST:
        this.#due.add(OP.CREDIT_UPDATE)
        break
      default:
        return false
    }
    this.#deliver()
    if (this.#credit > 0) this.#askedForCredit = false
    else this.#needCredit()
    if (this.pending) this.#carrier.ready(this)
    return true
  }

  /** @internal Whether the guest neither sends nor receives on it any more, and waits for RST (5.10.6.5). */
  get peerIsDone(): boolean {
    return this.#peerShutdown === SHUTDOWN.BOTH
  }

  /** @internal The guest knows nothing of it any more. What it sent can still be read if it ended well. */
  cut(error?: Error): void {
    const refused = this.#state === 'host-asks'
    const endedWell = this.peerIsDone || this.#bothEnded
    this.#state = 'closed'
    this.#due.clear()
    this.#settled?.reject(
      error ?? new GuestError(`vsock: the guest refused a connection to its port ${this.guestPort}`),
    )
    if (this.destroyed) return
    if (endedWell && !error) this.#deliver()
    else if (refused) this.destroy()
    else this.destroy(error ?? reset('the guest reset the connection'))
  }

  override _read(): void {
    this.#reading = true
    this.#deliver()
  }

  override _write(chunk: Uint8Array, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    if (this.#peerShutdown & SHUTDOWN.RECEIVE) {
      done(Object.assign(new Error('the guest does not read any more'), { code: 'EPIPE' }))
      return
    }
    this.#chunk = chunk
    this.#chunkDone = done
    if (chunk.length === 0) {
      this.#chunk = undefined
      done()
      return
    }
    this.#needCredit()
    if (this.pending) this.#carrier.ready(this)
  }

  override _final(done: () => void): void {
    this.#finishing = true
    if (this.#state === 'open') this.#send(OP.SHUTDOWN)
    done()
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    const ended = this.#bothEnded && this.#received.length === 0 && !error
    this.#received.clear()
    this.#chunk = undefined
    this.#settled?.reject(error ?? new GuestError('vsock: the connection was given up'))
    if (this.#state === 'open' && ended) {
      this.#due.clear()
      this.#send(OP.SHUTDOWN)
      this.#carrier.over(this, 'shutdown')
    } else this.#carrier.over(this, this.#due.has(OP.REQUEST) ? 'silent' : 'reset')
    done(error)
  }

  get #bothEnded(): boolean {
    return this.#finishing && (this.#peerShutdown & SHUTDOWN.SEND) !== 0
  }

  get #credit(): number {
    const ahead = (this.#sent - this.#peerFwdCnt) >>> 0
    return Math.max(0, this.#peerAlloc - ahead)
  }

  /** Without credit, the guest is asked once to tell when there is some. */
  #needCredit(): void {
    if (this.#state !== 'open' || !this.#chunk || this.#credit > 0 || this.#askedForCredit) return
    this.#askedForCredit = true
    this.#send(OP.CREDIT_REQUEST)
  }

  #send(op: number): void {
    this.#due.add(op)
    this.#carrier.ready(this)
  }

  #packet(op: number): VsockSending {
    // Each packet tells the window.
    this.#due.delete(OP.CREDIT_UPDATE)
    this.#toldFwdCnt = this.#fwdCnt
    return { op, flags: 0 }
  }

  /** Hands what was received to who reads, as fast as that is. */
  #deliver(): void {
    if (this.#state === 'guest-asks' || this.#state === 'host-asks') return
    while (this.#reading) {
      const bytes = this.#received.shift()
      if (!bytes) break
      this.#reading = false
      this.#fwdCnt = (this.#fwdCnt + bytes.length) >>> 0
      // With no room left before it, the guest would have to wait.
      const untold = (this.#fwdCnt - this.#toldFwdCnt) >>> 0
      if (this.#state === 'open' && untold >= BUFFER / 4) this.#send(OP.CREDIT_UPDATE)
      this.push(bytes)
    }
    if (!this.#reading || this.#received.length > 0 || !(this.#peerShutdown & SHUTDOWN.SEND)) return
    this.#reading = false
    this.push(null)
  }

  /** The guest takes nothing more either: once its end was read there is nothing left to do here. */
  #endWithPeer(): void {
    if (this.peerIsDone && this.readableEnded) this.destroy()
  }
}

function reset(problem: string): Error {
  return Object.assign(new Error(problem), { code: 'ECONNRESET' })
}
