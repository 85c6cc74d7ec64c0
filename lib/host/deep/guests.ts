/**
 * The two guests of the deep diagnosis: L1, a hypervisor of a few instructions, and its L2, which counts to three. Each stands here as its
 * source and as the bytes that it assembles to (a test assembles it again), so that a host without an assembler can run it.
 */

/** Guest-physical addresses, a page each but for the last. The first 2 MiB are mapped to themselves, in L1 and in L2. */
export const at = {
  l1: 0x1000,
  pageTables: 0x2000,
  nestedTables: 0x5000,
  /** VMCB12, or the region of the VMCS. */
  controlBlock: 0x8000,
  /** The host save area (svm), or the VMXON region (vmx). */
  hostArea: 0x9000,
  /** Empty: no MSR is intercepted (vmx; svm does not intercept MSRs at all). */
  msrBitmap: 0xa000,
  /** vmx: pointers to the two regions above, then the fields of the VMCS. */
  parameters: 0xb000,
  l2: 0xc000,
  end: 0x10000,
} as const

/** Ports to which they report 32 bits; none is one of a chip that KVM emulates. */
export const report = {
  /** L2: its counter. */
  l2: 0x510,
  /** L1 after L2's exit: the exit reason. */
  l1: 0x511,
  /** vmx: an instruction failed; the VM-instruction error (Intel SDM vol. 3, 31.4). */
  failed: 0x512,
} as const

/** How far L2 counts. */
export const LAST_COUNT = 3

export interface Program {
  /** In Intel syntax, for 64-bit mode. */
  readonly source: string
  readonly code: Uint8Array
}

const program = (source: string, code: string): Program => ({ source, code: Uint8Array.from(Buffer.from(code, 'hex')) })

/** L1 with svm. RAX is the address of VMCB12, also after the exit (AMD APM vol. 2, 15.5 and 15.6). */
export const svmL1 = program(
  `
  vmrun rax
  mov eax, [rax + 0x70]      # EXITCODE
  mov edx, ${report.l1}
  out dx, eax
  hlt`,
  '0f01d88b4070ba11050000eff4',
)

/** L1 with vmx. RDI and RSI point to the addresses of the VMXON region and of the VMCS, RBX to fields and their values. */
export const vmxL1 = program(
  `
  vmxon [rdi]
  jbe failed
  vmclear [rsi]
  jbe failed
  vmptrld [rsi]
  jbe failed
write:
  mov rax, [rbx]
  test rax, rax
  jz enter
  vmwrite rax, [rbx + 8]
  jbe failed
  add rbx, 16
  jmp write
enter:
  vmlaunch
failed:
  mov ecx, 0x4400            # VM-instruction error
  vmread rax, rcx
  mov edx, ${report.failed}
  out dx, eax
  hlt
exited:
  mov ecx, 0x4402            # exit reason
  vmread rax, rcx
  mov edx, ${report.l1}
  out dx, eax
  hlt`,
  'f30fc7377622660fc736761c0fc7367617488b034885c0740c0f79430876094883c310ebec0f01c2b9004400000f78c8ba12050000eff4' +
    'b9024400000f78c8ba11050000eff4',
)

/** Where `exited` is in it: the host RIP of the VMCS. */
export const VMX_EXITED = 0x37

/** L2 counts, tells L0 of each step, and then calls L1. */
const l2 = (hypercall: string, code: string) =>
  program(
    `
  xor ebx, ebx
  mov edx, ${report.l2}
count:
  inc ebx
  mov eax, ebx
  out dx, eax
  cmp ebx, ${LAST_COUNT}
  jb count
  ${hypercall}`,
    `31dbba10050000ffc389d8ef83fb0372f6${code}`,
  )

export const svmL2 = l2('vmmcall', '0f01d9')
export const vmxL2 = l2('vmcall', '0f01c1')

/** 4-level tables that map the first 2 MiB to themselves by one large page (Intel SDM vol. 3, 4.5; AMD APM vol. 2, 5.3). */
export function writeTables(memory: Uint8Array, table: number, leaf: bigint): void {
  const view = new DataView(memory.buffer, memory.byteOffset + table)
  view.setBigUint64(0, BigInt(table + 0x1007), true)
  view.setBigUint64(0x1000, BigInt(table + 0x2007), true)
  view.setBigUint64(0x2000, leaf, true)
}

/** Present, writable, for users too, large. */
export const LARGE_LEAF = 0x87n
/** The same for EPT: readable, writable, executable, write-back, large (Intel SDM vol. 3, 29.3.2). */
export const EPT_LEAF = 0xb7n
