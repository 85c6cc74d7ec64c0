import {
  BIOS_BASE_MEMORY_ADDRESS,
  BIOS_EBDA_SEGMENT_ADDRESS,
  CMDLINE_ADDRESS,
  HIGH_RAM_START,
  LOW_RAM_END,
} from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { BootInfo } from './boot-info.js'
import { writeCmdline, zeroTerminated } from './cmdline.js'
import { isElf, loadSegments, parseElf, physicalEntry } from './elf.js'
import type { BootEntry, BootSource } from './kernel.js'
import { e820, lowMemoryEnd, type Placement } from './memory-map.js'
import { loadModules } from './modules.js'

// Multiboot Specification 0.6.96, section 3.1: the header lies in the first 8192 bytes, on a multiple of 4
const SEARCH_LENGTH = 8192
const HEADER_MAGIC = 0x1badb002
const HEADER_SIZE = 12
/** With the address fields. */
const HEADER_SIZE_FULL = 32

/** Modules are to begin on a page. */
const PAGE_ALIGN = 1 << 0
/** The memory's size and, if there is one, its map are wanted. */
const MEMORY_INFO = 1 << 1
/** What a boot loader has to know, or it must not boot the kernel. */
const REQUIREMENTS = 0xffff
/** The address fields are valid, and go before what the file's own format says. */
const ADDRESSES = 1 << 16

// Section 3.2: how the kernel is entered, 3.3: what EBX points to
const BOOTLOADER_MAGIC = 0x2badb002n
const INFO_SIZE = 116
const INFO_MEMORY = 1 << 0
const INFO_CMDLINE = 1 << 2
const INFO_MODS = 1 << 3
const INFO_MMAP = 1 << 6
const INFO_BOOT_LOADER_NAME = 1 << 9
const MODULE_SIZE = 16
const MMAP_ENTRY_SIZE = 24
const BOOT_LOADER_NAME = 'nested-kvm'

/** The Multiboot header of an image. */
export interface MultibootHeader {
  /** Where it is in the file. */
  readonly offset: number
  readonly flags: number
  /** Where to load what; undefined where the file's own format, ELF, tells. */
  readonly addresses?: {
    readonly header: number
    readonly load: number
    /** 0: all of the file is loaded. */
    readonly loadEnd: number
    /** 0: nothing is cleared. */
    readonly bssEnd: number
    readonly entry: number
  }
}

/** The Multiboot header of `file`, or undefined where it has none. */
export function findMultibootHeader(file: Uint8Array): MultibootHeader | undefined {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  const end = Math.min(file.length, SEARCH_LENGTH)
  for (let offset = 0; offset + HEADER_SIZE <= end; offset += 4) {
    if (view.getUint32(offset, true) !== HEADER_MAGIC) continue
    const flags = view.getUint32(offset + 4, true)
    if ((HEADER_MAGIC + flags + view.getUint32(offset + 8, true)) % 2 ** 32 !== 0) continue
    if (!(flags & ADDRESSES)) return { offset, flags }
    if (offset + HEADER_SIZE_FULL > end) continue
    const [header, load, loadEnd, bssEnd, entry] = [12, 16, 20, 24, 28].map(at =>
      view.getUint32(offset + at, true),
    ) as [number, number, number, number, number]
    return { offset, flags, addresses: { header, load, loadEnd, bssEnd, entry } }
  }
  return undefined
}

/**
 * Loads a Multiboot kernel, to be entered in 32-bit protected mode without paging: an ELF32 file, or any whose header has the
 * address fields. The first word of each command line is the file's name.
 *
 * @throws {ConfigError} `kernel`: no Multiboot header, cut short, or it asks for what there is not; `initrd`: there is one;
 *   `modules[0]`...: it does not fit, or its command line is no text; `cmdline`: too long; `memory`: too small
 */
export function loadMultiboot(memory: GuestMemory, file: Uint8Array, source: BootSource): BootEntry {
  const header = findMultibootHeader(file)
  if (!header) throw bad(file, 'it has no Multiboot header in its first 8192 bytes', 'leave the way to boot at auto')
  if (header.flags & REQUIREMENTS & ~(PAGE_ALIGN | MEMORY_INFO)) {
    const flags = `0x${(header.flags & REQUIREMENTS).toString(16)}`
    throw bad(file, `it asks for more than modules and memory (flags ${flags})`, 'build it without a video mode')
  }
  if (source.initrd) {
    throw new ConfigError('initrd', 'given', 'a Multiboot kernel takes modules instead', 'give it as a module')
  }
  const { entry, kernel } = header.addresses ? loadByAddresses(memory, file, header) : loadByElf(memory, file)
  const modules = source.modules ?? []
  const placed = loadModules(memory, modules, kernel)
  writeCmdline(memory, withName(source.name ?? 'kernel', source.cmdline ?? ''))

  const info = new BootInfo(memory)
  const address = info.reserve(INFO_SIZE)
  const list = new DataView(new ArrayBuffer(modules.length * MODULE_SIZE))
  modules.forEach(({ field, name, cmdline }, i) => {
    list.setUint32(i * MODULE_SIZE, placed[i]!.address, true)
    list.setUint32(i * MODULE_SIZE + 4, placed[i]!.address + placed[i]!.size, true)
    list.setUint32(i * MODULE_SIZE + 8, info.put(zeroTerminated(field, withName(name, cmdline))), true)
  })
  const map = e820(memory.regions)
  const table = new DataView(new ArrayBuffer(map.length * MMAP_ENTRY_SIZE))
  map.forEach(({ address, size, type }, i) => {
    // The size of an entry does not count its own field.
    table.setUint32(i * MMAP_ENTRY_SIZE, MMAP_ENTRY_SIZE - 4, true)
    table.setBigUint64(i * MMAP_ENTRY_SIZE + 4, BigInt(address), true)
    table.setBigUint64(i * MMAP_ENTRY_SIZE + 12, BigInt(size), true)
    table.setUint32(i * MMAP_ENTRY_SIZE + 20, type, true)
  })

  const view = new DataView(new ArrayBuffer(INFO_SIZE))
  const flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODS | INFO_MMAP | INFO_BOOT_LOADER_NAME
  view.setUint32(0, flags, true)
  view.setUint32(4, Math.floor(LOW_RAM_END / 1024), true) // mem_lower, in KiB
  view.setUint32(8, Math.floor((lowMemoryEnd(memory) - HIGH_RAM_START) / 1024), true) // mem_upper
  view.setUint32(16, CMDLINE_ADDRESS, true)
  view.setUint32(20, modules.length, true)
  view.setUint32(24, info.put(new Uint8Array(list.buffer)), true)
  view.setUint32(44, table.byteLength, true)
  view.setUint32(48, info.put(new Uint8Array(table.buffer)), true)
  view.setUint32(64, info.put(zeroTerminated('boot loader', BOOT_LOADER_NAME)), true)
  memory.write(address, new Uint8Array(view.buffer))
  writeBiosData(memory)
  return {
    mode: 'protected',
    registers: { rip: BigInt(entry), rax: BOOTLOADER_MAGIC, rbx: BigInt(address) },
    kernel,
    initrd: undefined,
    modules: placed,
  }
}

/** Kernels of a PC look there for the end of low memory, whatever the information structure says (Xen: xen/arch/x86/boot/head.S). */
function writeBiosData(memory: GuestMemory): void {
  memory.write(BIOS_EBDA_SEGMENT_ADDRESS, new Uint8Array(Uint16Array.of(LOW_RAM_END / 16).buffer))
  memory.write(BIOS_BASE_MEMORY_ADDRESS, new Uint8Array(Uint16Array.of(LOW_RAM_END / 1024).buffer))
}

function loadByElf(memory: GuestMemory, file: Uint8Array): { entry: number; kernel: Placement } {
  if (!isElf(file)) throw bad(file, 'it is no ELF file, and its header has no addresses', 'give an ELF32 kernel')
  const elf = parseElf(file)
  if (elf.bits !== 32) throw bad(file, 'it is a 64-bit ELF file, and Multiboot needs a 32-bit one', 'link it as ELF32')
  return { entry: physicalEntry(file, elf), kernel: loadSegments(memory, file, elf) }
}

/** Section 3.1.3, "The address fields of Multiboot header", made for a.out and flat files. */
function loadByAddresses(memory: GuestMemory, file: Uint8Array, { offset, addresses }: MultibootHeader) {
  const { header, load, loadEnd, bssEnd, entry } = addresses!
  const start = offset - (header - load)
  const size = loadEnd === 0 ? file.length - start : loadEnd - load
  const end = Math.max(load + size, bssEnd)
  const sound = load <= header && start >= 0 && size > 0 && entry >= load && entry < end
  if (!sound || (bssEnd !== 0 && bssEnd < load + size)) {
    throw bad(file, 'the addresses in its Multiboot header make no sense', 'give an intact copy of it')
  }
  if (start + size > file.length) {
    throw bad(file, 'it is cut short: its Multiboot header tells of more than there is', 'give an intact copy of it')
  }
  if (load < HIGH_RAM_START) {
    const problem = `it wants to be loaded at 0x${load.toString(16)}, below 1 MiB, where the boot information lies`
    throw bad(file, problem, 'link it higher')
  }
  if (!memory.contains(load, end - load)) {
    const remedy = `give the guest more than ${Math.ceil(end / 2 ** 20)} MiB`
    throw new ConfigError('memory', memory.size, `this kernel is loaded up to 0x${end.toString(16)}`, remedy)
  }
  memory.write(load, file.subarray(start, start + size))
  memory.fill(load + size, end - load - size)
  return { entry, kernel: { address: load, size: end - load } }
}

/** A name of several words would be taken for arguments. */
function withName(name: string, cmdline: string): string {
  const word = name.replace(/\s+/g, '_')
  return cmdline === '' ? word : `${word} ${cmdline}`
}

function bad(file: Uint8Array, problem: string, remedy: string): ConfigError {
  return new ConfigError('kernel', `file of ${file.length} bytes`, problem, remedy)
}
