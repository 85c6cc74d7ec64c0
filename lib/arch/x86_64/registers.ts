import type { KvmRegs } from '../../kvm/structs.js'

/** Bit 1 of RFLAGS always reads 1 (Intel SDM vol. 1, section 3.4.3). */
export const RFLAGS_RESERVED = 1n << 1n

/** General registers: those given, all others 0, interrupts off. */
export function registers(given: Partial<KvmRegs>): KvmRegs {
  return {
    rax: 0n,
    rbx: 0n,
    rcx: 0n,
    rdx: 0n,
    rsi: 0n,
    rdi: 0n,
    rsp: 0n,
    rbp: 0n,
    r8: 0n,
    r9: 0n,
    r10: 0n,
    r11: 0n,
    r12: 0n,
    r13: 0n,
    r14: 0n,
    r15: 0n,
    rip: 0n,
    rflags: RFLAGS_RESERVED,
    ...given,
  }
}
