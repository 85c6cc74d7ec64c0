/**
 * From a guest-physical address of L2 to one of L1, through the tables that L1 keeps: EPT (Intel SDM vol. 3, section 29.3) or nested
 * paging (AMD APM vol. 2, section 15.25). What L1 wrote is hostile: each step reads one entry, and no table is followed twice.
 */
import { type EptWalkOptions, eptEntry, nptEntry, type PageEntry, type WalkOptions } from './page-entries.js'
import { decodeEptp, pageTableRoot, pagingMode } from './pointers.js'
import * as r from './registers.js'

export type { EptWalkOptions, WalkOptions } from './page-entries.js'

/** L1's guest-physical memory; throws for an address that is not there. */
export interface L1Memory {
  read(address: number, length: number): Uint8Array
}

export interface WalkStep {
  /** 1 for the table of 4 KiB pages, counted up to the root. */
  readonly level: number
  readonly entryAddress: bigint
  readonly entry: bigint
  /** What the entry allows and says, in words. */
  readonly meaning: string
}

export interface Mapping {
  readonly outcome: 'mapped'
  /** L1 guest-physical address. */
  readonly physical: bigint
  /** Bytes. */
  readonly pageSize: number
  readonly readable: boolean
  readonly writable: boolean
  readonly executable: boolean
  readonly memoryType?: string
}

export interface NoMapping {
  readonly outcome: 'not present' | 'misconfigured' | 'not in memory' | 'address too wide'
  readonly reason: string
}

export type Walk = (Mapping | NoMapping) & { readonly address: bigint; readonly steps: readonly WalkStep[] }

/** How one kind of table is laid out. */
interface Format {
  readonly levels: number
  readonly entrySize: 4 | 8
  /** Bits of the address that an index has, by level. */
  readonly indexBits: (level: number) => number
  /** Bits of the address that this paging translates. */
  readonly addressBits: number
  /** What an entry says; `leaf` where it maps a page. */
  readonly read: (entry: bigint, level: number) => PageEntry
}

/** Through EPT, of 4 or 5 levels. */
export function walkEpt(memory: L1Memory, eptp: bigint, address: bigint, options: EptWalkOptions = {}): Walk {
  const { root, levels } = decodeEptp(eptp)
  if (levels !== 4 && levels !== 5) {
    return { address, steps: [], outcome: 'misconfigured', reason: `an EPT pointer with ${levels} levels` }
  }
  const format = { levels, entrySize: 8, indexBits: () => 9, addressBits: levels * 9 + 12 } as const
  return walk(memory, root, { ...format, read: (entry, level) => eptEntry(entry, level, options) }, address)
}

/** Through nested paging; `l1` is L1's own state, whose paging mode the nested tables have. */
export function walkNpt(
  memory: L1Memory,
  nCr3: bigint,
  l1: { readonly cr4: bigint; readonly efer: bigint },
  address: bigint,
  options: WalkOptions = {},
): Walk {
  const mode = pagingMode(r.CR0_PG, l1.cr4, l1.efer)
  const root = pageTableRoot(nCr3, mode)
  const read = (entry: bigint, level: number) => nptEntry(entry, level, mode, l1, options)
  if (mode === '32-bit') {
    return walk(memory, root, { levels: 2, entrySize: 4, indexBits: () => 10, addressBits: 32, read }, address)
  }
  if (mode === 'PAE') {
    const indexBits = (level: number) => (level === 3 ? 2 : 9)
    return walk(memory, root, { levels: 3, entrySize: 8, indexBits, addressBits: 32, read }, address)
  }
  const levels = mode === '5-level' ? 5 : 4
  return walk(memory, root, { levels, entrySize: 8, indexBits: () => 9, addressBits: levels * 9 + 12, read }, address)
}

function walk(memory: L1Memory, root: bigint, format: Format, address: bigint): Walk {
  const steps: WalkStep[] = []
  const end = (result: Mapping | NoMapping): Walk => ({ address, steps, ...result })
  if (address >> BigInt(format.addressBits) !== 0n) {
    return end({ outcome: 'address too wide', reason: `these tables translate ${format.addressBits} bits` })
  }
  let table = root
  const allowed = { readable: true, writable: true, executable: true }
  for (let level = format.levels; level > 0; level--) {
    const low = shift(format, level)
    const index = (address >> low) & ((1n << BigInt(format.indexBits(level))) - 1n)
    const entryAddress = table + index * BigInt(format.entrySize)
    const entry = readEntry(memory, entryAddress, format.entrySize)
    if (entry === undefined) {
      return end({ outcome: 'not in memory', reason: `the level ${level} entry at 0x${entryAddress.toString(16)}` })
    }
    const decoded = format.read(entry, level)
    steps.push({ level, entryAddress, entry, meaning: decoded.present ? decoded.meaning : 'not present' })
    if (!decoded.present) return end({ outcome: 'not present', reason: `the level ${level} entry` })
    if (decoded.wrong) return end({ outcome: 'misconfigured', reason: `the level ${level} entry: ${decoded.wrong}` })
    allowed.readable &&= decoded.readable
    allowed.writable &&= decoded.writable
    allowed.executable &&= decoded.executable
    if (decoded.leaf) {
      const pageSize = 2 ** Number(low)
      return end({
        outcome: 'mapped',
        physical: decoded.target | (address & (BigInt(pageSize) - 1n)),
        pageSize,
        ...allowed,
        ...(decoded.memoryType !== undefined && { memoryType: decoded.memoryType }),
      })
    }
    table = decoded.target
  }
  throw new Error('a level 1 entry is a leaf')
}

/** The lowest address bit of a level's index. */
function shift({ indexBits }: Format, level: number): bigint {
  let bits = 12
  for (let below = 1; below < level; below++) bits += indexBits(below)
  return BigInt(bits)
}

function readEntry(memory: L1Memory, address: bigint, size: 4 | 8): bigint | undefined {
  let bytes: Uint8Array
  try {
    bytes = memory.read(Number(address), size)
  } catch (error) {
    // Not in guest memory: that is an answer here.
    if (error instanceof RangeError) return undefined
    throw error
  }
  return bytes.reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n)
}
