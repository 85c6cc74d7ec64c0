import { HIGH_RAM_START } from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import type { Placement } from './memory-map.js'

// System V ABI, "ELF-64 Object File Format", version 1.5, and for 32 bits the Tool Interface Standard's ELF, version 1.2
const MAGIC = 0x464c457f
const ELFCLASS32 = 1
const ELFCLASS64 = 2
const ELFDATA2LSB = 1
const ET_EXEC = 2
const ET_DYN = 3
const EM_386 = 3
const EM_X86_64 = 62
const PT_LOAD = 1
const PT_NOTE = 4
const NOTE_HEADER = 12
/** Kernels have a few hundred bytes of notes: no more is read. */
const NOTES_MAX = 2 ** 20

/** Where a class of ELF files has the fields that are needed, and how wide its addresses are. */
interface ElfClass {
  readonly wide: boolean
  readonly headerSize: number
  readonly entry: number
  readonly phoff: number
  readonly phentsize: number
  readonly phnum: number
  readonly programHeaderSize: number
  readonly p: Readonly<Record<'offset' | 'vaddr' | 'paddr' | 'filesz' | 'memsz' | 'align', number>>
}

const ELF32: ElfClass = {
  wide: false,
  headerSize: 52,
  entry: 24,
  phoff: 28,
  phentsize: 42,
  phnum: 44,
  programHeaderSize: 32,
  p: { offset: 4, vaddr: 8, paddr: 12, filesz: 16, memsz: 20, align: 28 },
}

const ELF64: ElfClass = {
  wide: true,
  headerSize: 64,
  entry: 24,
  phoff: 32,
  phentsize: 54,
  phnum: 56,
  programHeaderSize: 56,
  p: { offset: 8, vaddr: 16, paddr: 24, filesz: 32, memsz: 40, align: 48 },
}

/** A segment to be loaded. */
export interface ElfSegment {
  readonly offset: number
  readonly fileSize: number
  readonly memorySize: number
  readonly physicalAddress: number
  readonly virtualAddress: bigint
}

/** An entry of a note segment. */
export interface ElfNote {
  /** Whose note it is: `Xen`, `Linux`, `GNU`. */
  readonly owner: string
  readonly type: number
  readonly content: Uint8Array
}

/** What an ELF file tells about loading it. */
export interface ElfImage {
  readonly bits: 32 | 64
  /** As the header has it: physical or virtual. */
  readonly entry: bigint
  /** By their physical addresses; none overlaps another. */
  readonly segments: readonly ElfSegment[]
  readonly notes: readonly ElfNote[]
}

/** Whether `file` starts with the ELF magic number. */
export function isElf(file: Uint8Array): boolean {
  return file.length >= 4 && viewOf(file).getUint32(0, true) === MAGIC
}

/**
 * Reads the header, the loadable segments and the notes of an ELF32 or ELF64 executable for x86.
 *
 * @throws {ConfigError} `kernel`: not such a file, cut short, or its segments make no sense
 */
export function parseElf(file: Uint8Array): ElfImage {
  if (!isElf(file)) throw badElf(file, 'it is no ELF file', 'give the vmlinux of a kernel build')
  if (file.length < ELF32.headerSize) throw cutShort(file)
  const view = viewOf(file)
  const wide = view.getUint8(4) === ELFCLASS64
  const elfClass = wide ? ELF64 : ELF32
  const type = view.getUint16(16, true)
  const machine = view.getUint16(18, true)
  const isKernel =
    (wide ? machine === EM_X86_64 : view.getUint8(4) === ELFCLASS32 && machine === EM_386) &&
    view.getUint8(5) === ELFDATA2LSB &&
    (type === ET_EXEC || type === ET_DYN)
  if (!isKernel) throw badElf(file, 'it is no executable for x86', 'give a kernel that was built for x86')
  if (file.length < elfClass.headerSize) throw cutShort(file)
  const { segments, notes } = readProgramHeaders(file, view, elfClass)
  return { bits: wide ? 64 : 32, entry: word(view, elfClass, elfClass.entry), segments, notes }
}

/**
 * The guest-physical address of the entry point. Where what the header has is not inside a segment's physical range, it is taken
 * as virtual and mapped through the segment that holds it.
 *
 * @throws {ConfigError} `kernel`: it is in no segment
 */
export function physicalEntry(file: Uint8Array, { entry, segments }: ElfImage): number {
  const within = (start: bigint, size: number) => entry >= start && entry < start + BigInt(size)
  for (const { physicalAddress, memorySize } of segments) {
    if (within(BigInt(physicalAddress), memorySize)) return Number(entry)
  }
  for (const { virtualAddress, physicalAddress, memorySize } of segments) {
    if (within(virtualAddress, memorySize)) return physicalAddress + Number(entry - virtualAddress)
  }
  throw badElf(file, `its entry point 0x${entry.toString(16)} is in none of its segments`, 'give an intact copy of it')
}

/**
 * Puts the segments into guest memory, each at its physical address, and returns what they occupy.
 *
 * @throws {ConfigError} `memory`: too small for a segment
 */
export function loadSegments(memory: GuestMemory, file: Uint8Array, { segments }: ElfImage): Placement {
  const start = segments[0]!.physicalAddress
  const last = segments.at(-1)!
  const end = last.physicalAddress + last.memorySize
  for (const { physicalAddress, memorySize, offset, fileSize } of segments) {
    if (!memory.contains(physicalAddress, memorySize)) {
      const problem = `this kernel is loaded up to 0x${end.toString(16)}`
      throw new ConfigError('memory', memory.size, problem, `give the guest more than ${Math.ceil(end / 2 ** 20)} MiB`)
    }
    memory.write(physicalAddress, file.subarray(offset, offset + fileSize))
    memory.fill(physicalAddress + fileSize, memorySize - fileSize)
  }
  return { address: start, size: end - start }
}

function readProgramHeaders(file: Uint8Array, view: DataView, elfClass: ElfClass) {
  const table = word(view, elfClass, elfClass.phoff)
  const entrySize = view.getUint16(elfClass.phentsize, true)
  const count = view.getUint16(elfClass.phnum, true)
  if (count > 0 && entrySize < elfClass.programHeaderSize)
    throw badElf(file, 'its program headers are too small', 'give an intact copy of it')
  if (table + BigInt(count * entrySize) > BigInt(file.length)) throw cutShort(file)
  const segments: ElfSegment[] = []
  const notes: ElfNote[] = []
  let notesSize = 0
  for (let i = 0; i < count; i++) {
    const at = Number(table) + i * entrySize
    const type = view.getUint32(at, true)
    const field = (name: keyof ElfClass['p']) => word(view, elfClass, at + elfClass.p[name])
    if (type === PT_LOAD && field('memsz') > 0n) segments.push(readSegment(file, i, field))
    if (type !== PT_NOTE) continue
    const [offset, size] = [field('offset'), field('filesz')]
    if (offset + size > BigInt(file.length)) throw cutShort(file)
    notesSize += Number(size)
    if (notesSize > NOTES_MAX) throw badElf(file, `its notes are larger than ${NOTES_MAX} bytes`, 'strip it')
    notes.push(...readNotes(file.subarray(Number(offset), Number(offset + size)), field('align') === 8n ? 8 : 4))
  }
  if (segments.length === 0) throw badElf(file, 'it has nothing to be loaded', 'give the image of a kernel')
  segments.sort((a, b) => a.physicalAddress - b.physicalAddress)
  // Each byte is loaded once: how long that takes depends on the guest's memory, not on the file's claims.
  const overlaps = segments.some(
    ({ physicalAddress, memorySize }, i) =>
      physicalAddress + memorySize > (segments[i + 1]?.physicalAddress ?? 2 ** 53),
  )
  if (overlaps) throw badElf(file, 'its segments overlap', 'give an intact copy of it')
  return { segments, notes }
}

function readSegment(file: Uint8Array, index: number, field: (name: keyof ElfClass['p']) => bigint): ElfSegment {
  const [offset, physicalAddress, fileSize, memorySize] = [
    field('offset'),
    field('paddr'),
    field('filesz'),
    field('memsz'),
  ]
  if (offset + fileSize > BigInt(file.length)) throw cutShort(file)
  if (fileSize > memorySize || physicalAddress + memorySize > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw badElf(file, `its program header ${index} makes no sense`, 'give an intact copy of it')
  }
  if (physicalAddress < BigInt(HIGH_RAM_START)) {
    const problem = `it wants to be loaded at 0x${physicalAddress.toString(16)}, below 1 MiB, where the boot parameters lie`
    throw badElf(file, problem, 'link it higher')
  }
  return {
    offset: Number(offset),
    fileSize: Number(fileSize),
    memorySize: Number(memorySize),
    physicalAddress: Number(physicalAddress),
    virtualAddress: field('vaddr'),
  }
}

/** The entries of a note segment, up to the first that is cut short. */
function readNotes(segment: Uint8Array, alignment: 4 | 8): ElfNote[] {
  const view = viewOf(segment)
  const align = (n: number) => Math.ceil(n / alignment) * alignment
  const notes: ElfNote[] = []
  for (let at = 0; at + NOTE_HEADER <= segment.length; ) {
    const nameSize = view.getUint32(at, true)
    const content = align(at + NOTE_HEADER + nameSize)
    const contentSize = view.getUint32(at + 4, true)
    if (content + contentSize > segment.length) break
    // The size of the name counts its terminating zero.
    const name = segment.subarray(at + NOTE_HEADER, at + NOTE_HEADER + Math.max(nameSize - 1, 0))
    notes.push({
      owner: Buffer.from(name.subarray(0, 16)).toString('latin1'),
      type: view.getUint32(at + 8, true),
      content: segment.subarray(content, content + contentSize),
    })
    at = align(content + contentSize)
  }
  return notes
}

function word(view: DataView, { wide }: ElfClass, at: number): bigint {
  return wide ? view.getBigUint64(at, true) : BigInt(view.getUint32(at, true))
}

function cutShort(file: Uint8Array): ConfigError {
  return badElf(file, 'it is cut short: its header tells of more than there is', 'give an intact copy of it')
}

/** @internal */
export function badElf(file: Uint8Array, problem: string, remedy: string): ConfigError {
  return new ConfigError('kernel', `ELF file of ${file.length} bytes`, problem, remedy)
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
