import { assemble } from './assemble.js'

/** Where the images are loaded and start. */
export const ELF_ORIGIN = 0x1000000
const HEADER = 64
const PROGRAM_HEADER = 56

/** An ELF64 kernel of 64-bit code, entered in long mode at `ELF_ORIGIN` (System V ABI, "ELF header", "Program header"). */
export function elfKernel(source: string): Uint8Array {
  const code = assemble(`.code64\n${source}`, ELF_ORIGIN)
  const image = Buffer.alloc(0x1000 + code.length)
  image.write('\x7fELF', 'latin1')
  image.set([2, 1, 1], 4) // 64-bit, little-endian, version 1
  image.writeUInt16LE(2, 16) // ET_EXEC
  image.writeUInt16LE(62, 18) // EM_X86_64
  image.writeUInt32LE(1, 20)
  image.writeBigUInt64LE(BigInt(ELF_ORIGIN), 24) // e_entry
  image.writeBigUInt64LE(BigInt(HEADER), 32) // e_phoff
  image.writeUInt16LE(HEADER, 52)
  image.writeUInt16LE(PROGRAM_HEADER, 54)
  image.writeUInt16LE(1, 56) // e_phnum
  image.writeUInt32LE(1, HEADER) // PT_LOAD
  image.writeUInt32LE(7, HEADER + 4) // readable, writable, executable
  image.writeBigUInt64LE(0x1000n, HEADER + 8) // p_offset
  image.writeBigUInt64LE(BigInt(ELF_ORIGIN), HEADER + 16) // p_vaddr
  image.writeBigUInt64LE(BigInt(ELF_ORIGIN), HEADER + 24) // p_paddr
  image.writeBigUInt64LE(BigInt(code.length), HEADER + 32) // p_filesz
  image.writeBigUInt64LE(BigInt(code.length), HEADER + 40) // p_memsz
  image.writeBigUInt64LE(0x1000n, HEADER + 48) // p_align
  image.set(code, 0x1000)
  return image
}
