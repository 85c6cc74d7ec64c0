import { describe, expect, it } from 'vitest'
import { missingFeatures } from '../../../lib/arch/x86_64/compatibility.js'
import type { CpuidEntry, Msr } from '../../../lib/kvm/structs.js'
import { VMX_MSRS } from '../../../lib/nested/vmx-capabilities.js'
import { VMX_FEATURES } from '../../../lib/nested/vmx-features.js'
import { AMD, INTEL } from './cpuid-tables.js'

/** `table` with one register changed. */
function changed(
  table: readonly CpuidEntry[],
  leaf: number,
  index: number,
  change: (entry: CpuidEntry) => Partial<CpuidEntry>,
): CpuidEntry[] {
  return table.map(entry => {
    const found = entry.function === leaf && entry.index === index
    return found ? { ...entry, ...change(entry) } : entry
  })
}

const without = (
  table: readonly CpuidEntry[],
  leaf: number,
  index: number,
  register: 'eax' | 'ebx' | 'ecx' | 'edx',
  bit: number,
) => changed(table, leaf, index, entry => ({ [register]: (entry[register] & ~(1 << bit)) >>> 0 }))

const missing = (saved: readonly CpuidEntry[], host: readonly CpuidEntry[]) =>
  missingFeatures({ cpuid: saved, msrs: [] }, { cpuid: host, featureMsrs: [] })

/** The capabilities that KVM 6.1 gives L1 on a recent processor. */
const VMX: readonly Msr[] = [
  [VMX_MSRS.IA32_VMX_BASIC, 0x00da_1000_11e5_7ed0n],
  [VMX_MSRS.IA32_VMX_TRUE_PINBASED_CTLS, 0xff_0000_0016n],
  [VMX_MSRS.IA32_VMX_TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172n],
  [VMX_MSRS.IA32_VMX_PROCBASED_CTLS2, 0x0213_7fff_0000_0000n],
  [VMX_MSRS.IA32_VMX_TRUE_EXIT_CTLS, 0x007f_ffff_0003_6dfbn],
  [VMX_MSRS.IA32_VMX_TRUE_ENTRY_CTLS, 0x0001_f3ff_0000_11fbn],
  [VMX_MSRS.IA32_VMX_MISC, 0x2000_0165n],
  [VMX_MSRS.IA32_VMX_CR0_FIXED0, 0x8000_0021n],
  [VMX_MSRS.IA32_VMX_CR4_FIXED0, 0x2000n],
  [VMX_MSRS.IA32_VMX_EPT_VPID_CAP, 0xf01_0673_4141n],
  [VMX_MSRS.IA32_VMX_VMFUNC, 1n],
].map(([index, value]) => ({ index: Number(index), value: BigInt(value!) }))

/** What is missing where the host's value of one capability MSR has these bits flipped. */
function vmxMissing(msr: number, flip: bigint, savedFlip = 0n): string[] {
  const flipped = (by: bigint) => VMX.map(m => (m.index === msr ? { ...m, value: m.value ^ by } : m))
  return missingFeatures({ cpuid: INTEL, msrs: flipped(savedFlip) }, { cpuid: INTEL, featureMsrs: flipped(flip) })
}

describe('CPUID', () => {
  it('lacks nothing on the same host, nor on one that has more', () => {
    expect(missing(INTEL, INTEL)).toEqual([])
    expect(missing(AMD, AMD)).toEqual([])
    expect(missing(without(INTEL, 7, 0, 'ebx', 16), INTEL)).toEqual([])
  })

  it.each<[string, readonly CpuidEntry[], number, number, 'eax' | 'ebx' | 'ecx' | 'edx', number]>([
    ['avx512f', INTEL, 7, 0, 'ebx', 16],
    ['pni', INTEL, 1, 0, 'ecx', 0],
    ['la57', INTEL, 7, 0, 'ecx', 16],
    ['avx512_bf16', INTEL, 7, 1, 'eax', 5],
    ['xsaves', INTEL, 0xd, 1, 'eax', 3],
    ['vmx', INTEL, 1, 0, 'ecx', 5],
    ['npt', AMD, 0x8000000a, 0, 'edx', 0],
    ['nrip_save', AMD, 0x8000000a, 0, 'edx', 3],
    ['vgif', AMD, 0x8000000a, 0, 'edx', 16],
    ['svm', AMD, 0x80000001, 0, 'ecx', 2],
    // AMD repeats leaf 1 EDX: the bit has the flag's name.
    ['pae', AMD, 0x80000001, 0, 'edx', 6],
    ['cpuid-8000000a.0-edx-bit-14', AMD, 0x8000000a, 0, 'edx', 14],
  ])('%s', (name, table, leaf, index, register, bit) => {
    const given = changed(table, leaf, index, entry => ({ [register]: (entry[register] | (1 << bit)) >>> 0 }))
    expect(missing(given, without(given, leaf, index, register, bit))).toEqual([name])
  })

  it('names a bit that has no name by its place', () => {
    const saved = changed(INTEL, 7, 0, ({ edx }) => ({ edx: edx | (1 << 6) }))
    expect(missing(saved, INTEL)).toEqual(['cpuid-7.0-edx-bit-6'])
  })

  it('one bit with two names has both', () => {
    expect(missing(INTEL, without(INTEL, 7, 0, 'edx', 26))).toEqual(['ibrs', 'ibpb'])
  })

  it('does not ask the host for what user space and the guest set', () => {
    const saved = changed(INTEL, 1, 0, ({ ecx, edx }) => ({
      ecx: (ecx | (1 << 24) | (1 << 27) | (1 << 31)) >>> 0,
      edx: (edx | (1 << 28) | (1 << 9)) >>> 0,
    }))
    const host = changed(INTEL, 1, 0, ({ ecx, edx }) => ({
      ecx: (ecx & ~((1 << 24) | (1 << 27) | (1 << 31))) >>> 0,
      edx: (edx & ~((1 << 28) | (1 << 9))) >>> 0,
    }))
    expect(missing(saved, host)).toEqual([])
  })

  it('of another vendor says so, and lists the extension once', () => {
    const names = missing(AMD, INTEL)
    expect(names[0]).toBe('vendor-AuthenticAMD')
    expect(names).toContain('svm')
    expect(names).not.toContain('npt')
    expect(names.filter(name => name.startsWith('vmx-'))).toEqual([])
  })

  it('a leaf that the host does not have is all missing', () => {
    expect(
      missing(
        INTEL,
        INTEL.filter(entry => entry.function !== 7 || entry.index !== 1),
      ),
    ).toEqual(['avx_vnni', 'avx512_bf16'])
  })

  it('compares XSAVE components, their places and the size', () => {
    const fewer = changed(INTEL, 0xd, 0, () => ({ eax: 0x7, ecx: 0x340 }))
    expect(missing(INTEL, fewer)).toEqual([
      'xsave-opmask',
      'xsave-zmm-hi256',
      'xsave-hi16-zmm',
      'xsave-pkru',
      'xsave-size-2696',
    ])
    const elsewhere = changed(INTEL, 0xd, 9, () => ({ ebx: 0x980 }))
    expect(missing(INTEL, elsewhere)).toEqual(['xsave-pkru-layout'])
    const supervisor = changed(INTEL, 0xd, 1, () => ({ ecx: 0x1800 }))
    expect(missing(supervisor, INTEL)).toEqual(['xsave-cet-u', 'xsave-cet-s'])
    const unknown = changed(INTEL, 0xd, 0, ({ eax }) => ({ eax: eax | (1 << 20), edx: 1 }))
    expect(missing(unknown, INTEL)).toEqual(['xsave-component-20', 'xsave-component-32'])
  })

  it('compares address widths and ASIDs', () => {
    expect(
      missing(
        INTEL,
        changed(INTEL, 0x80000008, 0, () => ({ eax: 0x3027 })),
      ),
    ).toEqual(['phys-bits-40', 'linear-bits-57'])
    expect(
      missing(
        AMD,
        changed(AMD, 0x8000000a, 0, () => ({ ebx: 7 })),
      ),
    ).toEqual(['svm-asids-8'])
  })
})

describe('VMX capabilities', () => {
  const high = (bit: number) => 1n << BigInt(32 + bit)
  const low = (bit: number) => 1n << BigInt(bit)

  it('are the same on the same host', () => {
    expect(vmxMissing(0, 0n)).toEqual([])
  })

  it.each<[string, number, bigint, bigint?]>([
    ['vmx-ept-2mb', VMX_MSRS.IA32_VMX_EPT_VPID_CAP, low(16)],
    ['vmx-ept-1gb', VMX_MSRS.IA32_VMX_EPT_VPID_CAP, low(17)],
    ['vmx-eptad', VMX_MSRS.IA32_VMX_EPT_VPID_CAP, low(21)],
    ['vmx-invvpid-single-context', VMX_MSRS.IA32_VMX_EPT_VPID_CAP, low(41)],
    ['vmx-unrestricted-guest', VMX_MSRS.IA32_VMX_PROCBASED_CTLS2, high(7)],
    ['vmx-ept', VMX_MSRS.IA32_VMX_PROCBASED_CTLS2, high(1)],
    ['vmx-shadow-vmcs', VMX_MSRS.IA32_VMX_PROCBASED_CTLS2, high(14)],
    ['vmx-posted-intr', VMX_MSRS.IA32_VMX_TRUE_PINBASED_CTLS, high(7)],
    ['vmx-flexpriority', VMX_MSRS.IA32_VMX_TRUE_PROCBASED_CTLS, high(21)],
    ['vmx-cr3-load-noexit', VMX_MSRS.IA32_VMX_TRUE_PROCBASED_CTLS, low(15)],
    ['vmx-hlt-exit-optional', VMX_MSRS.IA32_VMX_TRUE_PROCBASED_CTLS, low(7)],
    ['vmx-exit-nosave-debugctl', VMX_MSRS.IA32_VMX_TRUE_EXIT_CTLS, low(2)],
    ['vmx-exit-load-efer', VMX_MSRS.IA32_VMX_TRUE_EXIT_CTLS, high(21)],
    ['vmx-entry-noload-debugctl', VMX_MSRS.IA32_VMX_TRUE_ENTRY_CTLS, low(2)],
    ['vmx-entry-load-bndcfgs', VMX_MSRS.IA32_VMX_TRUE_ENTRY_CTLS, high(16)],
    ['vmx-activity-hlt', VMX_MSRS.IA32_VMX_MISC, low(6)],
    ['vmx-ins-outs', VMX_MSRS.IA32_VMX_BASIC, low(54)],
    ['vmx-eptp-switching', VMX_MSRS.IA32_VMX_VMFUNC, low(0)],
    ['msr-48c-bit-30', VMX_MSRS.IA32_VMX_EPT_VPID_CAP, 0n, low(30)],
    ['msr-48d-bit-36', VMX_MSRS.IA32_VMX_TRUE_PINBASED_CTLS, high(4)],
    ['vmx-vmcs-revision-300252880', VMX_MSRS.IA32_VMX_BASIC, 1n],
    ['vmx-vmcs-size-4096', VMX_MSRS.IA32_VMX_BASIC, high(0)],
    ['vmx-preemption-timer-rate-5', VMX_MSRS.IA32_VMX_MISC, 3n],
    ['vmx-cr3-target-count-4', VMX_MSRS.IA32_VMX_MISC, 0n, low(18)],
    ['vmx-msr-list-length-1', VMX_MSRS.IA32_VMX_MISC, 0n, low(25)],
    ['vmx-mseg-revision-0', VMX_MSRS.IA32_VMX_MISC, low(32)],
    ['vmx-cr0-fixed0-bit-16', VMX_MSRS.IA32_VMX_CR0_FIXED0, low(16)],
    ['vmx-cr4-fixed0-bit-5', VMX_MSRS.IA32_VMX_CR4_FIXED0, low(5)],
  ])('%s', (name, msr, flip, savedFlip) => {
    expect(vmxMissing(msr, flip, savedFlip)).toEqual([name])
  })

  it('may be fewer than the host’s', () => {
    expect(vmxMissing(VMX_MSRS.IA32_VMX_EPT_VPID_CAP, 0n, low(16))).toEqual([])
    expect(vmxMissing(VMX_MSRS.IA32_VMX_TRUE_PROCBASED_CTLS, 0n, low(7))).toEqual([])
    const noTimer = VMX.map(m =>
      m.index === VMX_MSRS.IA32_VMX_TRUE_PINBASED_CTLS ? { ...m, value: 0x3f_0000_0016n } : m,
    )
    const otherRate = VMX.map(m => (m.index === VMX_MSRS.IA32_VMX_MISC ? { ...m, value: m.value ^ 3n } : m))
    expect(missingFeatures({ cpuid: INTEL, msrs: noTimer }, { cpuid: INTEL, featureMsrs: otherRate })).toEqual([])
  })

  it('do not count without vmx', () => {
    const off = without(INTEL, 1, 0, 'ecx', 5)
    const none = VMX.map(m => ({ ...m, value: 0n }))
    expect(missingFeatures({ cpuid: off, msrs: VMX }, { cpuid: INTEL, featureMsrs: none })).toEqual([])
    expect(missingFeatures({ cpuid: INTEL, msrs: VMX }, { cpuid: off, featureMsrs: [] })).toEqual(['vmx'])
  })

  it('have names that are each their own', () => {
    const all = VMX_FEATURES.flatMap(({ names }) => [...names.values()])
    expect(new Set(all).size).toBe(all.length)
    for (const { names } of VMX_FEATURES) for (const bit of names.keys()) expect(bit).toBeLessThan(64)
  })
})

it('compares IA32_ARCH_CAPABILITIES where the vCPU has it', () => {
  const saved = { cpuid: INTEL, msrs: [{ index: 0x10a, value: (1n << 40n) | 0x21n }] }
  const host = { cpuid: INTEL, featureMsrs: [{ index: 0x10a, value: 1n }] }
  expect(missingFeatures(saved, host)).toEqual(['mds-no', 'msr-10a-bit-40'])
  expect(missingFeatures({ ...saved, cpuid: without(INTEL, 7, 0, 'edx', 29) }, host)).toEqual([])
})
