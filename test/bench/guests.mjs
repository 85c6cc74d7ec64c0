/**
 * The guests of the benchmarks, set up in the same way as `host.h` does for the baselines.
 * @import { Vcpu } from 'nested-kvm'
 */

export const CODE = 0x1000
export const STACK = 0x8000
export const PORT = 0x10

/** out dx, al; inc al; jmp to the first: the bytes 0, 1, 2, ... on port 0x10, without end. */
export const OUT_FOREVER = Uint8Array.of(0xee, 0xfe, 0xc0, 0xeb, 0xfb)

/** out dx, al; dec cx; jnz to the first; cli; hlt: cx bytes on port 0x10, then nothing more. */
export const OUT_THEN_HALT = Uint8Array.of(0xee, 0x49, 0x75, 0xfc, 0xfa, 0xf4)

export const HALT = Uint8Array.of(0xf4)

const noRegisters = {
  rax: 0n,
  rbx: 0n,
  rcx: 0n,
  rdx: 0n,
  rsi: 0n,
  rdi: 0n,
  rsp: BigInt(STACK),
  rbp: 0n,
  r8: 0n,
  r9: 0n,
  r10: 0n,
  r11: 0n,
  r12: 0n,
  r13: 0n,
  r14: 0n,
  r15: 0n,
  rip: BigInt(CODE),
  rflags: 2n,
}

/**
 * Real mode, CPL 0.
 * @param {Vcpu} vcpu
 * @param {Partial<typeof noRegisters>} registers
 */
export function realMode(vcpu, registers = {}) {
  const sregs = vcpu.getSregs()
  sregs.cs.base = 0n
  sregs.cs.selector = 0
  vcpu.setSregs(sregs)
  vcpu.setRegs({ ...noRegisters, ...registers })
}

/**
 * Long mode, CPL 3 with IOPL 3, the first 2 MiB mapped to themselves.
 * @param {Vcpu} vcpu
 * @param {Uint8Array} memory
 * @param {Partial<typeof noRegisters>} registers
 */
export function longModeUser(vcpu, memory, registers = {}) {
  const tables = new DataView(memory.buffer, memory.byteOffset)
  tables.setBigUint64(0x2000, 0x3007n, true)
  tables.setBigUint64(0x3000, 0x4007n, true)
  tables.setBigUint64(0x4000, 0x87n, true)
  const sregs = vcpu.getSregs()
  const segment = { ...sregs.cs, base: 0n, limit: 0xffffffff, present: 1, dpl: 3, s: 1, g: 1, avl: 0, unusable: 0 }
  sregs.cs = { ...segment, type: 11, l: 1, db: 0, selector: 0x23 }
  sregs.ss = sregs.ds = sregs.es = { ...segment, type: 3, l: 0, db: 1, selector: 0x1b }
  sregs.cr0 = 0x80050033n
  sregs.cr3 = 0x2000n
  sregs.cr4 = 0x20n
  sregs.efer = 0x500n
  vcpu.setSregs(sregs)
  vcpu.setRegs({ ...noRegisters, ...registers, rflags: 0x3002n })
}
