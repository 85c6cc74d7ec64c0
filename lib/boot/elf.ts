import { HIGH_RAM_START, KERNEL_ADDRESS, PAGE_SIZE } from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { BOOT_FLAG, HEADER, HEADER_MAGIC } from './boot-params.js'
import type { LoadedKernel } from './kernel.js'

// System V ABI, "ELF-64 Object File Format", version 1.5
const MAGIC = 0x464c457f
const EHDR_SIZE = 64
const PHDR_SIZE = 56
const ELFCLASS64 = 2
const ELFDATA2LSB = 1
const ET_EXEC = 2
const ET_DYN = 3
const EM_X86_64 = 62
const PT_LOAD = 1

/** An ELF kernel has no setup header: what its boot loader may assume (arch/x86/include/asm/setup.h, COMMAND_LINE_SIZE). */
const COMMAND_LINE_SIZE = 2048
const INITRD_ADDRESS_MAX = 0x7fff_ffff
/** Version of the boot protocol that is claimed towards the kernel. */
const PROTOCOL_VERSION = 0x20f

/** A segment to be loaded. */
export interface ElfSegment {
  readonly offset: number
  readonly fileSize: number
  readonly memorySize: number
  readonly physicalAddress: number
  readonly virtualAddress: bigint
}

/** What an ELF file tells about loading it. `entry` is the guest-physical address of its entry point. */
export interface ElfImage {
  readonly entry: number
  readonly segments: readonly ElfSegment[]
}

/** Whether `file` starts with the ELF magic number. */
export function isElf(file: Uint8Array): boolean {
  return file.length >= 4 && viewOf(file).getUint32(0, true) === MAGIC
}

/**
 * Reads the header and the loadable segments of an ELF64 executable for x86-64.
 *
 * The entry point of a Linux `vmlinux` is a physical address; where it is not inside a segment's physical range it is
 * taken as virtual and mapped through the segment that holds it.
 *
 * @throws {ConfigError} `kernel`: not such a file, cut short, or its segments make no sense
 */
export function parseElf(file: Uint8Array): ElfImage {
  if (!isElf(file)) throw bad(file, 'it is no ELF file', 'give the vmlinux of a kernel build')
  if (file.length < EHDR_SIZE) throw cutShort(file)
  const view = viewOf(file)
  const type = view.getUint16(16, true)
  const isKernel =
    view.getUint8(4) === ELFCLASS64 &&
    view.getUint8(5) === ELFDATA2LSB &&
    (type === ET_EXEC || type === ET_DYN) &&
    view.getUint16(18, true) === EM_X86_64
  if (!isKernel)
    throw bad(file, 'it is no 64-bit executable for x86-64', 'give the vmlinux of a kernel built for x86-64')
  const segments = loadableSegments(file, view)
  return { entry: physicalEntry(file, view.getBigUint64(24, true), segments), segments }
}

/**
 * Puts an ELF64 `vmlinux` into guest memory, each segment at its physical address.
 *
 * @throws {ConfigError} `kernel` as `parseElf`; `memory`: too small for a segment
 */
export function loadElf(memory: GuestMemory, file: Uint8Array): LoadedKernel {
  const { entry, segments } = parseElf(file)
  const start = Math.min(...segments.map(segment => segment.physicalAddress))
  const end = Math.max(...segments.map(segment => segment.physicalAddress + segment.memorySize))
  for (const { physicalAddress, memorySize, offset, fileSize } of segments) {
    if (!memory.contains(physicalAddress, memorySize)) {
      const problem = `this kernel is loaded up to 0x${end.toString(16)}`
      throw new ConfigError('memory', memory.size, problem, `give the guest more than ${Math.ceil(end / 2 ** 20)} MiB`)
    }
    memory.write(physicalAddress, file.subarray(offset, offset + fileSize))
    memory.fill(physicalAddress + fileSize, memorySize - fileSize)
  }
  return {
    entry,
    occupied: { address: start, size: end - start },
    initrdAddressMax: INITRD_ADDRESS_MAX,
    cmdlineMax: COMMAND_LINE_SIZE - 1,
    params: bootParams(),
  }
}

function loadableSegments(file: Uint8Array, view: DataView): ElfSegment[] {
  const table = view.getBigUint64(32, true)
  const entrySize = view.getUint16(54, true)
  const count = view.getUint16(56, true)
  if (count > 0 && entrySize < PHDR_SIZE)
    throw bad(file, 'its program headers are too small', 'give an intact copy of it')
  if (table + BigInt(count * entrySize) > BigInt(file.length)) throw cutShort(file)
  const segments: ElfSegment[] = []
  for (let i = 0; i < count; i++) {
    const at = Number(table) + i * entrySize
    if (view.getUint32(at, true) !== PT_LOAD) continue
    const [offset, virtualAddress, physicalAddress, fileSize, memorySize] = [8, 16, 24, 32, 40].map(field =>
      view.getBigUint64(at + field, true),
    ) as [bigint, bigint, bigint, bigint, bigint]
    if (memorySize === 0n) continue
    if (offset + fileSize > BigInt(file.length)) throw cutShort(file)
    if (fileSize > memorySize || physicalAddress + memorySize > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw bad(file, `its program header ${i} makes no sense`, 'give an intact copy of it')
    }
    if (physicalAddress < BigInt(HIGH_RAM_START)) {
      const where = `0x${physicalAddress.toString(16)}`
      throw bad(file, `it wants to be loaded at ${where}, below 1 MiB, where the boot parameters lie`, 'link it higher')
    }
    segments.push({
      offset: Number(offset),
      fileSize: Number(fileSize),
      memorySize: Number(memorySize),
      physicalAddress: Number(physicalAddress),
      virtualAddress,
    })
  }
  if (segments.length === 0) throw bad(file, 'it has nothing to be loaded', 'give the vmlinux of a kernel build')
  return segments
}

function physicalEntry(file: Uint8Array, entry: bigint, segments: readonly ElfSegment[]): number {
  const within = (start: bigint, size: number) => entry >= start && entry < start + BigInt(size)
  for (const { physicalAddress, memorySize } of segments) {
    if (within(BigInt(physicalAddress), memorySize)) return Number(entry)
  }
  for (const { virtualAddress, physicalAddress, memorySize } of segments) {
    if (within(virtualAddress, memorySize)) return physicalAddress + Number(entry - virtualAddress)
  }
  throw bad(file, `its entry point 0x${entry.toString(16)} is in none of its segments`, 'give an intact copy of it')
}

function bootParams(): Uint8Array {
  const params = new Uint8Array(PAGE_SIZE)
  const view = viewOf(params)
  view.setUint16(HEADER.boot_flag, BOOT_FLAG, true)
  view.setUint32(HEADER.header, HEADER_MAGIC, true)
  view.setUint16(HEADER.version, PROTOCOL_VERSION, true)
  view.setUint16(HEADER.vid_mode, 0xffff, true)
  view.setUint32(HEADER.kernel_alignment, KERNEL_ADDRESS, true)
  return params
}

function cutShort(file: Uint8Array): ConfigError {
  return bad(file, 'it is cut short: its header tells of more than there is', 'give an intact copy of it')
}

function bad(file: Uint8Array, problem: string, remedy: string): ConfigError {
  return new ConfigError('kernel', `ELF file of ${file.length} bytes`, problem, remedy)
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
