import { gunzipSync } from 'node:zlib'
import { filter } from './command.js'

/** How the payload of a bzImage begins, and what unpacks it (Linux: scripts/Makefile.lib, size_append). */
const FORMATS = [
  { magic: '1f8b08', tool: undefined, args: [] },
  { magic: 'fd377a585a00', tool: 'xz', args: ['-dc'] },
  { magic: '28b52ffd', tool: 'zstd', args: ['-dc'] },
  { magic: '02214c18', tool: 'lz4', args: ['-dc'] },
] as const

/**
 * The `vmlinux` inside a bzImage, or undefined where this machine has no tool for its compression or it is no kernel for x86-64. Unpacking
 * it here once saves an emulated CPU from doing so at every boot (Linux: Documentation/arch/x86/boot.rst, payload_offset).
 */
export async function unpackKernel(bzImage: Buffer): Promise<Buffer | undefined> {
  // "HdrS", and a boot protocol that has the payload fields (2.08).
  if (bzImage.length < 0x250 || bzImage.readUInt32LE(0x202) !== 0x53726448 || bzImage.readUInt16LE(0x206) < 0x208)
    return undefined
  const start = ((bzImage[0x1f1]! || 4) + 1) * 512 + bzImage.readUInt32LE(0x248)
  const payload = bzImage.subarray(start, start + bzImage.readUInt32LE(0x24c))
  const format = FORMATS.find(({ magic }) => payload.subarray(0, magic.length / 2).toString('hex') === magic)
  if (format === undefined) return undefined
  try {
    // All but gzip, which has it already, have the unpacked size appended.
    const vmlinux = format.tool ? await filter(format.tool, format.args, payload.subarray(0, -4)) : gunzipSync(payload)
    return isKernel(vmlinux) ? vmlinux : undefined
  } catch {
    return undefined
  }
}

/** An ELF64 file for x86-64 (e_machine 62). */
function isKernel(file: Buffer): boolean {
  return file.length > 64 && file.readUInt32BE(0) === 0x7f454c46 && file[4] === 2 && file.readUInt16LE(18) === 62
}

/**
 * Whether a `vmlinux` can be started by its PVH entry: a note of owner "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY in
 * Xen: xen/include/public/elfnote.h), which QEMU asks of an unpacked kernel.
 */
export function hasPvhEntry(vmlinux: Buffer): boolean {
  return [4, 8].some(size => {
    const note = Buffer.alloc(16)
    note.writeUInt32LE(4, 0)
    note.writeUInt32LE(size, 4)
    note.writeUInt32LE(18, 8)
    note.write('Xen\0', 12, 'latin1')
    return vmlinux.includes(note)
  })
}
