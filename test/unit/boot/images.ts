/** Tiny images in the formats of real kernels, for the loaders' tests. */

export interface BzImageOptions {
  version?: number
  xloadflags?: number
  loadflags?: number
  setupSects?: number
  relocatable?: number
  prefAddress?: bigint
  initSize?: number
  alignment?: number
  initrdAddressMax?: number
  cmdlineSize?: number
}

/** Bytes of the kernel part of `bzImage()`: 0x400, each the low byte of its offset. */
export const PAYLOAD = Uint8Array.from({ length: 0x400 }, (_, i) => i & 0xff)

export function bzImage(options: BzImageOptions = {}): Uint8Array {
  const setupSects = options.setupSects ?? 1
  const file = new Uint8Array(((setupSects || 4) + 1) * 512 + PAYLOAD.length)
  const view = new DataView(file.buffer)
  // Everything outside the header must not reach the boot parameters.
  file.fill(0xcc, 0, 0x1f1)
  file.fill(0xcc, 0x26c, 0x290)
  view.setUint8(0x1f1, setupSects)
  view.setUint32(0x1f4, PAYLOAD.length / 16, true)
  view.setUint16(0x1fa, 0xffff, true)
  view.setUint16(0x1fe, 0xaa55, true)
  view.setUint16(0x200, 0x6aeb, true)
  view.setUint32(0x202, 0x53726448, true)
  view.setUint16(0x206, options.version ?? 0x20f, true)
  view.setUint8(0x211, options.loadflags ?? 1)
  view.setUint32(0x22c, options.initrdAddressMax ?? 0x7fff_ffff, true)
  view.setUint32(0x230, options.alignment ?? 0x20_0000, true)
  view.setUint8(0x234, options.relocatable ?? 1)
  view.setUint16(0x236, options.xloadflags ?? 1, true)
  view.setUint32(0x238, options.cmdlineSize ?? 2047, true)
  view.setBigUint64(0x258, options.prefAddress ?? 0x100_0000n, true)
  view.setUint32(0x260, options.initSize ?? 0x10_0000, true)
  file.set(PAYLOAD, ((setupSects || 4) + 1) * 512)
  return file
}

export interface Segment {
  type?: number
  virtual?: bigint
  physical: bigint
  content: Uint8Array
  memorySize?: bigint
  offset?: bigint
}

export interface ElfOptions {
  entry: bigint
  segments: Segment[]
  class?: number
  machine?: number
  type?: number
  headerOffset?: bigint
  headerSize?: number
}

export function elf(options: ElfOptions): Uint8Array {
  const headers = 64 + options.segments.length * 56
  const file = new Uint8Array(headers + options.segments.reduce((sum, { content }) => sum + content.length, 0))
  const view = new DataView(file.buffer)
  view.setUint32(0, 0x464c457f, true)
  file.set([options.class ?? 2, 1, 1], 4)
  view.setUint16(16, options.type ?? 2, true)
  view.setUint16(18, options.machine ?? 62, true)
  view.setBigUint64(24, options.entry, true)
  view.setBigUint64(32, options.headerOffset ?? 64n, true)
  view.setUint16(54, options.headerSize ?? 56, true)
  view.setUint16(56, options.segments.length, true)
  let at = headers
  options.segments.forEach((segment, i) => {
    const header = 64 + i * 56
    view.setUint32(header, segment.type ?? 1, true)
    view.setBigUint64(header + 8, segment.offset ?? BigInt(at), true)
    view.setBigUint64(header + 16, segment.virtual ?? segment.physical, true)
    view.setBigUint64(header + 24, segment.physical, true)
    view.setBigUint64(header + 32, BigInt(segment.content.length), true)
    view.setBigUint64(header + 40, segment.memorySize ?? BigInt(segment.content.length), true)
    file.set(segment.content, at)
    at += segment.content.length
  })
  return file
}

/** The same as an ELF32 file for the 386. */
export function elf32(options: ElfOptions): Uint8Array {
  const headers = 52 + options.segments.length * 32
  const file = new Uint8Array(headers + options.segments.reduce((sum, { content }) => sum + content.length, 0))
  const view = new DataView(file.buffer)
  view.setUint32(0, 0x464c457f, true)
  file.set([options.class ?? 1, 1, 1], 4)
  view.setUint16(16, options.type ?? 2, true)
  view.setUint16(18, options.machine ?? 3, true)
  view.setUint32(24, Number(options.entry), true)
  view.setUint32(28, Number(options.headerOffset ?? 52n), true)
  view.setUint16(42, options.headerSize ?? 32, true)
  view.setUint16(44, options.segments.length, true)
  let at = headers
  options.segments.forEach((segment, i) => {
    const header = 52 + i * 32
    const { content, physical } = segment
    const size = BigInt(content.length)
    const fields = [
      segment.offset ?? BigInt(at),
      segment.virtual ?? physical,
      physical,
      size,
      segment.memorySize ?? size,
    ]
    view.setUint32(header, segment.type ?? 1, true)
    for (const [j, field] of fields.entries()) view.setUint32(header + 4 + 4 * j, Number(field), true)
    file.set(content, at)
    at += content.length
  })
  return file
}

/** A note segment with one note. */
export function noteSegment(owner: string, type: number, content: Uint8Array): Segment {
  const name = Math.ceil((owner.length + 1) / 4) * 4
  const bytes = Buffer.alloc(12 + name + Math.ceil(content.length / 4) * 4)
  bytes.writeUInt32LE(owner.length + 1, 0)
  bytes.writeUInt32LE(content.length, 4)
  bytes.writeUInt32LE(type, 8)
  bytes.write(owner, 12, 'latin1')
  bytes.set(content, 12 + name)
  return { type: 4, physical: 0n, content: bytes }
}

/** The note of a PVH entry point. */
export function pvhNote(entry: number, size: 4 | 8 = 4): Segment {
  const content = Buffer.alloc(size)
  content.writeUInt32LE(entry)
  return noteSegment('Xen', 18, content)
}

/** A Multiboot header; with address fields (header, load, load end, bss end, entry), flag 16 is set. */
export function multibootHeader(flags = 3, addresses: readonly number[] = []): Uint8Array {
  const all = (flags | (addresses.length > 0 ? 0x10000 : 0)) >>> 0
  return new Uint8Array(Uint32Array.of(0x1badb002, all, -(0x1badb002 + all), ...addresses).buffer)
}
