import { GuestError } from '../../../errors.js'
import { type Json, savedIntegers } from '../../device.js'
import { readFrom, writeTo } from '../buffers.js'
import type { Chain } from '../chain.js'
import type { VirtioLink } from '../device.js'
import type { Queue } from '../queue.js'
import { QueueError } from '../queue-error.js'
import { TurnBasedDevice } from '../turn-based.js'
import { type VsockCarrier, VsockConnection } from './connection.js'
import { decodeHeader, encodeHeader, HEADER_SIZE, HOST_CID, OP, TYPE_STREAM, type VsockHeader } from './packet.js'

const QUEUE_SIZE = 128
const RECEIVE = 0
const TRANSMIT = 1
const EVENT = 2
/** VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: all connections are gone (virtio 1.2, 5.10.6.7). */
const TRANSPORT_RESET = 0
const EVENT_SIZE = 4

/** Connections at a time, those that are being made or closed among them; each buffers up to `BUFFER` bytes. */
export const CONNECTIONS_MAX = 256
/** Resets that wait for the driver's buffers; with more, its packets wait. */
const RESETS_MAX = 256
/** Milliseconds after which a connection is reset whose guest does not answer that it is shut down; Linux waits as long. */
const SHUTDOWN_TIMEOUT = 8000
/** Ports of the host for connections that it asks for: 2^30 and up, as Firecracker has it. */
const FIRST_PORT = 2 ** 30
const PORTS = 2 ** 30

interface Ports {
  readonly guestPort: number
  readonly hostPort: number
}

/** What the device has of the host. */
export interface VsockHost {
  /** The guest asks for a connection to a port of the host: `accept` it, now or later, or destroy it. */
  request(connection: VsockConnection): void
  /** There will be no more connections. */
  close(): Promise<void>
}

/**
 * The socket device, for streams between the guest and the host (virtio 1.2, 5.10). Connections end with the driver, and are not part of a
 * saved state: who goes on from one is told that they are gone.
 */
export class VirtioVsock extends TurnBasedDevice implements VsockCarrier {
  readonly type = 19
  readonly features = 0n
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE]
  readonly config: Uint8Array
  readonly #cid: bigint
  readonly #host: VsockHost
  /** Those that the guest may know of, by their ports. */
  readonly #connections = new Map<string, VsockConnection>()
  /** Those and the ones of which something is left to read here. */
  readonly #streams = new Set<VsockConnection>()
  readonly #shutdowns = new Map<VsockConnection, NodeJS.Timeout>()
  /** Those that may have a packet to send, each in its turn. */
  readonly #ready = new Set<VsockConnection>()
  /** What the guest is to forget. */
  #resets: Ports[] = []
  #resetDue = false
  #nextPort = 0

  constructor(cid: number, host: VsockHost) {
    super()
    this.#cid = BigInt(cid)
    this.#host = host
    this.config = new Uint8Array(new BigUint64Array([this.#cid]).buffer)
  }

  /**
   * Asks the guest for a connection to one of its ports.
   * @throws {GuestError} nobody listens there, or the guest has no driver
   */
  async connect(guestPort: number, signal?: AbortSignal): Promise<VsockConnection> {
    signal?.throwIfAborted()
    if (!this.link) throw new GuestError('vsock: the guest has no driver for it (yet)')
    if (this.#streams.size >= CONNECTIONS_MAX) throw new GuestError(`vsock: there are ${CONNECTIONS_MAX} connections`)
    const connection = this.#add({ guestPort, hostPort: this.#freePort(guestPort) }, 'host')
    const abort = () => connection.destroy(signal!.reason)
    signal?.addEventListener('abort', abort)
    try {
      await connection.request()
    } finally {
      signal?.removeEventListener('abort', abort)
    }
    return connection
  }

  ready(connection: VsockConnection): void {
    this.#ready.add(connection)
    this.work()
  }

  over(connection: VsockConnection, how: 'silent' | 'shutdown' | 'reset'): void {
    if (how === 'silent') this.#forget(connection)
    else if (how === 'reset') this.#reset(connection)
    else {
      const timer = setTimeout(() => this.#reset(connection), SHUTDOWN_TIMEOUT)
      this.#shutdowns.set(connection, timer.unref())
    }
    this.#release(connection)
  }

  override reset(): void {
    super.reset()
    this.#resets = []
    this.#resetDue = false
    this.#cutAll('the guest has reset the device, or was put back to an earlier moment')
  }

  override async close(): Promise<void> {
    this.#cutAll('the machine has ended')
    super.close()
    await this.#host.close()
  }

  saveState(): Json {
    // Whatever it is: for who goes on from here, it is gone. The event tells of what is connected only.
    const gone = [...this.#resets, ...this.#connections.values()]
    return {
      resetDue: Number(this.link !== undefined || this.#resetDue),
      resets: gone.map(({ guestPort, hostPort }) => ({ guestPort, hostPort })),
    }
  }

  loadState(state: Json): void {
    const { resetDue } = savedIntegers(state, { resetDue: 1 })
    const resets = (state as { readonly resets?: Json }).resets
    const most = CONNECTIONS_MAX + RESETS_MAX
    if (!Array.isArray(resets) || resets.length > 2 * most) {
      throw new TypeError(`saved device state: resets must be a list of at most ${2 * most}`)
    }
    this.#resets = resets.map(ports => savedIntegers(ports, { guestPort: 2 ** 32 - 1, hostPort: 2 ** 32 - 1 }))
    this.#resetDue = resetDue === 1
  }

  protected step({ queues }: VirtioLink): boolean {
    const told = this.#tellReset(queues[EVENT])
    const sent = this.#send(queues[RECEIVE])
    return this.#take(queues[TRANSMIT]) || sent || told
  }

  #tellReset(queue: Queue | undefined): boolean {
    if (!this.#resetDue || !queue) return false
    const chain = this.take(queue)
    if (!chain) return false
    mustBeWritable(chain, EVENT_SIZE)
    writeTo(chain, 0, new Uint8Array(new Uint32Array([TRANSPORT_RESET]).buffer))
    this.give(queue, chain, EVENT_SIZE)
    this.#resetDue = false
    return true
  }

  /** Sends one packet. */
  #send(queue: Queue | undefined): boolean {
    if (!queue) return false
    let connection: VsockConnection | undefined
    if (this.#resets.length === 0) {
      connection = this.#nextReady()
      if (!connection) return false
    }
    const chain = this.take(queue)
    if (!chain) return false
    mustBeWritable(chain, HEADER_SIZE)
    if (connection) this.#ready.delete(connection)
    const ports = connection ?? this.#resets.shift()!
    const room = chain.writableLength - HEADER_SIZE
    const { op, flags, payload } = connection?.next(room) ?? { op: OP.RST, flags: 0, payload: undefined }
    const length = payload?.length ?? 0
    const header = encodeHeader({
      ...{ srcCid: HOST_CID, dstCid: this.#cid, srcPort: ports.hostPort, dstPort: ports.guestPort },
      ...{ length, type: TYPE_STREAM, op, flags },
      ...(connection?.window ?? { bufAlloc: 0, fwdCnt: 0 }),
    })
    writeTo(chain, 0, header)
    if (payload) writeTo(chain, HEADER_SIZE, payload)
    this.give(queue, chain, HEADER_SIZE + length)
    // Behind the others.
    if (connection?.pending) this.#ready.add(connection)
    return true
  }

  #nextReady(): VsockConnection | undefined {
    for (const connection of this.#ready) {
      if (connection.pending) return connection
      this.#ready.delete(connection)
    }
    return undefined
  }

  /** Takes one packet of the guest. While it does not take its answers, its packets wait. */
  #take(queue: Queue | undefined): boolean {
    if (!queue || this.#resets.length >= RESETS_MAX) return false
    const chain = this.take(queue)
    if (!chain) return false
    if (chain.writable.length > 0) throw new QueueError('a packet with a writable buffer')
    if (chain.readableLength < HEADER_SIZE) throw new QueueError(`a packet of ${chain.readableLength} bytes`)
    const header = decodeHeader(readFrom(chain, 0, HEADER_SIZE))
    if (header.length > chain.readableLength - HEADER_SIZE) {
      throw new QueueError(`a packet of ${chain.readableLength} bytes with ${header.length} bytes of payload`)
    }
    this.#receive(header, chain)
    this.give(queue, chain, 0)
    return true
  }

  #receive(header: VsockHeader, chain: Chain): void {
    // To or from somebody else: there is nobody who could answer.
    if (header.srcCid !== this.#cid || header.dstCid !== HOST_CID) return
    const ports = { guestPort: header.srcPort, hostPort: header.dstPort }
    const connection = this.#connections.get(keyOf(ports))
    if (header.op === OP.RST) {
      if (!connection) return
      this.#forget(connection)
      connection.cut()
    } else if (header.type === TYPE_STREAM && connection) {
      if (!connection.receive(header, () => readFrom(chain, HEADER_SIZE, header.length))) {
        this.#reset(connection)
        connection.cut(new GuestError('vsock: the guest sent what makes no sense there'))
      } else if (connection.peerIsDone) {
        this.#reset(connection)
        connection.cut()
      }
    } else if (header.type === TYPE_STREAM && header.op === OP.REQUEST && this.#streams.size < CONNECTIONS_MAX) {
      const asked = this.#add(ports, 'guest')
      asked.receive({ ...header, op: OP.CREDIT_UPDATE }, () => Buffer.alloc(0))
      this.#host.request(asked)
    } else this.#resets.push(ports)
  }

  #cutAll(reason: string): void {
    for (const connection of this.#connections.values()) {
      this.#forget(connection)
      connection.cut(new GuestError(`vsock: ${reason}`))
    }
  }

  #add(ports: Ports, asks: 'host' | 'guest'): VsockConnection {
    const connection = new VsockConnection(this, ports, asks)
    this.#connections.set(keyOf(ports), connection)
    this.#streams.add(connection)
    return connection
  }

  /** Has the guest forget a connection that it may know of. */
  #reset(connection: VsockConnection): void {
    if (!this.#forget(connection)) return
    const { guestPort, hostPort } = connection
    this.#resets.push({ guestPort, hostPort })
    this.work()
  }

  /** The guest does not know of it any more. */
  #forget(connection: VsockConnection): boolean {
    const key = keyOf(connection)
    const known = this.#connections.get(key) === connection
    if (known) this.#connections.delete(key)
    clearTimeout(this.#shutdowns.get(connection))
    this.#shutdowns.delete(connection)
    this.#ready.delete(connection)
    this.#release(connection)
    return known
  }

  #release(connection: VsockConnection): void {
    if (connection.destroyed && this.#connections.get(keyOf(connection)) !== connection)
      this.#streams.delete(connection)
  }

  #freePort(guestPort: number): number {
    let hostPort: number
    do {
      hostPort = FIRST_PORT + this.#nextPort
      this.#nextPort = (this.#nextPort + 1) % PORTS
    } while (this.#connections.has(keyOf({ guestPort, hostPort })))
    return hostPort
  }
}

function keyOf({ guestPort, hostPort }: Ports): string {
  return `${guestPort}:${hostPort}`
}

function mustBeWritable(chain: Chain, length: number): void {
  if (chain.readable.length > 0) throw new QueueError('a readable buffer to receive into')
  if (chain.writableLength < length) throw new QueueError(`a buffer of ${chain.writableLength} bytes to receive into`)
}
