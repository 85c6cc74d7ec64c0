import { CMDLINE_ADDRESS } from '../arch/x86_64/layout.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { BootInfo } from './boot-info.js'
import { writeCmdline, zeroTerminated } from './cmdline.js'
import { badElf, type ElfImage, loadSegments, parseElf } from './elf.js'
import type { BootEntry, BootSource } from './kernel.js'
import { e820 } from './memory-map.js'
import { type BootModule, loadModules } from './modules.js'

/** The note that holds the 32-bit entry point (Xen: xen/include/public/elfnote.h). */
const XEN_ELFNOTE_PHYS32_ENTRY = 18

// struct hvm_start_info, version 1, and what it points to (Xen: xen/include/public/arch-x86/hvm/start_info.h)
const START_INFO_MAGIC = 0x336ec578
const START_INFO_SIZE = 56
const MODLIST_ENTRY_SIZE = 32
const MEMMAP_ENTRY_SIZE = 24

/** The entry point for PVH, a guest-physical address, or undefined where the image has no note of it. */
export function pvhEntry({ notes }: ElfImage): number | undefined {
  const note = notes.find(
    ({ owner, type, content }) => owner === 'Xen' && type === XEN_ELFNOTE_PHYS32_ENTRY && content.length >= 4,
  )
  if (!note) return undefined
  const view = new DataView(note.content.buffer, note.content.byteOffset, note.content.byteLength)
  // A 64-bit kernel may give it in 8 bytes; what does not fit below 4 GiB is in no segment that 32-bit code could enter.
  return note.content.length >= 8 ? Number(view.getBigUint64(0, true)) : view.getUint32(0, true)
}

/**
 * Loads an ELF kernel to be entered as a PVH guest: in 32-bit protected mode without paging, EBX pointing to the start info
 * (Xen: docs/misc/pvh.pandoc). The initrd becomes the first module, as Linux expects it; the others follow.
 *
 * @throws {ConfigError} `kernel`: as `parseElf`, or without an entry point for PVH; `initrd`, `modules[0]`...: it does not fit, or
 *   its command line is no text; `cmdline`: too long; `memory`: too small for the kernel
 */
export function loadPvh(memory: GuestMemory, file: Uint8Array, source: BootSource): BootEntry {
  const elf = parseElf(file)
  const entry = pvhEntry(elf)
  if (entry === undefined) {
    const remedy = 'give a Linux with CONFIG_PVH, or another kernel with the note XEN_ELFNOTE_PHYS32_ENTRY'
    throw badElf(file, 'it has no entry point for PVH', remedy)
  }
  const inSegment = elf.segments.some(
    ({ physicalAddress, memorySize }) => entry >= physicalAddress && entry < physicalAddress + memorySize,
  )
  if (!inSegment || entry >= 2 ** 32) {
    throw badElf(file, `its PVH entry point 0x${entry.toString(16)} is in none of its segments`, 'give an intact copy')
  }
  const kernel = loadSegments(memory, file, elf)
  const initrd: BootModule[] = source.initrd
    ? [{ field: 'initrd', content: source.initrd, name: 'initrd', cmdline: '' }]
    : []
  const modules = [...initrd, ...(source.modules ?? [])]
  const placed = loadModules(memory, modules, kernel)
  writeCmdline(memory, source.cmdline ?? '')
  const info = new BootInfo(memory)
  const startInfo = info.reserve(START_INFO_SIZE)

  const list = new DataView(new ArrayBuffer(modules.length * MODLIST_ENTRY_SIZE))
  modules.forEach(({ field, cmdline }, i) => {
    const at = i * MODLIST_ENTRY_SIZE
    list.setBigUint64(at, BigInt(placed[i]!.address), true)
    list.setBigUint64(at + 8, BigInt(placed[i]!.size), true)
    if (cmdline !== '') list.setBigUint64(at + 16, BigInt(info.put(zeroTerminated(field, cmdline))), true)
  })
  const map = e820(memory.regions)
  const table = new DataView(new ArrayBuffer(map.length * MEMMAP_ENTRY_SIZE))
  map.forEach(({ address, size, type }, i) => {
    table.setBigUint64(i * MEMMAP_ENTRY_SIZE, BigInt(address), true)
    table.setBigUint64(i * MEMMAP_ENTRY_SIZE + 8, BigInt(size), true)
    table.setUint32(i * MEMMAP_ENTRY_SIZE + 16, type, true)
  })

  const start = new DataView(new ArrayBuffer(START_INFO_SIZE))
  start.setUint32(0, START_INFO_MAGIC, true)
  start.setUint32(4, 1, true) // version
  start.setUint32(12, modules.length, true)
  if (modules.length > 0) start.setBigUint64(16, BigInt(info.put(new Uint8Array(list.buffer))), true)
  start.setBigUint64(24, BigInt(CMDLINE_ADDRESS), true)
  start.setBigUint64(32, BigInt(source.rsdp ?? 0), true)
  start.setBigUint64(40, BigInt(info.put(new Uint8Array(table.buffer))), true)
  start.setUint32(48, map.length, true)
  memory.write(startInfo, new Uint8Array(start.buffer))
  return {
    mode: 'protected',
    registers: { rip: BigInt(entry), rbx: BigInt(startInfo) },
    kernel,
    initrd: source.initrd ? placed[0] : undefined,
    modules: placed.slice(initrd.length),
  }
}
