import type { GuestMemory } from '../memory/guest-memory.js'
import { type Json, type StatefulDevice, savedIntegers } from './device.js'

// Registers, as offsets from the first port (QEMU: docs/specs/fw_cfg.rst)
const SELECTOR = 0
const DATA = 1
const DMA_HIGH = 4
const DMA_LOW = 8

// Keys of what is not a file
const KEY_SIGNATURE = 0x00
const KEY_ID = 0x01
const KEY_CPUS = 0x05
const KEY_MAX_CPUS = 0x0f
const KEY_FILE_DIRECTORY = 0x19
const KEY_FIRST_FILE = 0x20

/** The traditional interface, and the one by DMA. */
const ID_VALUE = 0b11
const DMA_SIGNATURE = Buffer.from('QEMU CFG', 'latin1')
const NAME_SIZE = 56
const DIRECTORY_ENTRY_SIZE = 64

// struct FWCfgDmaAccess: control, length, address; big-endian
const ACCESS_SIZE = 16
const DMA_ERROR = 1 << 0
const DMA_READ = 1 << 1
const DMA_SKIP = 1 << 2
const DMA_SELECT = 1 << 3
const DMA_WRITE = 1 << 4

/** Most zeros that one access writes behind the end of an item: the guest does not get to keep the event loop. */
const PADDING_MAX = 2 ** 20

/** What the saved registers are at most. */
const SAVED_LIMITS = { selector: 0xffff, offset: Number.MAX_SAFE_INTEGER, dmaHigh: 0xffff_ffff, dmaLow: 0xffff_ffff }

export interface FwCfgOptions {
  readonly memory: GuestMemory
  readonly vcpus: number
  /** By their names, 55 characters at most. Read only. */
  readonly files: ReadonlyMap<string, Uint8Array>
}

/**
 * QEMU's firmware configuration device on its ports (0x510 to 0x51b): items under a key, which the guest selects and then reads byte
 * by byte, or by DMA into its memory. Nothing can be written.
 */
export class FwCfg implements StatefulDevice {
  readonly #memory: GuestMemory
  readonly #items: ReadonlyMap<number, Uint8Array>
  #selector = 0
  #offset = 0
  /** The address of the DMA access, as far as the guest has written it. */
  #dmaHigh = 0
  #dmaLow = 0

  constructor({ memory, vcpus, files }: FwCfgOptions) {
    this.#memory = memory
    this.#items = new Map([
      [KEY_SIGNATURE, Buffer.from('QEMU', 'latin1')],
      [KEY_ID, littleEndian(ID_VALUE, 4)],
      [KEY_CPUS, littleEndian(vcpus, 2)],
      [KEY_MAX_CPUS, littleEndian(vcpus, 2)],
      [KEY_FILE_DIRECTORY, directory(files)],
      ...[...files.values()].map((content, i) => [KEY_FIRST_FILE + i, content] as const),
    ])
  }

  /** Two bytes at once go to the selector; the data register is a byte, which each read advances. */
  read(offset: number, data: Uint8Array): void {
    for (let i = 0; i < data.length; i++) {
      const register = offset + i
      if (register === SELECTOR || register === DATA) data[i] = this.#readByte()
      else if (register >= DMA_HIGH) data[i] = DMA_SIGNATURE[register - DMA_HIGH]!
      else data[i] = 0
    }
  }

  write(offset: number, data: Uint8Array): void {
    if (offset === SELECTOR && data.length === 2) this.#select(data[0]! | (data[1]! << 8))
    for (let i = 0; i < data.length; i++) this.#writeDma(offset + i, data[i]!)
    // The last byte of the low half starts the transfer.
    const end = offset + data.length
    if (offset < DMA_LOW + 4 && end === DMA_LOW + 4) this.#transfer()
  }

  reset(): void {
    this.#selector = this.#offset = this.#dmaHigh = this.#dmaLow = 0
  }

  saveState(): Json {
    return { selector: this.#selector, offset: this.#offset, dmaHigh: this.#dmaHigh, dmaLow: this.#dmaLow }
  }

  loadState(state: Json): void {
    const { selector, offset, dmaHigh, dmaLow } = savedIntegers(state, SAVED_LIMITS)
    this.#selector = selector
    this.#offset = offset
    this.#dmaHigh = dmaHigh
    this.#dmaLow = dmaLow
  }

  #select(key: number): void {
    this.#selector = key
    this.#offset = 0
  }

  #readByte(): number {
    const item = this.#items.get(this.#selector)
    // What is behind the end, and what there is not, reads 0.
    return item && this.#offset < item.length ? item[this.#offset++]! : 0
  }

  /** The registers are big-endian: the first byte is the highest. */
  #writeDma(register: number, value: number): void {
    const shift = 8 * (3 - ((register - DMA_HIGH) % 4))
    const put = (word: number) => ((word & ~(0xff << shift)) | (value << shift)) >>> 0
    if (register >= DMA_LOW) this.#dmaLow = put(this.#dmaLow)
    else if (register >= DMA_HIGH) this.#dmaHigh = put(this.#dmaHigh)
  }

  #transfer(): void {
    const address = this.#dmaHigh * 2 ** 32 + this.#dmaLow
    this.#dmaHigh = 0
    this.#dmaLow = 0
    // Where the guest gave no memory, there is no place to tell it so.
    if (!this.#memory.contains(address, ACCESS_SIZE)) return
    const bytes = this.#memory.read(address, ACCESS_SIZE)
    const access = new DataView(bytes.buffer, bytes.byteOffset, ACCESS_SIZE)
    const control = access.getUint32(0)
    const length = access.getUint32(4)
    const target = access.getBigUint64(8)
    if (control & DMA_SELECT) this.#select(control >>> 16)
    const done = this.#act(control, target > Number.MAX_SAFE_INTEGER ? -1 : Number(target), length)
    const result = new Uint8Array(4)
    new DataView(result.buffer).setUint32(0, done ? 0 : DMA_ERROR)
    this.#memory.write(address, result)
  }

  /** Returns whether it could be done. A read goes before a write, and that before a skip. */
  #act(control: number, target: number, length: number): boolean {
    const item = this.#items.get(this.#selector)
    const rest = item ? item.subarray(this.#offset, this.#offset + length) : new Uint8Array()
    if (control & DMA_READ) {
      const padding = length - rest.length
      if (padding > PADDING_MAX || !this.#memory.contains(target, length)) return false
      this.#memory.write(target, rest)
      this.#memory.fill(target + rest.length, padding)
    } else if (control & DMA_WRITE) {
      return length === 0
    } else if (!(control & DMA_SKIP)) {
      return true
    }
    this.#offset += rest.length
    return true
  }
}

/** A count, and for each file its size, key and name; big-endian. */
function directory(files: ReadonlyMap<string, Uint8Array>): Uint8Array {
  const bytes = Buffer.alloc(4 + files.size * DIRECTORY_ENTRY_SIZE)
  bytes.writeUInt32BE(files.size, 0)
  let i = 0
  for (const [name, content] of files) {
    if (name.length >= NAME_SIZE) throw new RangeError(`the name of ${name} is too long for fw_cfg`)
    const at = 4 + i * DIRECTORY_ENTRY_SIZE
    bytes.writeUInt32BE(content.length, at)
    bytes.writeUInt16BE(KEY_FIRST_FILE + i, at + 4)
    bytes.write(name, at + 8, 'latin1')
    i++
  }
  return bytes
}

function littleEndian(value: number, size: number): Uint8Array {
  const bytes = Buffer.alloc(size)
  bytes.writeUIntLE(value, 0, size)
  return bytes
}
