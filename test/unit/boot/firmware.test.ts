import { describe, expect, test } from 'vitest'
import { FIRMWARE_RANGE, IDENTITY_MAP_ADDRESS, TSS_ADDRESS } from '../../../lib/arch/x86_64/layout.js'
import { firmwareFiles, loadFirmware } from '../../../lib/boot/firmware.js'
import { plainMemory } from '../memory/plain.js'

const memory = () =>
  plainMemory([
    [0, 0x20_0000],
    [0xfffc_0000, 0x4_0000],
    [0x1_0000_0000, 0x1000],
  ])
const image = (size: number) => Uint8Array.from({ length: size }, (_, i) => (i >> 12) + 1)

describe('loadFirmware', () => {
  test.each([
    [0x1000, 0xffff_f000, 0xf_f000],
    [0x2_0000, 0xfffe_0000, 0xe_0000],
    [0x4_0000, 0xfffc_0000, 0xe_0000],
  ])('an image of %d bytes ends at 4 GiB, and its last 128 KiB at 1 MiB', (size, high, low) => {
    const ram = memory()
    const bytes = image(size)
    loadFirmware(ram, bytes)
    expect(Buffer.compare(ram.read(high, size), bytes)).toBe(0)
    expect(Buffer.compare(ram.read(low, 0x10_0000 - low), bytes.subarray(-0x2_0000))).toBe(0)
    expect(ram.read(low - 0x1000, 0x1000).every(byte => byte === 0)).toBe(true)
    expect(ram.read(0x10_0000, 0x1000).every(byte => byte === 0)).toBe(true)
  })

  test.each([0, 1, 0xfff, 0x1001, 0x4_1000])('one of %s bytes is none', size => {
    expect(() => loadFirmware(memory(), new Uint8Array(size))).toThrow(`firmware: "${size} bytes": an image has`)
  })

  test('memory that ends below 1 MiB is refused', () => {
    expect(() => loadFirmware(plainMemory([[0, 0xff000]]), image(0x1000))).toThrow(/^memory: .*no room for firmware/)
  })

  test('its room is behind the pages that KVM needs', () => {
    expect(TSS_ADDRESS + 0x3000).toBeLessThanOrEqual(FIRMWARE_RANGE.guestAddress)
    expect(IDENTITY_MAP_ADDRESS + 0x1000).toBeLessThanOrEqual(TSS_ADDRESS)
    expect(FIRMWARE_RANGE.guestAddress + FIRMWARE_RANGE.size).toBe(2 ** 32)
  })
})

test('firmware is told of RAM, whole, and not of its own image; and of the serial port', () => {
  const files = firmwareFiles(memory())
  const map = new DataView(Uint8Array.from(files.get('etc/e820')!).buffer)
  expect(map.byteLength).toBe(40)
  const entry = (at: number) => [
    map.getBigUint64(at, true),
    map.getBigUint64(at + 8, true),
    map.getUint32(at + 16, true),
  ]
  expect([entry(0), entry(20)]).toEqual([
    [0n, 0x20_0000n, 1],
    [0x1_0000_0000n, 0x1000n, 1],
  ])
  expect([...files.get('etc/sercon-port')!]).toEqual([0xf8, 0x03])
})
