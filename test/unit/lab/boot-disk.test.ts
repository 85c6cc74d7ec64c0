import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { bootDisk } from '../../../lib/lab/boot-disk.js'
import { assemble } from '../../guests/assemble.js'

const BASE = 0xff8000
const SEGMENT = { offset: 0x1000, address: 0x1000000, fileSize: 0x3000, memorySize: 0x5000 }

/** The least vmlinux: one segment, and the note of its PVH entry in it. */
function vmlinux({ note = true } = {}): Buffer {
  const file = Buffer.alloc(SEGMENT.offset + SEGMENT.fileSize, 0xcc)
  file.fill(0, 0, 176)
  file.write('\x7fELF\x02\x01\x01', 'latin1')
  file.writeUInt16LE(2, 16)
  file.writeUInt16LE(62, 18)
  file.writeUInt32LE(1, 20)
  file.writeBigUInt64LE(BigInt(SEGMENT.address), 24)
  file.writeBigUInt64LE(64n, 32)
  file.writeUInt16LE(64, 52)
  file.writeUInt16LE(56, 54)
  file.writeUInt16LE(note ? 2 : 1, 56)
  file.writeUInt32LE(1, 64)
  const { offset, address, fileSize, memorySize } = SEGMENT
  const fields = [offset, 0xffffffff81000000n, address, fileSize, memorySize, 0x1000]
  for (const [index, field] of fields.entries()) file.writeBigUInt64LE(BigInt(field), 72 + 8 * index)
  if (note) {
    file.writeUInt32LE(4, 120)
    file.writeBigUInt64LE(0x2000n, 120 + 8)
    file.writeBigUInt64LE(24n, 120 + 32)
    for (const [index, word] of [4, 8, 18].entries()) file.writeUInt32LE(word, 0x2000 + 4 * index)
    file.write('Xen\0', 0x200c, 'latin1')
    file.writeBigUInt64LE(0x1000850n, 0x2010)
  }
  return file
}

const initrd = Buffer.from('the initrd')
const make = () => bootDisk({ kernel: vmlinux(), initrd, commandLine: 'console=ttyS0 x=1' })

test('the boot sector is what its source says', () => {
  const source = readFileSync(new URL('../../../lib/lab/boot-sector.S', import.meta.url), 'utf8')
  const sector = Buffer.from(assemble(source, 0x7c00))
  const disk = make()
  expect(sector).toHaveLength(512)
  expect(disk.subarray(0, 0x1e0)).toEqual(sector.subarray(0, 0x1e0))
  expect(disk.subarray(0x1f0, 512)).toEqual(sector.subarray(0x1f0))
})

test('the kernel, its start information and the initrd are where they are loaded from', () => {
  const disk = make()
  expect(disk.length % (16 * 63 * 512)).toBe(0)
  const [destination, chunks, startInfo, entry] = [0x1e0, 0x1e4, 0x1e8, 0x1ec].map(at => disk.readUInt32LE(at))
  expect([destination, startInfo, entry]).toEqual([BASE, BASE, 0x1000850])
  const memory = disk.subarray(512, 512 + chunks! * 127 * 512)
  const text = (at: number, size: number) => memory.toString('latin1', at - BASE, at - BASE + size)
  const { address, offset, fileSize, memorySize } = SEGMENT
  expect(memory.subarray(address - BASE, address - BASE + fileSize)).toEqual(vmlinux().subarray(offset))
  expect(memory.readUInt32LE(0)).toBe(0x336ec578)
  expect(text(Number(memory.readBigUInt64LE(24)), 18)).toBe('console=ttyS0 x=1\0')
  const list = Number(memory.readBigUInt64LE(16)) - BASE
  const at = Number(memory.readBigUInt64LE(list))
  // Behind the zeroed rest of the kernel's segment, and all of it within what is loaded.
  expect(at).toBeGreaterThanOrEqual(address + memorySize)
  expect(at % 4096).toBe(0)
  expect(text(at, Number(memory.readBigUInt64LE(list + 8)))).toBe('the initrd')
})

test('a kernel that cannot be entered, or too long a command line, is refused', () => {
  const make = (kernel: Buffer, commandLine: string) => () => bootDisk({ kernel, initrd, commandLine })
  expect(make(vmlinux({ note: false }), '')).toThrow(/kernel: .*no unpacked vmlinux with a PVH entry; install xz-utils/)
  expect(make(Buffer.from('packed'), '')).toThrow(/no unpacked vmlinux/)
  expect(make(vmlinux(), 'x'.repeat(2048))).toThrow(/longer than 2047 bytes/)
})
