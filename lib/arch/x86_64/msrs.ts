import type { CpuidEntry, Msr } from '../../kvm/structs.js'
import { decodeMsrs, encodeMsrs } from '../../kvm/tables.js'
import type { Vcpu } from '../../kvm/vcpu.js'
import { ARCH_CAPABILITIES } from './arch-capabilities.js'
import { flagsOf } from './cpuid.js'

/** Model-specific registers by the names of the Intel SDM (vol. 4) and the AMD APM (vol. 2, appendix A). */
export const MSR = {
  IA32_TIME_STAMP_COUNTER: 0x10,
  IA32_APIC_BASE: 0x1b,
  IA32_FEATURE_CONTROL: 0x3a,
  IA32_TSC_ADJUST: 0x3b,
  IA32_SYSENTER_CS: 0x174,
  IA32_SYSENTER_ESP: 0x175,
  IA32_SYSENTER_EIP: 0x176,
  IA32_MCG_CAP: 0x179,
  IA32_MISC_ENABLE: 0x1a0,
  IA32_MTRR_PHYSBASE0: 0x200,
  IA32_MTRR_FIX64K_00000: 0x250,
  IA32_MTRR_FIX16K_80000: 0x258,
  IA32_MTRR_FIX16K_A0000: 0x259,
  IA32_MTRR_FIX4K_C0000: 0x268,
  IA32_PAT: 0x277,
  IA32_MTRR_DEF_TYPE: 0x2ff,
  IA32_MC0_CTL: 0x400,
  IA32_TSC_DEADLINE: 0x6e0,
  IA32_EFER: 0xc0000080,
  IA32_STAR: 0xc0000081,
  IA32_LSTAR: 0xc0000082,
  IA32_CSTAR: 0xc0000083,
  IA32_FMASK: 0xc0000084,
  IA32_FS_BASE: 0xc0000100,
  IA32_GS_BASE: 0xc0000101,
  IA32_KERNEL_GS_BASE: 0xc0000102,
  IA32_TSC_AUX: 0xc0000103,
  VM_CR: 0xc0010114,
  VM_HSAVE_PA: 0xc0010117,
} as const

// Bits of IA32_FEATURE_CONTROL (Intel SDM vol. 3, section 24.7)
export const FEATURE_CONTROL_LOCK = 1n << 0n
export const FEATURE_CONTROL_VMX_OUTSIDE_SMX = 1n << 2n

/** IA32_MISC_ENABLE: fast `rep movs` and `rep stos`. */
const FAST_STRINGS = 1n << 0n
/** IA32_MTRR_DEF_TYPE: MTRRs on, everything write-back (Intel SDM vol. 3, section 12.11.2.1). */
const MTRR_ENABLE = 1n << 11n
const WRITE_BACK = 6n

export interface InitialMsrsSource {
  /** `KVM_GET_MSR_INDEX_LIST` */
  readonly indices: readonly number[]
  /** The vCPU's CPUID table. */
  readonly cpuid: readonly CpuidEntry[]
  /** IA32_ARCH_CAPABILITIES; left out: KVM's. */
  readonly archCapabilities?: bigint | undefined
}

/**
 * MSRs that a vCPU starts with, in the order in which they must be set, after its CPUID and the VMX capabilities (`giveVmxMsrs`):
 * IA32_FEATURE_CONTROL as a firmware leaves it, IA32_ARCH_CAPABILITIES where the CPU model says what it is, then what a firmware
 * sets up for any system.
 */
export function initialMsrs({ indices, cpuid, archCapabilities }: InitialMsrsSource): Msr[] {
  const settable = new Set(indices)
  const flags = new Set(flagsOf(cpuid))
  const msrs: Msr[] = []
  if (flags.has('vmx')) {
    msrs.push({ index: MSR.IA32_FEATURE_CONTROL, value: FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX })
  }
  if (archCapabilities !== undefined && flags.has('arch_capabilities')) {
    msrs.push({ index: ARCH_CAPABILITIES, value: archCapabilities })
  }
  if (settable.has(MSR.IA32_MISC_ENABLE)) msrs.push({ index: MSR.IA32_MISC_ENABLE, value: FAST_STRINGS })
  // Kernels before 6.2 take it without listing it. With MTRRs off, Linux gives up on PAT as well.
  if (flags.has('mtrr')) msrs.push({ index: MSR.IA32_MTRR_DEF_TYPE, value: MTRR_ENABLE | WRITE_BACK })
  return msrs
}

/** Pairs of IA32_MTRR_PHYSBASE and PHYSMASK that KVM has. */
const VARIABLE_MTRRS = 8
/** Control, status, address and miscellaneous register of a machine-check bank. */
const MC_REGISTERS = 4

/**
 * State that KVM keeps but does not list, or not on every kernel: machine-check banks, MTRRs (listed since Linux 6.2), VM_CR.
 */
function unlistedMsrs(machineCheckBanks: number): number[] {
  const from = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i)
  return [
    ...from(MSR.IA32_MTRR_PHYSBASE0, VARIABLE_MTRRS * 2),
    MSR.IA32_MTRR_FIX64K_00000,
    MSR.IA32_MTRR_FIX16K_80000,
    MSR.IA32_MTRR_FIX16K_A0000,
    ...from(MSR.IA32_MTRR_FIX4K_C0000, 8),
    MSR.IA32_MTRR_DEF_TYPE,
    ...from(MSR.IA32_MC0_CTL, machineCheckBanks * MC_REGISTERS),
    MSR.VM_CR,
  ]
}

/**
 * The MSRs that make up the state of `vcpu`: all of the index list, and of those that are not listed what this kernel gives.
 * @param indices KVM_GET_MSR_INDEX_LIST
 */
export function savedMsrs(vcpu: Vcpu, indices: readonly number[]): number[] {
  const listed = new Set(indices)
  const banks = Number((readable(vcpu, [MSR.IA32_MCG_CAP])[0]?.value ?? 0n) & 0xffn)
  const unlisted = readable(
    vcpu,
    unlistedMsrs(banks).filter(index => !listed.has(index)),
  )
  return [...indices, ...unlisted.map(({ index }) => index)]
}

/** Those that can be read: KVM_GET_MSRS stops at the first that cannot. */
function readable(vcpu: Vcpu, indices: readonly number[]): Msr[] {
  const bytes = encodeMsrs(indices.map(index => ({ index, value: 0n })))
  const count = vcpu.native.getMsrs(bytes)
  const read = decodeMsrs(bytes).slice(0, count)
  return count < indices.length ? [...read, ...readable(vcpu, indices.slice(count + 1))] : read
}
