import type { CpuidEntry } from '../../kvm/structs.js'
import { SVM_LEAF } from '../../nested/svm-capabilities.js'
import { CPU_FLAG_DEPENDENTS, CPU_FLAGS, type CpuidRegister, type FlagLocation } from './cpu-flags.js'

export const LEAF_FEATURES = 0x1
export const LEAF_XSAVE = 0xd
export const LEAF_EXTENDED_FEATURES = 0x80000001
export const LEAF_SIZES = 0x80000008

/**
 * Bits of leaf 1 EDX that AMD repeats in leaf 0x80000001 EDX (AMD APM vol. 3, appendix E.4.2): 0-9, 12-17, 23, 24.
 */
export const AMD_ALIASES = 0x0183_f3ff

/** State components that XCR0 may not have without the flag (Intel SDM vol. 1, section 13.1). */
export const XSAVE_COMPONENTS: Readonly<Record<string, readonly number[]>> = {
  avx: [2],
  mpx: [3, 4],
  avx512f: [5, 6, 7],
  pku: [9],
  amx_tile: [17, 18],
}

/** The x87 and SSE state with the header: what an XSAVE area has in any case (Intel SDM vol. 1, section 13.4). */
export const LEAST_XSAVE_AREA = 576

/** An entry that is being made. */
export type CpuidDraft = { -readonly [K in keyof CpuidEntry]: CpuidEntry[K] }

/** The names of the flags that a CPUID table shows, as in /proc/cpuinfo. */
export function flagsOf(entries: readonly CpuidEntry[]): string[] {
  return [...CPU_FLAGS].filter(([, locations]) => locations.some(at => isSet(entries, at))).map(([name]) => name)
}

/** Whether a table has a bit. */
export function isSet(entries: readonly CpuidEntry[], { leaf, index, register, bit }: FlagLocation): boolean {
  return (((findEntry(entries, leaf, index)?.[register] ?? 0) >>> bit) & 1) === 1
}

/** The entry for a leaf; `index` counts only for leaves that have sub-leaves. */
export function findEntry<E extends CpuidEntry>(entries: readonly E[], leaf: number, index = 0): E | undefined {
  return entries.find(entry => entry.function === leaf && entry.index === index)
}

/** The processor's maker, as leaf 0 spells it: `GenuineIntel`, `AuthenticAMD`, ... */
export function vendorOf(entries: readonly CpuidEntry[]): string {
  const leaf = findEntry(entries, 0)
  if (!leaf) return ''
  return Buffer.from(Uint32Array.of(leaf.ebx, leaf.edx, leaf.ecx).buffer).toString('latin1')
}

/** Whether the processor counts its cores AMD's way. */
export function isAmd(entries: readonly CpuidEntry[]): boolean {
  return isAmdVendor(vendorOf(entries))
}

export function isAmdVendor(vendor: string): boolean {
  return /^(AuthenticAMD|HygonGenuine)$/.test(vendor)
}

/**
 * The bits that tell of a flag on a processor of this kind: where Intel and AMD have different ones (speculation control: leaf 7 or
 * 0x80000008), only those of the kind.
 */
export function placesOf(flag: string, amd: boolean): readonly FlagLocation[] {
  const places = CPU_FLAGS.get(flag) ?? []
  if (places.length < 2) return places
  return places.filter(({ leaf }) => (leaf === LEAF_SIZES) === amd)
}

/** These flags, and those that mean nothing without them. */
export function withDependents(flags: Iterable<string>): Set<string> {
  const all = new Set(flags)
  // A set's iterator also visits what is added on the way.
  for (const flag of all) for (const dependent of CPU_FLAG_DEPENDENTS.get(flag) ?? []) all.add(dependent)
  return all
}

export function setFlag(entries: readonly CpuidDraft[], flag: string): void {
  for (const { leaf, index, register, bit } of CPU_FLAGS.get(flag) ?? []) {
    const entry = findEntry(entries, leaf, index)
    if (entry) entry[register] = (entry[register] | (1 << bit)) >>> 0
  }
}

/** Takes a flag away, with the leaves and the state components that are only there for it. */
export function clearFlag(entries: readonly CpuidDraft[], flag: string): void {
  for (const { leaf, index, register, bit } of CPU_FLAGS.get(flag) ?? []) {
    clearBit(findEntry(entries, leaf, index), register, bit)
    if (leaf === LEAF_FEATURES && register === 'edx' && (AMD_ALIASES >>> bit) & 1 && isAmd(entries)) {
      clearBit(findEntry(entries, LEAF_EXTENDED_FEATURES), 'edx', bit)
    }
  }
  if (flag === 'svm') clearLeaf(entries, entry => entry.function === SVM_LEAF)
  if (flag === 'xsave') clearLeaf(entries, entry => entry.function === LEAF_XSAVE)
  if (flag === 'xsaves') clearSupervisorState(entries)
  for (const component of XSAVE_COMPONENTS[flag] ?? []) {
    clearBit(findEntry(entries, LEAF_XSAVE), 'eax', component)
    clearLeaf(entries, entry => entry.function === LEAF_XSAVE && entry.index === component)
  }
}

/** Makes the size of the XSAVE area that of the components that are left (Intel SDM vol. 1, section 13.2). */
export function sizeXsaveArea(entries: readonly CpuidDraft[]): void {
  const main = findEntry(entries, LEAF_XSAVE)
  if (main && main.eax !== 0) main.ebx = main.ecx = xsaveAreaSize(entries)
}

/** Bytes of an XSAVE area with all components of XCR0, each at its place. */
export function xsaveAreaSize(entries: readonly CpuidEntry[]): number {
  const components = findEntry(entries, LEAF_XSAVE)?.eax ?? 0
  return entries
    .filter(
      ({ function: leaf, index }) => leaf === LEAF_XSAVE && index >= 2 && index < 32 && (components >>> index) & 1,
    )
    .reduce((size, { eax, ebx }) => Math.max(size, eax + ebx), LEAST_XSAVE_AREA)
}

function clearSupervisorState(entries: readonly CpuidDraft[]): void {
  const leaf = findEntry(entries, LEAF_XSAVE, 1)
  if (leaf) leaf.ecx = leaf.edx = 0
  // Bit 0 of ECX: the component is of IA32_XSS.
  clearLeaf(entries, entry => entry.function === LEAF_XSAVE && entry.index >= 2 && (entry.ecx & 1) === 1)
}

function clearBit(entry: CpuidDraft | undefined, register: CpuidRegister, bit: number): void {
  if (entry) entry[register] = (entry[register] & ~(1 << bit)) >>> 0
}

function clearLeaf(entries: readonly CpuidDraft[], matches: (entry: CpuidEntry) => boolean): void {
  for (const entry of entries) if (matches(entry)) entry.eax = entry.ebx = entry.ecx = entry.edx = 0
}
