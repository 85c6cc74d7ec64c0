import type { L1Options } from './l1.js'
import * as at from './l1-layout.js'

/** What the two extensions do differently, in assembly. */
export interface Extension {
  /** The instruction that exits to L1. */
  readonly hypercall: 'vmmcall' | 'vmcall'
  /** Exit reasons. */
  readonly reason: {
    readonly cpuid: number
    readonly hlt: number
    readonly hypercall: number
    /** L2 touched memory that the nested page tables do not map. */
    readonly nestedFault: number
    /** L2 can take an interrupt now. */
    readonly interruptWindow?: number
    readonly preemptionTimer?: number
  }
  /** Turns the extension on and makes all ready for L2. */
  enable(options: L1Options): string
  /** Enters L2 and comes back at its exit, with L2's registers, exit reason, ... in `variable`. */
  enter(options: L1Options): string
  /** Has an interrupt pend for L2, which has interrupts off. */
  pend(): string
  /** L2's interrupt window is open: injects the interrupt that pends. */
  window?(): string
  /** Turns the preemption timer off. */
  disarm?(): string
  /** Turns the extension off. */
  readonly disable: string
}

/** L2's general registers but RSP, in the order in which they are kept. */
const LOW = ['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rbp'] as const
const REGISTERS = [...LOW, 'r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'] as const
type Register = (typeof REGISTERS)[number]

/** Addresses of L1's variables, 8 bytes each. */
export const variable = {
  ...(Object.fromEntries(REGISTERS.map((name, i) => [name, at.L1_DATA + i * 8])) as Record<Register, number>),
  rip: at.L1_DATA + 0x80,
  reason: at.L1_DATA + 0x88,
  /** Of the instruction that exited. */
  length: at.L1_DATA + 0x90,
  /** L2-physical, of a nested page fault. */
  faultAddress: at.L1_DATA + 0x98,
  /** The event to inject at the next entry, in the format that both extensions have; 0 for none. */
  inject: at.L1_DATA + 0xa0,
  hash: at.L1_DATA + 0xa8,
  exits: at.L1_DATA + 0xb0,
  timerFired: at.L1_DATA + 0xb8,
  launched: at.L1_DATA + 0xc0,
  interrupts: at.L1_DATA + 0xc8,
  done: at.L1_DATA + 0xd0,
}

/** An external interrupt, valid (Intel SDM vol. 3, table 25-17; AMD APM vol. 2, 15.20). */
export const INJECT_L2_VECTOR = 0x80000000 + at.L2_VECTOR

const transfer = (names: readonly Register[], line: (name: string, address: number) => string) =>
  names.map(name => line(name, variable[name])).join('\n')

const macros = `${at.reporting}
# The general registers but RAX and RSP, which svm keeps itself.
.macro save_registers
  ${transfer(REGISTERS.slice(1), (name, address) => `mov [${address}], ${name}`)}
.endm
.macro load_registers
  ${transfer(REGISTERS.slice(1), (name, address) => `mov ${name}, [${address}]`)}
.endm
.macro skip_instruction
  mov rax, [${variable.length}]
  add [${variable.rip}], rax
.endm
# Ends with the reason in EAX.
.macro fail
  report ${at.station.failed}
  cli
  hlt
.endm
`

/** The small hypervisor, in 64-bit mode at CPL 0. */
export function l1Source(extension: Extension, options: L1Options, avx: boolean): string {
  const { reason } = extension
  return `${macros}
  lgdt [rip + gdt]
  lidt [rip + idt]
  mov rax, cr4
  or eax, ${0x600 | (avx ? 1 << 18 : 0)} # OSFXSR, OSXMMEXCPT, OSXSAVE
  mov cr4, rax
  ${avx ? 'xor ecx, ecx\n mov eax, 7\n xor edx, edx\n xsetbv' : ''}
  mov ecx, 0xc0000101        # GS base
  mov eax, ${at.L2_TABLE_A}
  xor edx, edx
  wrmsr
  mov ecx, 0xc0000102        # KERNEL_GS_BASE
  mov eax, ${at.L2_TABLE_B}
  wrmsr
  ${usesApic(options) ? enableApic : ''}
  xor eax, eax
  report ${at.station.start}
  ${extension.enable(options)}
  mov rax, ${at.BASIS}
  mov [${variable.hash}], rax

enter_l2:
  ${extension.enter(options)}
  # When the timer fires is not for the hash.
  mov rax, [${variable.reason}]
  ${reason.preemptionTimer === undefined ? '' : `cmp eax, ${reason.preemptionTimer}\n je on_timer`}
  inc qword ptr [${variable.hash}]
  mov rbx, ${at.PRIME}
  xor rax, [${variable.hash}]
  imul rax, rbx
  # Nor is where in its wait L2 was interrupted.
  ${reason.interruptWindow === undefined ? '' : `cmp dword ptr [${variable.reason}], ${reason.interruptWindow}\n je 1f`}
  xor rax, [${variable.rip}]
1:
  imul rax, rbx
  mov [${variable.hash}], rax
  inc qword ptr [${variable.exits}]
  mov rax, [${variable.reason}]
  cmp eax, ${reason.cpuid}
  je on_cpuid
  cmp eax, ${reason.hlt}
  je on_hlt
  cmp eax, ${reason.hypercall}
  je on_hypercall
  cmp eax, ${reason.nestedFault}
  je on_nested_fault
  ${reason.interruptWindow === undefined ? '' : `cmp eax, ${reason.interruptWindow}\n je on_window`}
  fail

  # CPUID gives L2 L1's hash, and what L2 asked for mixed in.
on_cpuid:
  mov rax, [${variable.rax}]
  call mix
  mov [${variable.rax}], rax
  mov [${variable.rbx}], rax
  mov [${variable.rcx}], rax
on_hlt:
  skip_instruction
  jmp enter_l2

on_hypercall:
  mov rax, [${variable.rax}]
  cmp eax, ${at.call.done}
  je on_done
  cmp eax, ${at.call.interrupt}
  je on_interrupt
  mov rax, [${variable.rbx}]
  call mix
  mov [${variable.rax}], rax
  skip_instruction
  jmp enter_l2

on_interrupt:
  ${interruptL2(extension, options)}
  skip_instruction
  jmp enter_l2

  # Pages of L2 that nobody has touched yet are not in the nested page tables.
on_nested_fault:
  mov rax, [${variable.faultAddress}]
  call mix
  mov rax, [${variable.faultAddress}]
  shr rax, 12
  cmp rax, ${at.L2_ORIGIN >> 12}
  jb 1f
  cmp rax, ${(at.L2_ORIGIN + at.L2_SIZE) >> 12}
  jae 1f
  or qword ptr [${at.NESTED_TABLES + 0x3000} + rax*8], 7
  jmp enter_l2
1:
  mov rax, [${variable.faultAddress}]
  fail

on_window:
  ${extension.window?.() ?? 'fail'}
  jmp enter_l2

on_timer:
  inc qword ptr [${variable.timerFired}]
  ${extension.disarm?.() ?? 'fail'}
  cmp qword ptr [${variable.done}], 0
  je enter_l2
  jmp ended

on_done:
  skip_instruction
  inc qword ptr [${variable.done}]
  ${options.timer ? `cmp qword ptr [${variable.timerFired}], 0\n je enter_l2` : ''}
ended:
  ${extension.disable}
  mov rax, [${variable.exits}]
  report ${at.station.end}
  mov rax, [${variable.timerFired}]
  call mix
  mov rax, [${variable.interrupts}]
  call mix
  mov rax, [${variable.hash}]
  report ${at.station.l1Hash}
  shr rax, 32
  report ${at.station.l1Hash}
  cli
1:
  hlt
  jmp 1b

  # RAX into L1's hash, which RAX then is.
mix:
  xor rax, [${variable.hash}]
  push rbx
  mov rbx, ${at.PRIME}
  imul rax, rbx
  pop rbx
  mov [${variable.hash}], rax
  ret

interrupted:
  push rax
  push rcx
  push rdx
  mov eax, ${at.L1_VECTOR}
  call mix
  inc qword ptr [${variable.interrupts}]
  mov ecx, 0x80b             # x2APIC EOI
  xor eax, eax
  xor edx, edx
  wrmsr
  mov eax, [${variable.interrupts}]
  report ${at.station.l1Interrupt}
  pop rdx
  pop rcx
  pop rax
  iretq

gdt:
  .word 0x27
  .quad ${at.L1_GDT}
idt:
  .word 0xfff
  .quad ${at.L1_IDT}
`
}

export function usesApic({ interrupt }: L1Options): boolean {
  return interrupt === 'apic' || interrupt === 'halt' || interrupt === 'l1'
}

/** x2APIC mode, and the APIC on (Intel SDM vol. 3, 11.12.1 and 11.9). */
const enableApic = `
  mov ecx, 0x1b              # IA32_APIC_BASE
  rdmsr
  or eax, 0xc00
  wrmsr
  mov ecx, 0x80f             # spurious interrupt vector register
  mov eax, 0x1ff
  xor edx, edx
  wrmsr
`

/** An interrupt from this APIC to itself (Intel SDM vol. 3, 11.12.11). */
export const selfInterrupt = (vector: number) => `
  mov ecx, 0x83f
  mov eax, ${vector}
  xor edx, edx
  wrmsr
`

/** What L1 does when L2 asks for an interrupt. */
function interruptL2(extension: Extension, { interrupt }: L1Options): string {
  switch (interrupt) {
    case 'inject':
      return `mov eax, ${INJECT_L2_VECTOR}\n mov [${variable.inject}], rax`
    case 'window':
      return extension.pend()
    case 'apic':
      return selfInterrupt(at.L2_VECTOR)
    default:
      return 'fail'
  }
}
