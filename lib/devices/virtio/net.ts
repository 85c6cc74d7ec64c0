import { type Json, savedIntegers } from '../device.js'
import type { Chain } from './chain.js'
import type { VirtioDevice, VirtioLink } from './device.js'
import { type NetBackend, NO_OFFLOADS } from './net-backend.js'
import type { Queue } from './queue.js'
import { QueueError } from './queue-error.js'

/** Feature bits (virtio 1.2, 5.1.3). */
export const NET_FEATURE = {
  CSUM: 1n << 0n,
  GUEST_CSUM: 1n << 1n,
  MAC: 1n << 5n,
  GUEST_TSO4: 1n << 7n,
  GUEST_TSO6: 1n << 8n,
  HOST_TSO4: 1n << 11n,
  HOST_TSO6: 1n << 12n,
  MRG_RXBUF: 1n << 15n,
  STATUS: 1n << 16n,
} as const

const RECEIVE = 0
const TRANSMIT = 1
const QUEUE_SIZE = 256

/** VIRTIO_NET_S_LINK_UP (5.1.4) */
const LINK_UP = 1
/** The device configuration: the MAC address, then the status. */
const CONFIG_LENGTH = 8
const STATUS_OFFSET = 6

/** struct virtio_net_hdr_v1, and where its `num_buffers` is (5.1.6). */
const HEADER = 12
const NUM_BUFFERS_OFFSET = 10
/** With the addresses and the type of Ethernet, there is no shorter frame; no longer one than a whole IP packet behind two VLAN tags. */
const FRAME_MIN = HEADER + 14
const FRAME_MAX = HEADER + 14 + 8 + 65535
/** What a system call takes at once (IOV_MAX), with one to spare. */
const PARTS_MAX = 1023

/** Chains of a batch: enough for the largest frame in buffers of the usual size, and for many small ones. */
const BATCH = 64
/** After so many batches other work gets its turn, however much there is to do. */
const TURN = 16

/**
 * A network card (virtio 1.2, 5.1): two queues between guest memory and a backend, which has the frames copied by the kernel, or does so.
 * Nothing is stored here: what the backend does not take stays in the transmit queue, what the guest has no buffers for stays in the backend.
 */
export class VirtioNet implements VirtioDevice {
  readonly type = 1
  readonly features: bigint
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE]
  readonly config = new Uint8Array(CONFIG_LENGTH)
  readonly #backend: NetBackend
  #link: VirtioLink | undefined
  #quiet = true
  /** The status that the driver knows of. */
  #told = LINK_UP
  /** Chains taken from the receive queue that no frame has filled yet, in order. */
  #buffers: Chain[] = []
  /** Frames taken from the transmit queue that the backend has not taken yet, in order. */
  #frames: Chain[] = []
  /** The backend takes no frames for now, and tells when it does again. */
  #blocked = false
  /** The backend has nothing for now, and tells when it has. */
  #drained = false
  #turnPending = false

  /** @param mac six bytes as in `02:00:00:00:00:01` */
  constructor(backend: NetBackend, mac: string) {
    this.#backend = backend
    const { checksum, tso4, tso6 } = backend.offloads
    const { CSUM, GUEST_CSUM, HOST_TSO4, GUEST_TSO4, HOST_TSO6, GUEST_TSO6, MAC, MRG_RXBUF, STATUS } = NET_FEATURE
    this.features =
      MAC |
      STATUS |
      MRG_RXBUF |
      (checksum ? CSUM | GUEST_CSUM : 0n) |
      (tso4 ? HOST_TSO4 | GUEST_TSO4 : 0n) |
      (tso6 ? HOST_TSO6 | GUEST_TSO6 : 0n)
    this.config.set(mac.split(':').map(byte => Number.parseInt(byte, 16)))
    this.config[STATUS_OFFSET] = LINK_UP
    backend.start({
      readable: () => {
        this.#drained = false
        this.#guarded(() => this.#receive())
      },
      writable: () => {
        this.#blocked = false
        this.#guarded(() => this.#transmit())
      },
      gone: () => this.#linkDown(),
    })
  }

  start(link: VirtioLink): void {
    this.#link = link
    if (this.#told !== this.config[STATUS_OFFSET]) this.#tellStatus()
    const has = (feature: bigint) => (link.features & feature) !== 0n
    const checksum = has(NET_FEATURE.GUEST_CSUM)
    this.#backend.leaveToGuest({
      checksum,
      // Neither without the other (5.1.3.1).
      tso4: checksum && has(NET_FEATURE.GUEST_TSO4),
      tso6: checksum && has(NET_FEATURE.GUEST_TSO6),
    })
  }

  notify(index: number): void {
    this.#guarded(() => {
      if (index === RECEIVE) this.#receive()
      else if (index === TRANSMIT) this.#transmit()
    })
  }

  async quiesce(): Promise<void> {
    this.#quiet = true
    this.#link?.queues[RECEIVE]?.unpop(this.#buffers.length)
    this.#link?.queues[TRANSMIT]?.unpop(this.#frames.length)
    this.#buffers = []
    this.#frames = []
  }

  resume(): void {
    this.#quiet = false
  }

  reset(): void {
    this.#link = undefined
    this.#buffers = []
    this.#frames = []
    this.#told = this.config[STATUS_OFFSET]!
    this.#backend.leaveToGuest(NO_OFFLOADS)
  }

  /** The address is part of the configuration. */
  saveState(): Json {
    return { status: this.#told }
  }

  loadState(state: Json): void {
    this.#told = savedIntegers(state, SAVED).status
  }

  close(): void | Promise<void> {
    this.#link = undefined
    return this.#backend.close()
  }

  get #up(): boolean {
    return (this.config[STATUS_OFFSET]! & LINK_UP) !== 0
  }

  #linkDown(): void {
    if (!this.#up) return
    this.config[STATUS_OFFSET] = 0
    if (this.#link) this.#tellStatus()
    // Whatever is sent from now on is lost.
    this.#blocked = false
    this.#guarded(() => this.#transmit())
  }

  #tellStatus(): void {
    this.#told = this.config[STATUS_OFFSET]!
    this.#link?.configChanged()
  }

  /** What the driver did wrong shows also where it did not notify. Its queues are left alone from then on. */
  #guarded(act: () => void): void {
    try {
      act()
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      const link = this.#link
      this.#link = undefined
      link?.fail(error)
    }
  }

  /** Goes on soon, with both queues. */
  #nextTurn(): void {
    if (this.#turnPending) return
    this.#turnPending = true
    setImmediate(() => {
      this.#turnPending = false
      this.#guarded(() => {
        this.#transmit()
        this.#receive()
      })
    })
  }

  #transmit(): void {
    const link = this.#link
    const queue = link?.queues[TRANSMIT]
    if (!link || !queue || this.#quiet || this.#blocked) return
    const frames = this.#frames
    queue.disableNotifications()
    for (let batch = 0; batch < TURN; batch++) {
      const dropped = this.#takeFrames(queue)
      const taken = this.#up && frames.length > 0 ? this.#backend.send(frames) : frames.length
      queue.pushAll(frames, ZEROS, taken)
      frames.splice(0, taken)
      if (taken > 0 || dropped) link.used(queue)
      if (frames.length > 0) {
        this.#blocked = true
        return
      }
      if (taken === 0 && !dropped && !queue.enableNotifications()) return
    }
    this.#nextTurn()
  }

  /** Takes a batch of frames. What cannot be one is dropped, as on a wire, and ends the batch: then true. */
  #takeFrames(queue: Queue): boolean {
    while (this.#frames.length < BATCH) {
      const chain = queue.pop()
      if (!chain) return false
      if (chain.readableLength < HEADER)
        throw new QueueError(`a frame of ${chain.readableLength} bytes with its header`)
      if (isFrame(chain)) this.#frames.push(chain)
      else if (this.#frames.length > 0) {
        // In order: only the last ones can be left available.
        queue.unpop(1)
        return false
      } else {
        queue.push(chain, 0)
        return true
      }
    }
    return false
  }

  #receive(): void {
    const link = this.#link
    const queue = link?.queues[RECEIVE]
    if (!link || !queue || this.#quiet || this.#drained || !this.#up) return
    const merge = (link.features & NET_FEATURE.MRG_RXBUF) !== 0n
    let want = BATCH
    for (let batch = 0; batch < TURN; batch++) {
      queue.disableNotifications()
      this.#takeBuffers(queue, want)
      if (this.#buffers.length === 0) {
        if (queue.enableNotifications()) continue
        return
      }
      const { lengths, more } = this.#backend.receive(this.#buffers, merge)
      if (lengths.length > 0) {
        this.#deliver(queue, lengths)
        link.used(queue)
        want = BATCH
      }
      if (!more) {
        this.#drained = true
        return
      }
      if (lengths.length > 0) continue
      if (this.#buffers.length >= queue.size) {
        // The driver cannot offer more: this frame will never fit.
        this.#backend.drop()
      } else if (want > this.#buffers.length && !queue.enableNotifications()) {
        return
      } else {
        want = queue.size
      }
    }
    this.#nextTurn()
  }

  #takeBuffers(queue: Queue, want: number): void {
    while (this.#buffers.length < want) {
      const chain = queue.pop()
      if (!chain) return
      if (!isBuffer(chain)) throw new QueueError('a receive buffer that cannot hold a frame (5.1.6.3)')
      this.#buffers.push(chain)
    }
  }

  /** Gives the buffers that hold the frames to the driver: all those of a frame at once (5.1.6.4). */
  #deliver(queue: Queue, lengths: readonly number[]): void {
    const buffers = this.#buffers
    const written: number[] = []
    for (const length of lengths) {
      const first = written.length
      for (let left = length; left > 0; ) {
        const buffer = buffers[written.length]!
        const count = Math.min(left, buffer.writableLength)
        written.push(count)
        left -= count
      }
      setNumBuffers(buffers[first]!, written.length - first)
    }
    queue.pushAll(buffers, written, written.length)
    buffers.splice(0, written.length)
  }
}

const SAVED = { status: LINK_UP } as const

/** What is sent has no bytes written to it. */
const ZEROS: readonly number[] = new Array(BATCH).fill(0)

/** Something that may be sent. */
function isFrame({ readable, readableLength, writableLength }: Chain): boolean {
  return (
    writableLength === 0 && readableLength >= FRAME_MIN && readableLength <= FRAME_MAX && readable.length <= PARTS_MAX
  )
}

/** Something that a frame, or its header at least, has room in. */
function isBuffer({ writable, readableLength, writableLength }: Chain): boolean {
  return readableLength === 0 && writableLength > HEADER && writable.length <= PARTS_MAX
}

/** Writes `num_buffers`, wherever the driver's buffers have it. */
function setNumBuffers({ writable }: Chain, count: number): void {
  let start = 0
  for (const { chunk, offset, length } of writable) {
    for (let at = Math.max(start, NUM_BUFFERS_OFFSET); at < Math.min(start + length, HEADER); at++) {
      chunk[offset + at - start] = at === NUM_BUFFERS_OFFSET ? count & 0xff : count >> 8
    }
    start += length
    if (start >= HEADER) return
  }
}
