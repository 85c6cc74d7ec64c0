import { type BlockStorage, type Done, lengthOf, SECTOR, slice } from '../../storage/block-storage.js'
import type { Json } from '../device.js'
import type { Chain } from './chain.js'
import type { VirtioDevice, VirtioLink } from './device.js'
import type { Queue } from './queue.js'

const BLOCK = 2

/** Feature bits (virtio 1.2, 5.2.3). */
const F_SEG_MAX = 1n << 2n
const F_RO = 1n << 5n
const F_BLK_SIZE = 1n << 6n
const F_FLUSH = 1n << 9n
const F_DISCARD = 1n << 13n
const F_WRITE_ZEROES = 1n << 14n

/** Types of requests (5.2.6). */
const T_IN = 0
const T_OUT = 1
const T_FLUSH = 4
const T_GET_ID = 8
const T_DISCARD = 11
const T_WRITE_ZEROES = 13

const S_OK = 0
const S_IOERR = 1
const S_UNSUPP = 2

const QUEUE_SIZE = 256
const HEADER = 16
const ID = 20
/** Of a discard or write-zeroes request: sector, count, flags. */
const SEGMENT = 16
const SEGMENT_UNMAP = 1
/** What is asked for in one such request is bounded: a hole is punched at once. */
const ZERO_SECTORS_MAX = (128 << 20) / SECTOR

export interface BlockOptions {
  /** What the driver shows as the disk's serial number: up to 20 bytes of ASCII. */
  readonly serial: string
  /** Told of a failure of the host's that the driver sees as an I/O error. */
  readonly onError?: (error: Error) => void
}

/** A disk (virtio 1.2, section 5.2). */
export class BlockDevice implements VirtioDevice {
  readonly type = BLOCK
  readonly features: bigint
  readonly queueSizes = [QUEUE_SIZE]
  readonly config: Uint8Array
  readonly #storage: BlockStorage
  readonly #id = Buffer.alloc(ID)
  readonly #onError: BlockOptions['onError']
  #link: VirtioLink | undefined
  #quiet = true
  /** Chains taken and not yet given back. */
  #inFlight = 0
  #quiesced: (() => void) | undefined
  /** Told to the driver at the end of this turn of the event loop: many are done in one. */
  #telling = false

  constructor(storage: BlockStorage, { serial, onError }: BlockOptions) {
    this.#storage = storage
    this.#id.write(serial, 'latin1')
    this.#onError = onError
    const writable = F_DISCARD | F_WRITE_ZEROES
    this.features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | (storage.readonly ? F_RO : writable)
    this.config = blockConfig(storage.size)
  }

  start(link: VirtioLink): void {
    this.#link = link
  }

  notify(): void {
    this.#work()
  }

  quiesce(): Promise<void> {
    this.#quiet = true
    return new Promise(resolve => {
      this.#quiesced = resolve
      this.#settle()
    })
  }

  resume(): void {
    this.#quiet = false
  }

  reset(): void {
    this.#link = undefined
  }

  saveState(): Json {
    return {}
  }

  loadState(): void {}

  close(): Promise<void> {
    return new Promise(resolve => {
      this.#storage.flush(error => {
        if (error) this.#onError?.(error)
        this.#storage.close()
        resolve()
      })
    })
  }

  #work(): void {
    const link = this.#link
    const queue = link?.queues[0]
    if (!link || !queue || this.#quiet) return
    let taken = 0
    let doneAtOnce = false
    // While as many are in flight as a queue has, a driver that keeps the rules has no more.
    const mayTake = () => this.#inFlight < queue.size && taken < queue.size
    do {
      queue.disableNotifications()
      while (mayTake()) {
        const chain = queue.pop()
        if (!chain) break
        taken++
        this.#inFlight++
        const status = this.#serve(chain, error => {
          if (error) this.#onError?.(error)
          this.#giveBack(queue, chain, error ? S_IOERR : S_OK)
          if (this.#inFlight > 0) this.#tellSoon(link, queue)
          else this.#tell(link, queue)
        })
        if (status === undefined) continue
        this.#giveBack(queue, chain, status)
        doneAtOnce = true
      }
    } while (queue.enableNotifications() && mayTake())
    if (doneAtOnce) link.used(queue)
    // A driver that is as fast as this does not keep the event loop from others.
    if (taken === queue.size) this.#tellSoon(link, queue)
  }

  /** The status of what is done at once; undefined where `done` is called later. */
  #serve({ readable, writable, readableLength, writableLength }: Chain, done: Done): number | undefined {
    if (readableLength < HEADER || writableLength < 1) return S_IOERR
    const out = readable.map(({ bytes }) => bytes)
    const into = writable.map(({ bytes }) => bytes)
    const header = viewOf(gather(out, HEADER))
    const sector = sectorAt(header, 8)
    const outLength = readableLength - HEADER
    // The last byte is the status.
    const inLength = writableLength - 1
    switch (header.getUint32(0, true)) {
      case T_IN: {
        const offset = this.#offset(sector, inLength)
        if (offset === undefined) return S_IOERR
        const buffers = slice(into, 0, inLength)
        if (inLength === 0 || this.#storage.readNow(buffers, offset)) return S_OK
        this.#storage.read(buffers, offset, done)
        return undefined
      }
      case T_OUT: {
        const offset = this.#offset(sector, outLength)
        if (offset === undefined || this.#storage.readonly) return S_IOERR
        if (outLength === 0) return S_OK
        this.#storage.write(slice(out, HEADER, outLength), offset, done)
        return undefined
      }
      case T_FLUSH:
        this.#storage.flush(done)
        return undefined
      case T_GET_ID:
        scatter(slice(into, 0, inLength), this.#id)
        return S_OK
      case T_DISCARD:
        return this.#zero(slice(out, HEADER, outLength), 0, (offset, length) => {
          this.#storage.discard(offset, length, done)
        })
      case T_WRITE_ZEROES:
        return this.#zero(slice(out, HEADER, outLength), SEGMENT_UNMAP, (offset, length, flags) => {
          this.#storage.zero(offset, length, (flags & SEGMENT_UNMAP) !== 0, done)
        })
      default:
        return S_UNSUPP
    }
  }

  /** Discard and write zeroes: one segment, as the configuration says (5.2.6). */
  #zero(
    buffers: readonly Uint8Array[],
    knownFlags: number,
    act: (offset: number, length: number, flags: number) => void,
  ): number | undefined {
    if (this.#storage.readonly) return S_UNSUPP
    if (lengthOf(buffers) !== SEGMENT) return S_IOERR
    const segment = viewOf(gather(buffers, SEGMENT))
    const count = segment.getUint32(8, true)
    const flags = segment.getUint32(12, true)
    if (flags & ~knownFlags) return S_UNSUPP
    const offset = this.#offset(sectorAt(segment, 0), count * SECTOR)
    if (offset === undefined || count > ZERO_SECTORS_MAX) return S_IOERR
    if (count === 0) return S_OK
    act(offset, count * SECTOR, flags)
    return undefined
  }

  /** Where a range of the disk begins, in bytes; undefined where it is none. */
  #offset(sector: number, length: number): number | undefined {
    const offset = sector * SECTOR
    return length % SECTOR === 0 && offset + length <= this.#storage.size ? offset : undefined
  }

  #giveBack(queue: Queue, chain: Chain, status: number): void {
    this.#inFlight--
    const last = chain.writable.at(-1)?.bytes
    if (last) last[last.length - 1] = status
    queue.push(chain, chain.writableLength)
  }

  #tellSoon(link: VirtioLink, queue: Queue): void {
    if (this.#telling) return
    this.#telling = true
    setImmediate(() => this.#tell(link, queue))
  }

  #tell(link: VirtioLink, queue: Queue): void {
    this.#telling = false
    link.used(queue)
    this.#settle()
    // It may have stopped for what is in flight.
    link.notify(0)
  }

  #settle(): void {
    if (this.#inFlight > 0 || this.#telling) return
    this.#quiesced?.()
    this.#quiesced = undefined
  }
}

/** `struct virtio_blk_config` (5.2.4). */
function blockConfig(size: number): Uint8Array {
  const config = new Uint8Array(60)
  const view = viewOf(config)
  view.setBigUint64(0, BigInt(size / SECTOR), true)
  view.setUint32(12, QUEUE_SIZE - 2, true) // seg_max: a descriptor each, but for header and status
  view.setUint32(20, SECTOR, true) // blk_size
  view.setUint32(36, ZERO_SECTORS_MAX, true) // max_discard_sectors
  view.setUint32(40, 1, true) // max_discard_seg
  view.setUint32(44, 8, true) // discard_sector_alignment: a page of the host
  view.setUint32(48, ZERO_SECTORS_MAX, true) // max_write_zeroes_sectors
  view.setUint32(52, 1, true) // max_write_zeroes_seg
  view.setUint8(56, 1) // write_zeroes_may_unmap
  return config
}

/** A sector's number, of 64 bits. It is exact where there is a sector of that number. */
function sectorAt(view: DataView, offset: number): number {
  return view.getUint32(offset, true) + 2 ** 32 * view.getUint32(offset + 4, true)
}

/** A copy of the first `length` bytes: what the guest has there may change. */
function gather(buffers: readonly Uint8Array[], length: number): Uint8Array {
  const result = new Uint8Array(length)
  let at = 0
  for (const buffer of buffers) {
    if (at === length) break
    const part = buffer.subarray(0, length - at)
    result.set(part, at)
    at += part.length
  }
  return result
}

/** Fills `buffers` with `bytes`, as far as they go. */
function scatter(buffers: readonly Uint8Array[], bytes: Uint8Array): void {
  let at = 0
  for (const buffer of buffers) {
    const part = bytes.subarray(at, at + buffer.length)
    buffer.set(part)
    at += part.length
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
