import type { L1Options } from './l1.js'
import * as at from './l1-layout.js'
import { type Extension, INJECT_L2_VECTOR, selfInterrupt, variable } from './l1-source.js'

/** Offsets in VMCB12 (AMD APM vol. 2, appendix B). */
const VMCB = {
  intercepts: 0x0c,
  asid: 0x58,
  virtualInterrupt: 0x60,
  virtualVector: 0x64,
  exitCode: 0x70,
  exitInfo2: 0x80,
  nestedPaging: 0x90,
  eventInjection: 0xa8,
  nestedCr3: 0xb0,
  save: { efer: 0x4d0, cr4: 0x548, cr3: 0x550, cr0: 0x558, dr7: 0x560, dr6: 0x568, rflags: 0x570, rip: 0x578 },
  rsp: 0x5d8,
  rax: 0x5f8,
  pat: 0x668,
} as const
const field = (offset: number) => at.CONTROL_BLOCK + offset

/** VMEXIT codes (AMD APM vol. 2, appendix C). */
const reason = { interruptWindow: 0x64, cpuid: 0x72, hlt: 0x78, hypercall: 0x81, nestedFault: 0x400 } as const

/** V_IRQ, V_INTR_PRIO 15, V_IGN_TPR, V_INTR_MASKING (AMD APM vol. 2, 15.21). */
const V_IRQ = 0x100
const VIRTUAL_INTERRUPT = 0xf0000 | (1 << 20) | (1 << 24)

/** The hypervisor for AMD's extension. GIF is 0 from before VMRUN until STGI after the exit (AMD APM vol. 2, 15.17). */
export const svm: Extension = {
  hypercall: 'vmmcall',
  reason,
  enable: options => `
  mov ecx, 0xc0000080        # EFER
  rdmsr
  or eax, 0x1000             # SVME
  wrmsr
  mov ecx, 0xc0010117        # VM_HSAVE_PA
  mov eax, ${at.HOST_AREA}
  xor edx, edx
  wrmsr
  report ${at.station.enabled}
  # L2 has L1's CR4, for SSE and AVX.
  mov rax, cr4
  mov [${field(VMCB.save.cr4)}], rax
  mov rax, [${field(VMCB.save.rip)}]
  mov [${variable.rip}], rax
  clgi
  ${options.interrupt === 'l1' ? 'sti' : ''}
  report ${at.station.ready}
  stgi
`,
  enter: options => `
  clgi
  mov rax, [${variable.rip}]
  mov [${field(VMCB.save.rip)}], rax
  mov rax, [${variable.rax}]
  mov [${field(VMCB.rax)}], rax
  mov rax, [${variable.inject}]
  mov [${field(VMCB.eventInjection)}], rax
  mov qword ptr [${variable.inject}], 0
  load_registers
  mov rax, ${at.CONTROL_BLOCK}
  vmrun rax
  save_registers
  mov rax, [${field(VMCB.rax)}]
  mov [${variable.rax}], rax
  mov rax, [${field(VMCB.save.rip)}]
  mov [${variable.rip}], rax
  mov rax, [${field(VMCB.exitInfo2)}]
  mov [${variable.faultAddress}], rax
  mov rax, [${field(VMCB.exitCode)}]
  mov [${variable.reason}], rax
  # Without NRIPS the length of the instruction is known by the reason: HLT 1, CPUID 2, VMMCALL 3.
  xor ebx, ebx
  mov ecx, 1
  cmp eax, ${reason.hlt}
  cmove ebx, ecx
  inc ecx
  cmp eax, ${reason.cpuid}
  cmove ebx, ecx
  inc ecx
  cmp eax, ${reason.hypercall}
  cmove ebx, ecx
  mov [${variable.length}], rbx
  ${options.interrupt === 'l1' ? `${selfInterrupt(at.L1_VECTOR)}\n mov rax, [${variable.reason}]` : ''}
  report ${at.station.exit}
  stgi
`,
  pend: () => `or dword ptr [${field(VMCB.virtualInterrupt)}], ${V_IRQ}`,
  // L1 intercepts the virtual interrupt (VMEXIT_VINTR) and injects the real one in its place.
  window: () => `
  and dword ptr [${field(VMCB.virtualInterrupt)}], ~${V_IRQ}
  mov eax, ${INJECT_L2_VECTOR}
  mov [${variable.inject}], rax`,
  disable: `
  mov ecx, 0xc0000080
  rdmsr
  and eax, ~0x1000
  wrmsr
`,
}

/** Writes VMCB12 into L1's memory. */
export function writeVmcb(memory: Uint8Array, options: L1Options): void {
  const vmcb = new DataView(memory.buffer, memory.byteOffset + at.CONTROL_BLOCK, 0x1000)
  const { interrupt } = options
  // INTR, where L1 is to take it; VINTR; CPUID; HLT; and in the next word VMRUN, which must be, and VMMCALL.
  const intr = interrupt === 'apic' || interrupt === 'halt' ? 0 : 1
  const vintr = interrupt === 'window' ? 1 << 4 : 0
  vmcb.setUint32(VMCB.intercepts, intr | vintr | (1 << 18) | (interrupt === 'halt' ? 0 : 1 << 24), true)
  vmcb.setUint32(VMCB.intercepts + 4, 3, true)
  vmcb.setUint32(VMCB.asid, 1, true)
  if (interrupt === 'window') {
    vmcb.setUint32(VMCB.virtualInterrupt, VIRTUAL_INTERRUPT, true)
    vmcb.setUint32(VMCB.virtualVector, at.L2_VECTOR, true)
  }
  if (options.nestedPaging) {
    vmcb.setUint32(VMCB.nestedPaging, 1, true)
    vmcb.setBigUint64(VMCB.nestedCr3, BigInt(at.NESTED_TABLES), true)
  }
  for (const segment of [0x400, 0x420, 0x430, 0x440, 0x450]) writeSegment(vmcb, segment, at.DATA, 0xc93)
  writeSegment(vmcb, 0x410, at.CODE, 0xa9b)
  writeSegment(vmcb, 0x490, at.TASK, 0x8b)
  writeTable(vmcb, 0x460, at.L2_GDT, 0x27)
  writeTable(vmcb, 0x480, at.L2_IDT, 0xfff)
  vmcb.setBigUint64(VMCB.save.efer, 0x1500n, true) // SVME, LMA, LME
  vmcb.setBigUint64(VMCB.save.cr3, BigInt(at.L2_PAGE_TABLES), true)
  vmcb.setBigUint64(VMCB.save.cr0, 0x80050033n, true)
  vmcb.setBigUint64(VMCB.save.dr7, 0x400n, true)
  vmcb.setBigUint64(VMCB.save.dr6, 0xffff0ff0n, true)
  vmcb.setBigUint64(VMCB.save.rflags, 2n, true)
  vmcb.setBigUint64(VMCB.save.rip, BigInt(at.L2_ORIGIN), true)
  vmcb.setBigUint64(VMCB.rsp, BigInt(at.L2_STACK), true)
  vmcb.setBigUint64(VMCB.pat, 0x0007040600070406n, true)
}

/** VMCB12's V_IRQ: a virtual interrupt is pending for L2. Takes the control area of the nested state. */
export function hasVirtualInterrupt(control: Uint8Array): boolean {
  return (new DataView(control.buffer, control.byteOffset).getUint32(VMCB.virtualInterrupt, true) & V_IRQ) !== 0
}

function writeSegment(vmcb: DataView, offset: number, selector: number, attributes: number): void {
  vmcb.setUint16(offset, selector, true)
  vmcb.setUint16(offset + 2, attributes, true)
  vmcb.setUint32(offset + 4, 0xffffffff, true)
}

function writeTable(vmcb: DataView, offset: number, base: number, limit: number): void {
  vmcb.setUint32(offset + 4, limit, true)
  vmcb.setBigUint64(offset + 8, BigInt(base), true)
}
