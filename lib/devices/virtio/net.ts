import { type Json, savedIntegers } from '../device.js'
import type { ChainBatch } from './chain-batch.js'
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

/** Frames that are sent at once. */
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
  /** Chains taken from the receive queue that no frame has filled yet. */
  #buffers: ChainBatch | undefined
  /** Frames taken from the transmit queue that the backend has not taken yet. */
  #frames: ChainBatch | undefined
  /** Bytes written to each of the buffers that are given back. */
  readonly #written = new Uint32Array(QUEUE_SIZE)
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
        this.#guarded(() => this.#link?.woken(this.#receive()))
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
    this.#buffers = link.queues[RECEIVE]?.batch(PARTS_MAX)
    this.#frames = link.queues[TRANSMIT]?.batch(PARTS_MAX)
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
    this.#link?.queues[RECEIVE]?.unpop(this.#buffers?.count ?? 0)
    this.#link?.queues[TRANSMIT]?.unpop(this.#frames?.count ?? 0)
    this.#buffers?.clear()
    this.#frames?.clear()
  }

  resume(): void {
    this.#quiet = false
  }

  reset(): void {
    this.#link = undefined
    this.#buffers = undefined
    this.#frames = undefined
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
    const frames = this.#frames
    if (!link || !queue || !frames || this.#quiet || this.#blocked) return
    queue.disableNotifications()
    for (let batch = 0; batch < TURN; batch++) {
      takeFrames(queue, frames)
      const taken = this.#up && frames.count > 0 ? this.#backend.send(frames) : frames.count
      if (taken > 0) {
        queue.give(frames, ZEROS, taken)
        link.used(queue)
      }
      if (frames.count > 0) {
        this.#blocked = true
        return
      }
      if (taken === 0 && !queue.enableNotifications()) return
    }
    this.#nextTurn()
  }

  /** Gives how many frames it received. */
  #receive(): number {
    const link = this.#link
    const queue = link?.queues[RECEIVE]
    const buffers = this.#buffers
    if (!link || !queue || !buffers || this.#quiet || this.#drained || !this.#up) return 0
    const merge = (link.features & NET_FEATURE.MRG_RXBUF) !== 0n
    let frames = 0
    for (let batch = 0; batch < TURN; batch++) {
      queue.disableNotifications()
      takeBuffers(queue, buffers)
      if (buffers.count === 0) {
        if (queue.enableNotifications()) continue
        return frames
      }
      const { lengths, more } = this.#backend.receive(buffers, merge)
      if (lengths.length > 0) {
        queue.give(buffers, this.#written, this.#fill(buffers, lengths))
        link.used(queue)
        frames += lengths.length
      }
      if (!more) {
        this.#drained = true
        return frames
      }
      if (lengths.length > 0) continue
      // The driver cannot offer more: this frame will never fit.
      if (buffers.count >= queue.size) this.#backend.drop()
      else if (!queue.enableNotifications()) return frames
    }
    this.#nextTurn()
    return frames
  }

  /**
   * Writes to the first buffer of each frame how many it has (5.1.6.4), and to `#written` how much is in each. Gives how many buffers the frames have
   * together: the driver is given all those of a frame at once.
   */
  #fill({ memory: { views }, runs, counts, writableLengths }: ChainBatch, lengths: ArrayLike<number>): number {
    const written = this.#written
    let buffer = 0
    for (let frame = 0, run = 0; frame < lengths.length; frame++) {
      const first = buffer
      const firstRun = run
      for (let left = lengths[frame]!; left > 0; buffer++) {
        const count = Math.min(left, writableLengths[buffer]!)
        written[buffer] = count
        left -= count
        run += counts[buffer]!
      }
      setNumBuffers(views, runs, firstRun, buffer - first)
    }
    return buffer
  }
}

const SAVED = { status: LINK_UP } as const

/** What is sent has no bytes written to it. */
const ZEROS: readonly number[] = new Array(BATCH).fill(0)

/** Takes frames as far as there is room in a batch. What cannot be one has no runs there, and so is dropped, as on a wire. */
function takeFrames(queue: Queue, frames: ChainBatch): void {
  let next = frames.count
  queue.take(frames, BATCH)
  for (; next < frames.count; next++) {
    const length = frames.readableLengths[next]!
    if (length < HEADER) throw new QueueError(`a frame of ${length} bytes with its header`)
    const sane = length >= FRAME_MIN && length <= FRAME_MAX && frames.counts[next]! <= PARTS_MAX
    if (!sane || frames.writableLengths[next]! > 0) frames.blank(next)
  }
}

/** Takes all buffers that the driver offers. In each a frame, or its header at least, must have room. */
function takeBuffers(queue: Queue, buffers: ChainBatch): void {
  let next = buffers.count
  queue.take(buffers, queue.size)
  for (; next < buffers.count; next++) {
    const sane = buffers.readableLengths[next] === 0 && buffers.counts[next]! <= PARTS_MAX
    if (!sane || buffers.writableLengths[next]! <= HEADER) {
      throw new QueueError('a receive buffer that cannot hold a frame (5.1.6.3)')
    }
  }
}

/** Writes `num_buffers` of the header that begins with run `run`, wherever the driver's buffers have it. */
function setNumBuffers(views: readonly Uint8Array[], runs: Float64Array, run: number, count: number): void {
  for (let start = 0; start < HEADER; run++) {
    const view = views[runs[3 * run]!]!
    const offset = runs[3 * run + 1]! - start
    const end = Math.min(start + runs[3 * run + 2]!, HEADER)
    for (let at = Math.max(start, NUM_BUFFERS_OFFSET); at < end; at++) {
      view[offset + at] = at === NUM_BUFFERS_OFFSET ? count & 0xff : count >> 8
    }
    start = end
  }
}
