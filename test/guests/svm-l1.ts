/**
 * A small hypervisor (L1) for SVM and its guest (L2), to run in a long-mode guest of `loadGuest`: L1 enters L2 once, L2
 * writes to a port that L1 does not intercept, then halts, which L1 intercepts.
 */

/** Guest-physical addresses, all in L1's first MiB. */
export const VMCB = 0x10000
const HSAVE = 0x11000
const L2_STACK = 0x18000

/** L1 writes here before it enters L2, and after L2's exit with the exit code. */
export const L1_PORT = 0x20
/** L2 writes here. */
export const L2_PORT = 0x30
/** VMEXIT_HLT (AMD APM vol. 2, appendix C). */
export const VMEXIT_HLT = 0x78

export const source = `
  mov ecx, 0xc0000080        # EFER
  rdmsr
  or eax, 0x1000             # SVME
  wrmsr
  mov ecx, 0xc0010117        # VM_HSAVE_PA
  mov eax, ${HSAVE}
  xor edx, edx
  wrmsr
  mov eax, 0xffffffff
  out ${L1_PORT}, eax
  lea rbx, [rip + l2]
  mov [${VMCB} + 0x578], rbx # RIP
  mov rax, ${VMCB}
  vmrun rax
  mov eax, [${VMCB} + 0x70]  # EXITCODE
  out ${L1_PORT}, eax
  hlt
l2:
  mov al, 0x42
  out ${L2_PORT}, al
  hlt
`

/** Writes VMCB12 (AMD APM vol. 2, appendix B) into L1's memory: L2 shares L1's paging. */
export function writeVmcb(memory: Uint8Array, cr3: bigint): void {
  const vmcb = new DataView(memory.buffer, memory.byteOffset + VMCB, 0x1000)
  vmcb.setUint32(0x0c, 1 << 24, true) // intercept HLT
  vmcb.setUint32(0x10, 1, true) // and VMRUN, which must be
  vmcb.setUint32(0x58, 1, true) // ASID
  for (const at of [0x400, 0x420, 0x430, 0x440, 0x450]) segment(vmcb, at, 0x10, 0xc93)
  segment(vmcb, 0x410, 0x8, 0xa9b) // CS, 64-bit
  segment(vmcb, 0x490, 0x18, 0x8b) // TR
  vmcb.setBigUint64(0x4d0, 0x1500n, true) // EFER: SVME, LMA, LME
  vmcb.setBigUint64(0x548, 0x20n, true) // CR4: PAE
  vmcb.setBigUint64(0x550, cr3, true)
  vmcb.setBigUint64(0x558, 0x80050033n, true) // CR0
  vmcb.setBigUint64(0x560, 0x400n, true) // DR7
  vmcb.setBigUint64(0x568, 0xffff0ff0n, true) // DR6
  vmcb.setBigUint64(0x570, 2n, true) // RFLAGS
  vmcb.setBigUint64(0x5d8, BigInt(L2_STACK), true)
  vmcb.setBigUint64(0x668, 0x0007040600070406n, true) // G_PAT
}

function segment(vmcb: DataView, at: number, selector: number, attributes: number): void {
  vmcb.setUint16(at, selector, true)
  vmcb.setUint16(at + 2, attributes, true)
  vmcb.setUint32(at + 4, 0xffffffff, true)
}
