import type { CpuidEntry } from '../../kvm/structs.js'
import type { Vcpu } from '../../kvm/vcpu.js'

/** An extension, ready for L1 to enter L2. */
export interface Prepared {
  /** Of L1, beside what any guest in 64-bit mode has. */
  readonly cr4: bigint
  readonly efer: bigint
  readonly registers: Readonly<Partial<Record<'rax' | 'rbx' | 'rdi' | 'rsi', bigint>>>
  /** L2's addresses go through nested page tables of L1's; otherwise L2 has L1's own address space. */
  readonly nestedPaging: boolean
}

/** What the deep diagnosis has to know about vmx and svm. */
export interface DeepExtension {
  /** The exit reason of L2's hypercall. */
  readonly hypercall: number
  /** Puts L1, its L2 and the control block into memory, and sets the MSRs that L1 finds. The vCPU has that CPUID already. */
  prepare(vcpu: Vcpu, memory: Uint8Array, cpuid: readonly CpuidEntry[]): Prepared
}

/** CR0 of L1 and L2: PG, AM, WP, NE, ET, MP, PE (Intel SDM vol. 3, 2.5). */
export const CR0 = 0x8005_0033n
export const CR4_PAE = 1n << 5n
/** LMA, LME */
export const EFER_LONG = 0x500n
/** Selectors of L1 and L2. No table holds them: no segment is ever loaded. */
export const selector = { code: 0x8, data: 0x10, task: 0x18 } as const
export const STACK = 0xff0
