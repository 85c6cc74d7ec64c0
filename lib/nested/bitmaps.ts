/** The bitmaps by which L1 chooses what exits: MSR and I/O permission maps, as ranges of what goes through without an exit. */

/** At most this many ranges of one kind are listed: what L1 wrote is hostile. */
const MOST = 256

export interface PassedMsrs {
  /** L1 guest-physical address. */
  readonly address: bigint
  /** MSRs, or ranges of them, that L2 reads and writes without an exit. */
  readonly reads: readonly string[]
  readonly writes: readonly string[]
}

/** Bytes that hold one map. */
export const VMX_MSR_BITMAP_SIZE = 0x1000
export const SVM_MSR_MAP_SIZE = 0x1800
export const VMX_IO_BITMAP_SIZE = 0x1000
export const SVM_IO_MAP_SIZE = 0x2000

/** Intel SDM vol. 3, section 25.6.9: 1 KiB each for reads low and high, then writes low and high; a set bit exits. */
export function vmxPassedMsrs(address: bigint, map: Uint8Array): PassedMsrs {
  const half = (at: number) => [
    ...clear(i => bit(map, at * 8 + i), 0x2000, 0),
    ...clear(i => bit(map, (at + 0x400) * 8 + i), 0x2000, 0xc0000000),
  ]
  return { address, reads: capped(half(0)), writes: capped(half(0x800)) }
}

/** AMD APM vol. 2, section 15.11: two bits an MSR, read then write; 2 KiB for each of three ranges. */
export function svmPassedMsrs(address: bigint, map: Uint8Array): PassedMsrs {
  const of = (write: 0 | 1) =>
    [0, 0xc0000000, 0xc0010000].flatMap((first, range) =>
      clear(i => bit(map, range * 0x800 * 8 + i * 2 + write), 0x2000, first),
    )
  return { address, reads: capped(of(0)), writes: capped(of(1)) }
}

/** The ports whose bit is clear, in one map of all 65536. */
export function passedPorts(map: Uint8Array): string[] {
  return capped(clear(i => bit(map, i), 0x10000, 0))
}

function bit(map: Uint8Array, index: number): boolean {
  return ((map[index >> 3]! >> (index & 7)) & 1) !== 0
}

/** `0x10-0x1f` for each run of clear bits; bit 0 stands for `first`. */
function clear(isSet: (index: number) => boolean, count: number, first: number): string[] {
  const ranges: string[] = []
  for (let i = 0; i < count; i++) {
    if (isSet(i)) continue
    const start = i
    while (i + 1 < count && !isSet(i + 1)) i++
    ranges.push(start === i ? hex(first + start) : `${hex(first + start)}-${hex(first + i)}`)
  }
  return ranges
}

function capped(ranges: string[]): string[] {
  return ranges.length > MOST ? [...ranges.slice(0, MOST), `and ${ranges.length - MOST} more`] : ranges
}

function hex(value: number): string {
  return `0x${value.toString(16)}`
}
