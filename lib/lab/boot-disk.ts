import { isElf, parseElf } from '../boot/elf.js'
import { pvhEntry } from '../boot/pvh.js'
import { ConfigError } from '../errors.js'

/** What the disk starts. */
export interface BootDisk {
  /** A `vmlinux` with a PVH entry. */
  readonly kernel: Buffer
  readonly initrd: Buffer
  readonly commandLine: string
}

/** In memory, all that is loaded is one piece, from here up: the start information, the kernel at its place (16 MiB), the initrd. */
const BASE = 0xff8000
const MODULE_LIST = 0x100
const COMMAND_LINE = 0x1000
/** The kernel's own limit (arch/x86/include/asm/setup.h). */
const COMMAND_LINE_SIZE = 2048
/** Where the boot sector puts the memory map. */
const MEMORY_MAP = 0x8000

const SECTOR = 512
/** What the boot sector reads at a time: the most that BIOSes take (EDD: 127 sectors a packet). In an L2, each call takes long. */
const CHUNK = 127 * SECTOR
/** 16 heads of 63 sectors: what an emulator takes a disk image for when it is not told otherwise. */
const CYLINDER = 16 * 63 * SECTOR

/** Fields of the boot sector that are filled in here. */
const FIELD = { destination: 0x1e0, chunks: 0x1e4, startInfo: 0x1e8, entry: 0x1ec }

/**
 * The boot sector: reads the rest of the disk to BASE through the BIOS, asks it for the memory map and enters the kernel by
 * its PVH entry (Xen: docs/misc/pvh.pandoc). A second start, after a reset, is the end: the emulator is told to stop. Its source is
 * boot-sector.S, beside this file; a test holds them together.
 */
const BOOT_SECTOR = Buffer.from(
  [
    'fa31c08ed88ec08ed0bc007cfce4920c02e692803ef47d000f85e500c606f47d01c706d27d0100c706d67d0000c706d4',
    '7d007c66c706d87d00000000bed07db80043b280cd13c706d27d7f00c706d67d0010c706d47d000066c706d87d010000',
    '00fbbed07db442b280cd130f829200fa0f01162e7d0f20c00c010f22c0bb10008edb8ec324fe0f22c031db8edb8ec366',
    'be00000100668b3ee07d66b9803f00006766f3a566893ee07d8306d87d7f8316da7d0066ff0ee47d75a76631dbbf0080',
    '66b820e8000066ba50414d5366b914000000cd15721566c745140000000083c71866ff06f07d6685db75d5fa0f01162e',
    '7d0f20c00c010f22c066ea0f7d00000800be507dba0089acee84c075fafaf4b8100000008ed88ec08ed08b1de87d0000',
    'a1f07d0000894330ff25ec7d00001700387d00000f1f40000000000000000000ffff0000009bcf00ffff00000093cf00',
    '53687574646f776e00000000000000000000000000000000000000000000000000000000000000000000000000000000',
    '000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000',
    '000000000000000000000000000000000000000000000000000000000000000010007f00000000100100000000000000',
    '00000000000000000000000000000000000000000000000000000000000055aa',
  ].join(''),
  'hex',
)

/**
 * A disk image that a PC BIOS boots into a Linux kernel: an unpacked one, so that no emulated CPU has to unpack it.
 *
 * @throws ConfigError for a kernel without a PVH entry, or a command line that is too long.
 */
export function bootDisk({ kernel, initrd, commandLine }: BootDisk): Buffer {
  const elf = isElf(kernel) ? parseElf(kernel) : undefined
  const entry = elf && pvhEntry(elf)
  if (!elf || entry === undefined) {
    const remedy = 'install xz-utils, lz4 and zstd, and remove the kernels from the cache: they are unpacked anew'
    throw new ConfigError('kernel', '', 'is no unpacked vmlinux with a PVH entry', remedy)
  }
  const words = Buffer.from(`${commandLine}\0`)
  if (words.length > COMMAND_LINE_SIZE) {
    throw new ConfigError('kernel command line', commandLine, 'is longer than 2047 bytes', 'use fewer words')
  }
  const { segments } = elf
  const end = Math.max(...segments.map(({ physicalAddress, memorySize }) => physicalAddress + memorySize))
  const initrdAt = Math.ceil(end / 4096) * 4096
  const chunks = Math.ceil((initrdAt + initrd.length - BASE) / CHUNK)
  const disk = Buffer.alloc(Math.ceil((SECTOR + chunks * CHUNK) / CYLINDER) * CYLINDER)
  const memory = disk.subarray(SECTOR)
  for (const { physicalAddress, offset, fileSize } of segments) {
    kernel.copy(memory, physicalAddress - BASE, offset, offset + fileSize)
  }
  initrd.copy(memory, initrdAt - BASE)
  words.copy(memory, COMMAND_LINE)
  // struct hvm_start_info, version 1 (Xen: xen/include/public/arch-x86/hvm/start_info.h). The entry count at 48 is the boot sector's.
  memory.writeUInt32LE(0x336ec578, 0)
  memory.writeUInt32LE(1, 4)
  memory.writeUInt32LE(1, 12)
  memory.writeBigUInt64LE(BigInt(BASE + MODULE_LIST), 16)
  memory.writeBigUInt64LE(BigInt(BASE + COMMAND_LINE), 24)
  memory.writeBigUInt64LE(BigInt(MEMORY_MAP), 40)
  // struct hvm_modlist_entry: the initrd.
  memory.writeBigUInt64LE(BigInt(initrdAt), MODULE_LIST)
  memory.writeBigUInt64LE(BigInt(initrd.length), MODULE_LIST + 8)

  BOOT_SECTOR.copy(disk)
  disk.writeUInt32LE(BASE, FIELD.destination)
  disk.writeUInt32LE(chunks, FIELD.chunks)
  disk.writeUInt32LE(BASE, FIELD.startInfo)
  disk.writeUInt32LE(entry, FIELD.entry)
  return disk
}
