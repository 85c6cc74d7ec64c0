import { assemble } from './assemble.js'
import * as at from './l1-layout.js'

export interface L2Options {
  /** Rounds that L2 computes. */
  rounds: number
  /** Rounds between two reports to L0, each followed by an exit to L1; a power of two. */
  period: number
  /** The instruction that exits to L1. */
  hypercall: 'vmmcall' | 'vmcall'
  interrupt: 'none' | 'inject' | 'window' | 'apic' | 'halt' | 'l1'
  /** Whether the processor and L1 give L2 the upper halves of the AVX registers. */
  avx: boolean
}

/**
 * The guest of the small hypervisors: it hashes a counter. The hash goes through the general registers, the flags, two tables
 * in memory behind GS (SWAPGS changes from one to the other every round), SSE and AVX registers, CR2, debug registers, an MSR,
 * what L1 answers to CPUID and to hypercalls, what L0 answers to IN, and the interrupts it takes. Each step is one-to-one in
 * the hash: state that is lost, or computed twice, shows in the result.
 */
export function l2Source({ rounds, period, hypercall, interrupt, avx }: L2Options): string {
  return `${at.reporting}
  mov r8, ${at.BASIS}
  mov r11, ${at.PRIME}
  xor r9d, r9d
  mov r10d, ${rounds}
  mov r12, 0x9e3779b97f4a7c15
  mov r13, 0xbf58476d1ce4e5b9
  mov r14, 0x94d049bb133111eb
  mov r15, 0x2545f4914f6cdd1d
  xor ebp, ebp
  pxor xmm0, xmm0
  ${avx ? 'vxorps ymm2, ymm2, ymm2' : ''}
  # Bochs lets no interrupt of L0's through while a guest has had interrupts off since its entry.
  sti

round:
  mov rax, r9
  xor rax, r8
  imul rax, r11
  rol rax, 23
  adc rax, r12
  mov ecx, r9d
  and ecx, 255
  add rax, gs:[rcx*8]
  mov gs:[rcx*8], rax
  swapgs
  mov r8, rax
  xor r12, rax
  rol r12, 7
  add r13, r12
  xor r14, r13
  sub r15, r14
  lea rdi, [rdi + rsi*2 + 1]
  xor rsi, r15
  movq xmm1, rax
  paddq xmm0, xmm1
  pshufd xmm0, xmm0, 0x39
  ${avx ? 'vinsertf128 ymm3, ymm1, xmm0, 1\n vxorps ymm2, ymm2, ymm3\n vpermilpd ymm2, ymm2, 0b0101' : ''}
  inc r9
  test r9d, ${period - 1}
  jnz round

  # What is not touched every round goes into the hash now.
  .irp register, r12, r13, r14, r15, rsi, rdi, rbp
  xor r8, \\register
  imul r8, r11
  .endr
  movq rax, xmm0
  call mix
  pextrq rax, xmm0, 1
  call mix
  ${avx ? 'vextractf128 xmm4, ymm2, 1\n movq rax, xmm4\n call mix\n pextrq rax, xmm4, 1\n call mix' : ''}
  mov rax, cr2
  call mix
  mov cr2, rax
  .irp register, dr0, dr1, dr2, dr3
  mov rax, \\register
  call mix
  mov \\register, rax
  .endr
  mov ecx, 0xc0000082        # LSTAR
  rdmsr
  shl rdx, 32
  or rax, rdx
  call mix
  mov rdx, rax
  shr rdx, 32
  wrmsr

  # L0
  mov eax, r9d
  mov edx, ${at.station.l2}
  out dx, eax
  in eax, dx
  call mix

  # L1
  inc ebp
  cmp ebp, 3
  jb 1f
  xor ebp, ebp
1:
  cmp ebp, 1
  je 2f
  ja 3f
  mov eax, r8d
  xor ecx, ecx
  cpuid
  mix_all
  jmp 4f
2:
  ${interrupt === 'halt' ? '' : 'hlt'}
  jmp 4f
3:
  mov ebx, r8d
  mov eax, ${at.call.mix}
  ${hypercall}
  call mix
4:
  ${askForInterrupt(interrupt, hypercall)}
  cmp r9, r10
  jb round

  mov rax, r8
  report ${at.station.l2Hash}
  shr rax, 32
  report ${at.station.l2Hash}
  mov eax, ${at.call.done}
  ${hypercall}
  # Only a preemption timer takes L1 back from here.
7:
  pause
  jmp 7b

  # The hash takes RAX; RAX is then the hash without its upper bits: a canonical address.
mix:
  xor r8, rax
  imul r8, r11
  mov rax, r8
  shr rax, 17
  ret

interrupted:
  push rax
  push rcx
  push rdx
  xor r8, r9
  imul r8, r11
  rol r8, 31
  inc qword ptr [${at.L2_TAKEN}]
  ${interrupt === 'apic' || interrupt === 'halt' ? 'mov ecx, 0x80b\n xor eax, eax\n xor edx, edx\n wrmsr # x2APIC EOI' : ''}
  mov eax, [${at.L2_TAKEN}]
  report ${at.station.l2Interrupt}
  pop rdx
  pop rcx
  pop rax
  iretq
`
}

const mixAll = `
.macro mix_all
  call mix
  mov eax, ebx
  call mix
  mov eax, ecx
  call mix
  mov eax, edx
  call mix
.endm
`

/** L2 has one interrupt come, at this place of its computation, every period. */
function askForInterrupt(interrupt: L2Options['interrupt'], hypercall: string): string {
  const ask = `mov eax, ${at.call.interrupt}\n ${hypercall}`
  switch (interrupt) {
    case 'none':
    case 'l1':
      return ''
    // The interrupt comes with the entry that the call returns by.
    case 'inject':
      return ask
    case 'window':
    case 'apic':
      return `
  mov rbx, [${at.L2_TAKEN}]
  cli
  ${ask}
  mov eax, r9d
  report ${at.station.pending}
  sti
5:
  pause
  cmp rbx, [${at.L2_TAKEN}]
  je 5b`
    // The interrupt comes from L0.
    case 'halt':
      return `
  mov rbx, [${at.L2_TAKEN}]
  cli
  mov eax, r9d
  report ${at.station.halt}
5:
  cli
  cmp rbx, [${at.L2_TAKEN}]
  jne 6f
  sti
  hlt
  jmp 5b
6:
  sti`
  }
}

/** Puts L2 into L1's memory: code, descriptors, page tables. Without nested paging `offset` is 0. */
export function loadL2(memory: Uint8Array, options: L2Options, offset: number): void {
  const window = memory.subarray(at.L2_ORIGIN + offset, at.L2_ORIGIN + offset + at.L2_SIZE)
  const code = assemble(`.code64\n${mixAll}${l2Source(options)}\n.balign 8\n.quad interrupted`, at.L2_ORIGIN)
  if (code.length > at.L2_TABLE_A - at.L2_ORIGIN) throw new Error(`L2 has ${code.length} bytes of code`)
  window.set(code)
  const handler = new DataView(code.buffer, code.byteOffset).getBigUint64(code.length - 8, true)
  writeGdt(window.subarray(at.L2_GDT - at.L2_ORIGIN))
  writeGate(window.subarray(at.L2_IDT - at.L2_ORIGIN), at.L2_VECTOR, handler)
  const tables = new DataView(window.buffer, window.byteOffset + at.L2_PAGE_TABLES - at.L2_ORIGIN)
  tables.setBigUint64(0, BigInt(at.L2_PAGE_TABLES + 0x1007), true)
  tables.setBigUint64(0x1000, BigInt(at.L2_PAGE_TABLES + 0x2007), true)
  // 4 KiB pages, of L2's own memory and no other.
  tables.setBigUint64(0x2000, BigInt(at.L2_PAGE_TABLES + 0x3007), true)
  for (let page = at.L2_ORIGIN; page < at.L2_ORIGIN + at.L2_SIZE; page += 0x1000) {
    tables.setBigUint64(0x3000 + (page >> 12) * 8, BigInt(page + 7), true)
  }
}

/** 64-bit code, data, and a task state segment that is only there to be named (Intel SDM vol. 3, 3.4.5). */
export function writeGdt(memory: Uint8Array): void {
  const gdt = new DataView(memory.buffer, memory.byteOffset)
  gdt.setBigUint64(at.CODE, 0x00af9b000000ffffn, true)
  gdt.setBigUint64(at.DATA, 0x00cf93000000ffffn, true)
  gdt.setBigUint64(at.TASK, 0x00008b0000000067n, true)
}

/** A 64-bit interrupt gate (Intel SDM vol. 3, 6.14.1). */
export function writeGate(memory: Uint8Array, vector: number, handler: bigint): void {
  const gate = new DataView(memory.buffer, memory.byteOffset + vector * 16)
  gate.setUint16(0, Number(handler & 0xffffn), true)
  gate.setUint16(2, at.CODE, true)
  gate.setUint16(4, 0x8e00, true)
  gate.setUint16(6, Number((handler >> 16n) & 0xffffn), true)
  gate.setUint32(8, Number(handler >> 32n), true)
}
