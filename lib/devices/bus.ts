import type { Device } from './device.js'

interface Range {
  readonly start: number
  readonly end: number
  readonly device: Device
}

/**
 * Finds the device behind an I/O port or a guest-physical address.
 *
 * What nobody claims reads all ones, and writes to it go nowhere, as on a PC.
 */
export class Bus {
  /** Sorted by address. */
  #ranges: Range[] = []
  /** The range of the access before: the next one mostly goes there as well. */
  #last: Range | undefined

  /**
   * Gives `length` addresses from `start` on to `device`.
   *
   * @throws {RangeError} a part of it belongs to another device already, or it is empty
   */
  add(start: number, length: number, device: Device): void {
    const end = start + length
    if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || start < 0 || length <= 0) {
      throw new RangeError(`bus range ${start}+${length} is empty or out of bounds`)
    }
    const other = this.#ranges.find(range => start < range.end && end > range.start)
    if (other) {
      throw new RangeError(`bus range ${span(start, end)} overlaps ${span(other.start, other.end)}`)
    }
    this.#ranges.push({ start, end, device })
    this.#ranges.sort((a, b) => a.start - b.start)
    this.#last = undefined
  }

  /** Reads `data.length` bytes at `address` into `data`. */
  read(address: number, data: Uint8Array): void {
    const range = this.#find(address)
    if (range && address + data.length <= range.end) {
      range.device.read(address - range.start, data)
      return
    }
    data.fill(0xff)
    this.#eachPart(address, data, (device, offset, part) => device.read(offset, part))
  }

  /** Writes `data` to `address`. A promise is fulfilled when the write is done. */
  write(address: number, data: Uint8Array): void | Promise<void> {
    const range = this.#find(address)
    if (range && address + data.length <= range.end) return range.device.write(address - range.start, data)
    this.#eachPart(address, data, (device, offset, part) => device.write(offset, part))
  }

  /**
   * String input (`rep ins`): reads `size` bytes from the same `address` again and again until `data` is full.
   */
  readRepeated(address: number, size: number, data: Uint8Array): void {
    if (data.length === size) this.read(address, data)
    else for (let at = 0; at < data.length; at += size) this.read(address, data.subarray(at, at + size))
  }

  /** String output (`rep outs`): writes `data` to the same `address`, `size` bytes at a time. */
  writeRepeated(address: number, size: number, data: Uint8Array): void {
    if (data.length === size) this.write(address, data)
    else for (let at = 0; at < data.length; at += size) this.write(address, data.subarray(at, at + size))
  }

  #find(address: number): Range | undefined {
    const last = this.#last
    if (last && address >= last.start && address < last.end) return last
    let [low, high] = [0, this.#ranges.length]
    while (low < high) {
      const middle = (low + high) >>> 1
      const range = this.#ranges[middle]!
      if (address >= range.end) low = middle + 1
      else if (address < range.start) high = middle
      else {
        this.#last = range
        return range
      }
    }
    return undefined
  }

  /** An access across the edge of a range: each byte goes to whom it belongs. */
  #eachPart(
    address: number,
    data: Uint8Array,
    visit: (device: Device, offset: number, part: Uint8Array) => void,
  ): void {
    for (let i = 0; i < data.length; i++) {
      const range = this.#find(address + i)
      if (range) visit(range.device, address + i - range.start, data.subarray(i, i + 1))
    }
  }
}

function span(start: number, end: number): string {
  return `0x${start.toString(16)}-0x${(end - 1).toString(16)}`
}
