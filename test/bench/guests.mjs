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

/** Where a machine's kernel is loaded and starts. */
const ORIGIN = 0x1000000

/** mov dx, 0x3f8; mov al, 'x'; out dx, al; cli; hlt: an `x` on the console, then nothing more. */
export const SAY_X = Uint8Array.of(0x66, 0xba, 0xf8, 0x03, 0xb0, 0x78, 0xee, 0xfa, 0xf4)

/** The pages that `DIRTY` writes. */
export const DIRTY_PAGES = 100
export const DIRTY_START = 0x1100000
export const DIRTY_STRIDE = 0x2000

/**
 * mov edi, DIRTY_START; mov ecx, DIRTY_PAGES; inc qword [rdi]; add rdi, DIRTY_STRIDE; dec ecx; jnz to the inc;
 * mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp to the first: a counter in each page counts up, then there is an `x`.
 */
export const DIRTY = Uint8Array.from([
  ...[0xbf, 0x00, 0x00, 0x10, 0x01, 0xb9, DIRTY_PAGES, 0x00, 0x00, 0x00],
  ...[0x48, 0xff, 0x07, 0x48, 0x81, 0xc7, 0x00, 0x20, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf2],
  ...[0x66, 0xba, 0xf8, 0x03, 0xb0, 0x78, 0xee, 0xeb, 0xdf],
])

/**
 * What the guests of machines have in common: `code` as an ELF64 kernel, entered in long mode at CPL 0. vmx and svm, where
 * a host has them and no nested state, could not be saved.
 * @param {Uint8Array} code
 * @param {string} memory
 */
export function machineOptions(code, memory) {
  const image = Buffer.alloc(0x1000 + code.length)
  image.write('\x7fELF', 'latin1')
  image.set([2, 1, 1], 4) // 64-bit, little-endian, version 1
  image.writeUInt16LE(2, 16) // ET_EXEC
  image.writeUInt16LE(62, 18) // EM_X86_64
  image.writeBigUInt64LE(BigInt(ORIGIN), 24) // e_entry
  image.writeBigUInt64LE(64n, 32) // e_phoff
  image.writeUInt16LE(64, 52) // e_ehsize
  image.writeUInt16LE(56, 54) // e_phentsize
  image.writeUInt16LE(1, 56) // e_phnum
  image.writeUInt32LE(1, 64) // PT_LOAD
  image.writeUInt32LE(7, 68) // readable, writable, executable
  image.writeBigUInt64LE(0x1000n, 72) // p_offset
  image.writeBigUInt64LE(BigInt(ORIGIN), 80) // p_vaddr
  image.writeBigUInt64LE(BigInt(ORIGIN), 88) // p_paddr
  image.writeBigUInt64LE(BigInt(code.length), 96) // p_filesz
  image.writeBigUInt64LE(BigInt(code.length), 104) // p_memsz
  image.writeBigUInt64LE(0x1000n, 112) // p_align
  image.set(code, 0x1000)
  return { kernel: new Uint8Array(image), memory, cpu: 'host,-vmx,-svm' }
}

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
