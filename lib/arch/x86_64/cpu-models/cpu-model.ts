/** A cache as CPUID leaves 4 and 0x8000001d tell of it; its lines have 64 bytes. */
export interface ModelCache {
  readonly level: 1 | 2 | 3
  readonly type: 'data' | 'instruction' | 'unified'
  /** KiB. */
  readonly size: number
  readonly ways: number
}

/** A processor that a guest may be given by name, the same on any host that can give it. */
export interface CpuModel {
  readonly name: string
  /** The maker, as leaf 0 spells it. `generic` models have that of the host, and so fit both. */
  readonly vendor: 'GenuineIntel' | 'AuthenticAMD' | 'generic'
  readonly family: number
  readonly model: number
  readonly stepping: number
  /** The brand string of leaves 0x80000002 to 0x80000004. */
  readonly brand: string
  /** The highest basic and the highest extended leaf. */
  readonly level: number
  readonly extendedLevel: number
  /** By the names of /proc/cpuinfo. */
  readonly flags: readonly string[]
  /**
   * What vmx offers, by QEMU's names (`vmx-ept`); only with the flag vmx. `host`: the model does not say, and a guest has what KVM on its
   * host offers.
   */
  readonly vmx: readonly string[] | 'host'
  /** Bits of IA32_ARCH_CAPABILITIES, by QEMU's names; only with the flag arch_capabilities. */
  readonly archCapabilities: readonly string[]
  readonly caches: readonly ModelCache[]
  /** Where the facts are from. */
  readonly source: string
}

export const QEMU_SOURCE = 'QEMU, target/i386/cpu.c'

/** The four caches of a core, sizes in KiB. */
export function caches(data: CacheSize, instruction: CacheSize, second: CacheSize, third: CacheSize): ModelCache[] {
  return [
    { level: 1, type: 'data', ...data },
    { level: 1, type: 'instruction', ...instruction },
    { level: 2, type: 'unified', ...second },
    { level: 3, type: 'unified', ...third },
  ]
}

interface CacheSize {
  readonly size: number
  readonly ways: number
}

/** The flags of an older model, and what came after it. */
export function since(older: Pick<CpuModel, 'flags'>, flags: string): string[] {
  return [...older.flags, ...words(flags)]
}

export function words(text: string): string[] {
  return text.split(' ').filter(word => word !== '')
}
