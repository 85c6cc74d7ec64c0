import { ConfigError } from '../../errors.js'
import type { CpuidEntry } from '../../kvm/structs.js'
import { CPU_FLAGS, type FlagLocation } from './cpu-flags.js'
import { flagNamed, nearestName } from './cpu-names.js'
import {
  AMD_ALIASES,
  type CpuidDraft,
  clearFlag,
  findEntry,
  flagsOf,
  isAmd,
  isSet,
  LEAF_EXTENDED_FEATURES,
  LEAF_FEATURES,
  LEAF_XSAVE,
  placesOf,
  sizeXsaveArea,
  withDependents,
} from './cpuid.js'
import { type CpuidProblem, checkCpuid } from './cpuid-check.js'
import { vcpuCpuid } from './topology.js'

/** `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the entry counts for this value of ECX only. */
const SIGNIFICANT_INDEX = 1
/** Leaves that have sub-leaves. */
const INDEXED: ReadonlySet<number> = new Set([0x4, 0x7, 0xb, LEAF_XSAVE, 0x1d, 0x1e, 0x1f, 0x8000001d])

/**
 * A CPUID table to edit, by flag, by bit or by register (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E). `vcpu.setCpuid` takes its
 * `entries`, or those that `forVcpu` makes for one of several vCPUs.
 *
 * ```ts
 * const table = new CpuidTable(kvm.supportedCpuid())
 * table.remove('avx512f')
 * table.add('hypervisor')
 * table.entry(0x40000000).ebx = 0x4b4d564b
 * table.setBit({ leaf: 7, index: 0, register: 'ecx', bit: 22 }, false)
 * for (const { invariant, problem } of table.check()) console.warn(invariant, problem)
 * vcpu.setCpuid(table.entries)
 * ```
 */
export class CpuidTable {
  readonly #entries: CpuidDraft[]

  /** @param entries left as they are */
  constructor(entries: readonly CpuidEntry[] = []) {
    this.#entries = entries.map(entry => ({ ...entry }))
  }

  /** What `vcpu.setCpuid` takes; changes of the table show in it. */
  get entries(): readonly CpuidEntry[] {
    return this.#entries
  }

  /** The flags that are set, by the names of /proc/cpuinfo. */
  get flags(): string[] {
    return flagsOf(this.#entries)
  }

  /** The registers of a leaf, to be changed; it is added, empty, where it is missing. Values are unsigned (`>>> 0`). */
  entry(leaf: number, index = 0): CpuidDraft {
    const known = findEntry(this.#entries, leaf, index)
    if (known) return known
    const flags = INDEXED.has(leaf) ? SIGNIFICANT_INDEX : 0
    const made = { function: leaf, index, flags, eax: 0, ebx: 0, ecx: 0, edx: 0 }
    this.#entries.push(made)
    return made
  }

  bit(at: FlagLocation): boolean {
    return isSet(this.#entries, at)
  }

  setBit({ leaf, index, register, bit }: FlagLocation, on = true): void {
    if (!Number.isInteger(bit) || bit < 0 || bit > 31) {
      throw new ConfigError('bit', bit, 'a register has 32', 'give a number from 0 to 31')
    }
    const entry = this.entry(leaf, index)
    entry[register] = (on ? entry[register] | (1 << bit) : entry[register] & ~(1 << bit)) >>> 0
  }

  /** @throws {ConfigError} `flag`: there is none of this name */
  has(flag: string): boolean {
    return CPU_FLAGS.get(known(flag))!.some(at => isSet(this.#entries, at))
  }

  /**
   * Sets a flag where this table's maker has it. What belongs to it, state components and leaves, is the caller's: `check()` says what is
   * missing.
   * @throws {ConfigError} `flag`: there is none of this name
   */
  add(flag: string): void {
    const amd = isAmd(this.#entries)
    for (const at of placesOf(known(flag), amd)) {
      this.setBit(at)
      const repeated = amd && at.leaf === LEAF_FEATURES && at.register === 'edx' && (AMD_ALIASES >>> at.bit) & 1
      if (repeated) this.setBit({ ...at, leaf: LEAF_EXTENDED_FEATURES })
    }
  }

  /**
   * Clears a flag with all that means nothing without it: other flags, state components, leaves.
   * @throws {ConfigError} `flag`: there is none of this name
   */
  remove(flag: string): void {
    for (const gone of withDependents([known(flag)])) clearFlag(this.#entries, gone)
    sizeXsaveArea(this.#entries)
  }

  /** The table of one of `count` vCPUs: one package of cores with one thread each, whose APIC ids are the vCPU ids. */
  forVcpu(id: number, count: number): CpuidEntry[] {
    return vcpuCpuid(this.#entries, id, count)
  }

  /** The invariants that the table breaks. */
  check(): CpuidProblem[] {
    return checkCpuid(this.#entries)
  }
}

function known(name: string): string {
  const flag = flagNamed(name)
  if (flag) return flag
  const near = nearestName(name, CPU_FLAGS.keys())
  const remedy = near ? `did you mean ${near}?` : 'the flags have the names that /proc/cpuinfo shows'
  throw new ConfigError('flag', name, 'there is no such CPU flag', remedy)
}
