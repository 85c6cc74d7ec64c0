/** One entry of the tables that translate L2's physical addresses: what it says, and what is wrong with it. */
import { bitNames } from './bits.js'
import { PAGE_MASK, type PagingMode } from './pointers.js'
import * as r from './registers.js'

export interface WalkOptions {
  /** L1's physical address bits: bits above them are reserved in an entry. */
  readonly maxPhyAddr?: number | undefined
}

export interface EptWalkOptions extends WalkOptions {
  /** "mode-based execute control for EPT": bit 10 allows execution in user mode. */
  readonly modeBasedExecute?: boolean
  /** Whether the processor has execute-only entries (IA32_VMX_EPT_VPID_CAP bit 0); they are taken where this is not known. */
  readonly executeOnly?: boolean
}

export interface PageEntry {
  readonly present: boolean
  /** Why the processor would take it for a misconfiguration or a reserved-bit fault. */
  readonly wrong?: string | undefined
  readonly leaf: boolean
  readonly readable: boolean
  readonly writable: boolean
  readonly executable: boolean
  readonly memoryType?: string
  /** The next table or the page. */
  readonly target: bigint
  readonly meaning: string
}

/** The address bits that a leaf of that level leaves to the offset. */
function leafMask(level: number, indexBits: number): bigint {
  return (1n << BigInt(12 + (level - 1) * indexBits)) - 1n
}

function tooWide(entry: bigint, maxPhyAddr = 52): string | undefined {
  return (entry & PAGE_MASK) >> BigInt(maxPhyAddr) !== 0n ? `an address of more than ${maxPhyAddr} bits` : undefined
}

const eptTypes = ['UC', 'WC', undefined, undefined, 'WT', 'WP', 'WB', undefined]

/** Intel SDM vol. 3, tables 29-1 to 29-7. */
export function eptEntry(entry: bigint, level: number, options: EptWalkOptions): PageEntry {
  const has = (bit: number) => ((entry >> BigInt(bit)) & 1n) !== 0n
  const [readable, writable, execute] = [has(0), has(1), has(2)]
  const userExecute = options.modeBasedExecute === true && has(10)
  const executable = execute || userExecute
  const leaf = level === 1 || (level <= 3 && has(7))
  const memoryType = leaf ? eptTypes[Number((entry >> 3n) & 7n)] : undefined
  const names = bitNames({ read: 0, write: 1, execute: 2, accessed: 8, dirty: 9 }, entry & 0x307n)
  const kind = leaf ? `page, ${memoryType ?? 'no memory type'}` : 'table'
  return {
    present: readable || writable || executable,
    wrong: eptMisconfiguration(entry, level, leaf, executable, options),
    leaf,
    readable,
    writable,
    executable,
    ...(memoryType !== undefined && { memoryType: has(6) ? `${memoryType}, ignores PAT` : memoryType }),
    target: entry & PAGE_MASK & ~(leaf ? leafMask(level, 9) : 0n),
    meaning: [kind, ...names, ...(userExecute ? ['user execute'] : [])].join(', '),
  }
}

/** Intel SDM vol. 3, section 29.3.3.1 */
function eptMisconfiguration(
  entry: bigint,
  level: number,
  leaf: boolean,
  executable: boolean,
  options: EptWalkOptions,
): string | undefined {
  const readable = (entry & 1n) !== 0n
  if (!readable && (entry & 2n) !== 0n) return 'writable but not readable'
  if (!readable && executable && options.executeOnly === false) return 'executable but not readable'
  const type = Number((entry >> 3n) & 7n)
  if (leaf && eptTypes[type] === undefined) return `memory type ${type}`
  if (!leaf && (entry & (level > 3 ? 0xf8n : 0x78n)) !== 0n) return 'reserved bits of a table entry'
  if (leaf && (entry & PAGE_MASK & leafMask(level, 9)) !== 0n) return 'the page is not aligned to its size'
  return tooWide(entry, options.maxPhyAddr)
}

/** L1's own registers, which its nested tables go by. */
export interface NptHost {
  readonly cr4: bigint
  readonly efer: bigint
}

/** AMD APM vol. 2, section 15.25.5: every nested access counts as one by user; CR0.WP and SMEP do not count. */
export function nptEntry(entry: bigint, level: number, mode: PagingMode, l1: NptHost, options: WalkOptions): PageEntry {
  const has = (bit: number) => ((entry >> BigInt(bit)) & 1n) !== 0n
  const legacy = mode === '32-bit'
  // The four entries of PAE's top table have no permissions and map no page (AMD APM vol. 2, section 5.2.3).
  const pointer = mode === 'PAE' && level === 3
  const large = has(7) && level > 1 && !pointer && (!legacy || (l1.cr4 & r.CR4_PSE) !== 0n)
  const leaf = level === 1 || large
  const user = pointer || has(2)
  const names = bitNames({ write: 1, user: 2, accessed: 5, dirty: 6, 'no execute': 63 }, entry & ((1n << 63n) | 0x66n))
  return {
    present: has(0),
    wrong: legacy
      ? large && has(21)
        ? 'bit 21 of a 4 MiB page'
        : undefined
      : nptReserved(entry, level, { pointer, large }, l1, options),
    leaf,
    // An entry for supervisors only lets nothing through.
    readable: user,
    writable: pointer || (user && has(1)),
    executable: user && (pointer || legacy || !has(63)),
    target: legacy ? legacyTarget(entry, large) : entry & PAGE_MASK & ~(leaf ? leafMask(level, 9) : 0n),
    meaning: [leaf ? 'page' : 'table', ...(pointer ? [] : names)].join(', '),
  }
}

/** AMD APM vol. 2, section 5.3.3 */
function nptReserved(
  entry: bigint,
  level: number,
  { pointer, large }: { pointer: boolean; large: boolean },
  { efer }: NptHost,
  { maxPhyAddr }: WalkOptions,
): string | undefined {
  if (pointer && (entry & 0x1e6n) !== 0n) return 'reserved bits of a page-directory pointer'
  if (large && level > 3) return 'bit 7 of an entry that cannot map a page'
  if (entry >> 63n && (efer & r.EFER_NXE) === 0n) return 'NX without EFER.NXE'
  // Bit 12 of a large page is its PAT bit.
  if (large && (entry & PAGE_MASK & leafMask(level, 9) & ~0x1000n) !== 0n) return 'the page is not aligned to its size'
  return tooWide(entry, maxPhyAddr)
}

/** A 4 MiB page has its address bits 39:32 in bits 20:13 (AMD APM vol. 2, section 5.2.2). */
function legacyTarget(entry: bigint, large: boolean): bigint {
  return large ? (entry & 0xffc0_0000n) | (((entry >> 13n) & 0xffn) << 32n) : entry & 0xffff_f000n
}
