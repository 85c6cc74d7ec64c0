import { ConfigError } from '../../errors.js'
import type { CpuidEntry } from '../../kvm/structs.js'
import { SVM_LEAF } from '../../nested/svm-capabilities.js'
import { CPU_FLAG_DEPENDENTS, CPU_FLAGS, type CpuidRegister, type FlagLocation } from './cpu-flags.js'
import type { CpuSpec } from './cpu-spec.js'

const LEAF_FEATURES = 0x1
const LEAF_XSAVE = 0xd
const LEAF_EXTENDED_FEATURES = 0x80000001

/**
 * Bits of leaf 1 EDX that AMD repeats in leaf 0x80000001 EDX (AMD APM vol. 3, appendix E.4.2): 0-9, 12-17, 23, 24.
 */
const AMD_ALIASES = 0x0183_f3ff

/** State components that XCR0 may not have without the flag (Intel SDM vol. 1, section 13.1). */
const XSAVE_COMPONENTS: Readonly<Record<string, readonly number[]>> = {
  avx: [2],
  mpx: [3, 4],
  avx512f: [5, 6, 7],
  pku: [9],
  amx_tile: [17, 18],
}

/** An entry that is being made. */
export type CpuidDraft = { -readonly [K in keyof CpuidEntry]: CpuidEntry[K] }

/** What the platform adds to what `KVM_GET_SUPPORTED_CPUID` reports. */
export interface CpuidOptions {
  /**
   * Offer the APIC timer's TSC deadline mode. KVM leaves telling of it to user space: give it where KVM_CAP_TSC_DEADLINE_TIMER is
   * there and the interrupt controller is in the kernel.
   */
  readonly tscDeadlineTimer?: boolean
}

/**
 * The CPUID table that all vCPUs of a machine share: what the host's KVM supports, cut to `spec`. `vcpuCpuid` makes each
 * vCPU's own table of it. `supported` is left as it is.
 *
 * @throws {ConfigError} `cpu`: a flag is demanded that this host cannot give
 */
export function machineCpuid(
  supported: readonly CpuidEntry[],
  spec: CpuSpec,
  options: CpuidOptions = {},
): CpuidEntry[] {
  const entries: CpuidDraft[] = supported.map(entry => ({ ...entry }))
  setFlag(entries, 'hypervisor')
  if (options.tscDeadlineTimer) setFlag(entries, 'tsc_deadline_timer')
  const offered = new Set(flagsOf(entries))
  for (const flag of spec.demanded) if (!offered.has(flag)) throw notOffered(flag, spec, entries, offered)
  const withheld = withDependents(spec.withheld)
  for (const flag of spec.demanded) {
    if (withheld.has(flag)) {
      throw new ConfigError('cpu', spec.text, `${flag} cannot be had without what is withheld`, `leave out +${flag}`)
    }
  }
  for (const flag of withheld) clearFlag(entries, flag)
  return entries
}

/** The names of the flags that a CPUID table shows, as in /proc/cpuinfo. */
export function flagsOf(entries: readonly CpuidEntry[]): string[] {
  const isSet = ({ leaf, index, register, bit }: FlagLocation) =>
    (((findEntry(entries, leaf, index)?.[register] ?? 0) >>> bit) & 1) === 1
  return [...CPU_FLAGS].filter(([, locations]) => locations.some(isSet)).map(([name]) => name)
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
  return /^(AuthenticAMD|HygonGenuine)$/.test(vendorOf(entries))
}

function withDependents(flags: readonly string[]): Set<string> {
  const all = new Set(flags)
  // A set's iterator also visits what is added on the way.
  for (const flag of all) for (const dependent of CPU_FLAG_DEPENDENTS.get(flag) ?? []) all.add(dependent)
  return all
}

function setFlag(entries: CpuidDraft[], flag: string): void {
  for (const { leaf, index, register, bit } of CPU_FLAGS.get(flag) ?? []) {
    const entry = findEntry(entries, leaf, index)
    if (entry) entry[register] = (entry[register] | (1 << bit)) >>> 0
  }
}

function clearFlag(entries: CpuidDraft[], flag: string): void {
  for (const { leaf, index, register, bit } of CPU_FLAGS.get(flag) ?? []) {
    clearBit(findEntry(entries, leaf, index), register, bit)
    if (leaf === LEAF_FEATURES && register === 'edx' && (AMD_ALIASES >>> bit) & 1 && isAmd(entries)) {
      clearBit(findEntry(entries, LEAF_EXTENDED_FEATURES), 'edx', bit)
    }
  }
  if (flag === 'svm') clearLeaf(entries, entry => entry.function === SVM_LEAF)
  if (flag === 'xsave') clearLeaf(entries, entry => entry.function === LEAF_XSAVE)
  for (const component of XSAVE_COMPONENTS[flag] ?? []) {
    clearBit(findEntry(entries, LEAF_XSAVE), 'eax', component)
    clearLeaf(entries, entry => entry.function === LEAF_XSAVE && entry.index === component)
  }
}

function clearBit(entry: CpuidDraft | undefined, register: CpuidRegister, bit: number): void {
  if (entry) entry[register] = (entry[register] & ~(1 << bit)) >>> 0
}

function clearLeaf(entries: readonly CpuidDraft[], matches: (entry: CpuidEntry) => boolean): void {
  for (const entry of entries) if (matches(entry)) entry.eax = entry.ebx = entry.ecx = entry.edx = 0
}

function notOffered(flag: string, spec: CpuSpec, entries: readonly CpuidEntry[], offered: Set<string>): ConfigError {
  if (flag !== 'vmx' && flag !== 'svm') {
    const remedy = `leave out +${flag}, or run on a host whose processor and kernel have it`
    return new ConfigError('cpu', spec.text, `KVM on this host does not offer ${flag} to guests`, remedy)
  }
  const other = flag === 'vmx' ? 'svm' : 'vmx'
  if (offered.has(other)) {
    const problem = `this host has ${other}, not ${flag}: its processor is ${vendorOf(entries)}`
    return new ConfigError('cpu', spec.text, problem, `ask for +${other}`)
  }
  const module = flag === 'vmx' ? 'kvm_intel' : 'kvm_amd'
  return new ConfigError(
    'cpu',
    spec.text,
    `KVM on this host does not offer ${flag} to guests: it cannot nest`,
    `load ${module} with nested=1 (nested-kvm doctor tells whether that is possible here), or use the lab (nested-kvm lab)`,
  )
}
