import type { GuestMemory } from '../../memory/guest-memory.js'
import { PAGE_SIZE } from './layout.js'

// Entries of the paging structures (Intel SDM vol. 3, tables 4-14 to 4-20)
const PRESENT = 1n << 0n
const WRITABLE = 1n << 1n
const USER = 1n << 2n
const ACCESSED = 1n << 5n
const DIRTY = 1n << 6n
const LARGE = 1n << 7n
const NO_EXECUTE = 1n << 63n
const ADDRESS = 0x000f_ffff_ffff_f000n

const ENTRIES = 512
const LARGE_PAGE = 0x20_0000
const GIB = 0x4000_0000
const IDENTITY_GIB = 4

/** Bytes that `writeIdentityMap` needs. */
export const IDENTITY_MAP_SIZE = (2 + IDENTITY_GIB) * PAGE_SIZE

/**
 * Writes page tables at guest-physical `address` (a multiple of 4096) that map the first 4 GiB onto themselves, readable,
 * writable and executable, with 2 MiB pages, which every 64-bit processor has. Returns the value for CR3.
 */
export function writeIdentityMap(memory: GuestMemory, address: number): bigint {
  const tables = new BigUint64Array(IDENTITY_MAP_SIZE / 8)
  const pdpt = address + PAGE_SIZE
  tables[0] = BigInt(pdpt) | PRESENT | WRITABLE
  for (let gib = 0; gib < IDENTITY_GIB; gib++) {
    const directory = pdpt + (1 + gib) * PAGE_SIZE
    tables[ENTRIES + gib] = BigInt(directory) | PRESENT | WRITABLE
    for (let i = 0; i < ENTRIES; i++) {
      const page = BigInt(gib * GIB + i * LARGE_PAGE)
      tables[(2 + gib) * ENTRIES + i] = page | PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE
    }
  }
  memory.write(address, new Uint8Array(tables.buffer))
  return BigInt(address)
}

/** Where a linear address leads, and what may be done there. */
export interface Translation {
  readonly physicalAddress: bigint
  /** Bytes: 4 KiB, 2 MiB or 1 GiB. */
  readonly pageSize: number
  readonly writable: boolean
  readonly user: boolean
  readonly executable: boolean
}

/** Which paging the guest uses: `la57` is CR4.LA57, `noExecute` EFER.NXE. Both default to off and on. */
export interface PagingMode {
  readonly la57?: boolean
  readonly noExecute?: boolean
}

/**
 * Walks the guest's 4- or 5-level page tables in software (Intel SDM vol. 3, section 4.5), for diagnostics: it sets no accessed
 * or dirty bits. Returns undefined where the address is not canonical, not mapped, or the tables lie outside memory.
 */
export function translate(
  memory: GuestMemory,
  cr3: bigint,
  linear: bigint,
  mode: PagingMode = {},
): Translation | undefined {
  const { la57 = false, noExecute = true } = mode
  const levels = la57 ? 5 : 4
  if (BigInt.asUintN(64, BigInt.asIntN(12 + 9 * levels, linear)) !== linear) return undefined
  let table = cr3 & ADDRESS
  let [writable, user, executable] = [true, true, true]
  for (let level = levels; level > 0; level--) {
    const shift = BigInt(12 + 9 * (level - 1))
    const at = table + ((linear >> shift) & 0x1ffn) * 8n
    if (!memory.contains(Number(at), 8)) return undefined
    const bytes = memory.read(Number(at), 8)
    const entry = new DataView(bytes.buffer).getBigUint64(0, true)
    if (!(entry & PRESENT)) return undefined
    writable &&= (entry & WRITABLE) !== 0n
    user &&= (entry & USER) !== 0n
    if (noExecute) executable &&= (entry & NO_EXECUTE) === 0n
    if (level === 1 || (entry & LARGE && level <= 3)) {
      const offset = (1n << shift) - 1n
      const physicalAddress = (entry & ADDRESS & ~offset) | (linear & offset)
      return { physicalAddress, pageSize: Number(1n << shift), writable, user, executable }
    }
    table = entry & ADDRESS
  }
  return undefined
}
