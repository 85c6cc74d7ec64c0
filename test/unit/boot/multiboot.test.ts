import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { loadKernel } from '../../../lib/boot/kernel.js'
import { findMultibootHeader } from '../../../lib/boot/multiboot.js'
import { ConfigError } from '../../../lib/errors.js'
import { plainMemory } from '../memory/plain.js'
import { surviveDamage } from './damage.js'
import { elf, elf32, multibootHeader, pvhNote, type Segment } from './images.js'

const MIB = 2 ** 20
const memory = () => plainMemory([[0, 8 * MIB]])
const text = (flags = 3): Segment => ({
  physical: 0x10_0000n,
  content: Uint8Array.of(...multibootHeader(flags), 0x90, 0xf4),
  memorySize: 0x1801n,
})
const kernel = (segment = text()) => elf32({ entry: 0x10_000cn, segments: [segment] })
const module = (i: number, content: Uint8Array | { size: number }, cmdline = '', name = 'name') => ({
  field: `modules[${i}]`,
  content,
  name,
  cmdline,
})

/** A flat image: 16 bytes, the header, code. */
const flat = (addresses = [0x10_0010, 0x10_0000, 0x10_0038, 0x10_2001, 0x10_0030]) => {
  const file = new Uint8Array(0x40).map((_, i) => i)
  file.set(multibootHeader(3, addresses), 16)
  return file
}

describe('findMultibootHeader', () => {
  test('finds it on a multiple of 4 in the first 8192 bytes, whole', () => {
    const at = (offset: number, header = multibootHeader(), length = 9000) => {
      const file = new Uint8Array(Math.max(length, offset + header.length))
      file.set(header, offset)
      return findMultibootHeader(file.subarray(0, length))?.offset
    }
    const full = multibootHeader(3, [1, 2, 3, 4, 5])
    expect([0, 4, 8180, 8184, 6].map(offset => at(offset))).toEqual([0, 4, 8180, undefined, undefined])
    expect([at(8160, full), at(8164, full)]).toEqual([8160, undefined])
    expect([at(0, multibootHeader(), 12), at(0, multibootHeader(), 11)]).toEqual([0, undefined])
    expect(at(0, full, 31)).toBe(undefined)
  })

  test('one with a wrong checksum is none, and a later one counts', () => {
    const file = new Uint8Array(64)
    file.set(multibootHeader(), 0)
    file[8]! ^= 1
    expect(findMultibootHeader(file)).toBe(undefined)
    file.set(multibootHeader(1), 32)
    expect(findMultibootHeader(file)).toEqual({ offset: 32, flags: 1 })
    expect(findMultibootHeader(flat())?.addresses).toEqual({
      header: 0x10_0010,
      load: 0x10_0000,
      loadEnd: 0x10_0038,
      bssEnd: 0x10_2001,
      entry: 0x10_0030,
    })
  })
})

describe('loadKernel, given a Multiboot kernel', () => {
  test('enters it in protected mode with the information structure in EBX', () => {
    const ram = memory()
    const modules = [module(0, Uint8Array.of(9), 'a=1 b'), module(1, { size: 0x1001 }, '', 'my file')]
    const entry = loadKernel(ram, { kernel: kernel(), name: 'xen', cmdline: 'console=com1', modules })
    expect(entry).toEqual({
      mode: 'protected',
      registers: { rip: 0x10_000cn, rax: 0x2badb002n, rbx: 0x60000n },
      kernel: { address: 0x10_0000, size: 0x1801 },
      initrd: undefined,
      modules: [
        { address: 0x10_2000, size: 1 },
        { address: 0x10_3000, size: 0x1001 },
      ],
    })
    expect(ram.read(0x10_2000, 1)[0]).toBe(9)
    const words = (at: number, count: number) => [...new Uint32Array(ram.read(at, count * 4).buffer)]
    const string = (at: number) => {
      const bytes = Buffer.from(ram.read(at, 64))
      return bytes.toString('latin1', 0, bytes.indexOf(0))
    }
    const info = words(0x60000, 29)
    // memory, command line, modules, memory map, name of the boot loader
    expect(info[0]).toBe(0b10_0100_1101)
    expect([info[1], info[2]]).toEqual([639, 7 * 1024])
    expect(string(info[4]!)).toBe('xen console=com1')
    expect(string(info[16]!)).toBe('nested-kvm')
    expect(info[5]).toBe(2)
    const list = words(info[6]!, 8)
    expect([list[0], list[1], list[3], list[4], list[5], list[7]]).toEqual([
      0x10_2000, 0x10_2001, 0, 0x10_3000, 0x10_4001, 0,
    ])
    expect([string(list[2]!), string(list[6]!)]).toEqual(['name a=1 b', 'my_file'])
    expect(info[11]).toBe(72)
    expect(words(info[12]!, 18)).toEqual([
      ...[20, 0, 0, 0x9fc00, 0, 1],
      ...[20, 0xe0000, 0, 0x20000, 0, 2],
      ...[20, 0x100000, 0, 7 * MIB, 0, 1],
    ])
  })

  test('the BIOS data area says where low memory ends, as the information structure does', () => {
    const ram = memory()
    loadKernel(ram, { kernel: kernel() })
    expect([0x40e, 0x413].map(at => new DataView(ram.read(at, 2).buffer).getUint16(0, true))).toEqual([0x9fc0, 639])
  })

  test('upper memory ends at the gap for devices', () => {
    const ram = plainMemory([
      [0, 4 * MIB],
      [8 * MIB, MIB],
    ])
    loadKernel(ram, { kernel: kernel() })
    expect(new Uint32Array(ram.read(0x60008, 4).buffer)[0]).toBe(3 * 1024)
  })

  test('the address fields of the header say where what of the file is loaded', () => {
    const ram = memory()
    ram.fill(0x10_0000, 0x4000, 0xee)
    const entry = loadKernel(ram, { kernel: flat() })
    expect(entry.registers.rip).toBe(0x10_0030n)
    expect(entry.kernel).toEqual({ address: 0x10_0000, size: 0x2001 })
    expect(ram.read(0x10_0000, 0x38)).toEqual(flat().subarray(0, 0x38))
    expect(ram.read(0x10_0038, 0x1fc9).every(byte => byte === 0)).toBe(true)
    expect(ram.read(0x10_2001, 1)[0]).toBe(0xee)
  })

  test('they may begin inside the file, and mean all of it; they go before what an ELF header says', () => {
    const whole = loadKernel(memory(), { kernel: flat([0x10_0000, 0x10_0000, 0, 0, 0x10_0000]) })
    expect(whole.kernel).toEqual({ address: 0x10_0000, size: 0x30 })
    const segment = {
      ...text(),
      content: Uint8Array.from([...multibootHeader(3, [0x20_0000, 0x20_0000, 0, 0, 0x20_0004])]),
    }
    for (const make of [elf32, elf]) {
      const entry = loadKernel(memory(), { kernel: make({ entry: 0x10_0000n, segments: [segment] }) })
      expect(entry.registers.rip).toBe(0x20_0004n)
    }
  })

  test('of an ELF32 file with both, Multiboot goes before PVH', () => {
    const both = elf32({ entry: 0x10_000cn, segments: [text(), pvhNote(0x10_000d)] })
    expect(loadKernel(memory(), { kernel: both }).registers.rax).toBe(0x2badb002n)
    expect(loadKernel(memory(), { kernel: both, boot: 'pvh' }).registers).toEqual({ rip: 0x10_000dn, rbx: 0x60000n })
  })

  test.each([
    ['kernel', { kernel: kernel(text(7)) }, 'asks for more than modules and memory (flags 0x7)'],
    ['kernel', { kernel: kernel(text(0x8000)) }, 'flags 0x8000'],
    ['kernel', { kernel: elf({ entry: 0x10_000cn, segments: [text()] }), boot: 'multiboot' }, '64-bit ELF file'],
    ['kernel', { kernel: multibootHeader(), boot: 'multiboot' }, 'no ELF file, and its header has no addresses'],
    ['kernel', { kernel: new Uint8Array(9000), boot: 'multiboot' }, 'no Multiboot header'],
    ['kernel', { kernel: flat([0x10_0010, 0x10_0011, 0, 0, 0x10_0011]) }, 'make no sense'], // header before what is loaded
    ['kernel', { kernel: flat([0x10_0011, 0x10_0000, 0, 0, 0x10_0000]) }, 'make no sense'], // from before the file
    ['kernel', { kernel: flat([0x10_0010, 0x10_0000, 0xf_ffff, 0, 0x10_0000]) }, 'make no sense'], // ends before it begins
    ['kernel', { kernel: flat([0x10_0010, 0x10_0000, 0, 0x10_003f, 0x10_0000]) }, 'make no sense'], // bss in what is loaded
    ['kernel', { kernel: flat([0x10_0010, 0x10_0000, 0, 0, 0x10_0040]) }, 'make no sense'], // entry behind the end
    ['kernel', { kernel: flat([0x10_0010, 0x10_0000, 0, 0, 0xf_ffff]) }, 'make no sense'], // entry before the start
    ['kernel', { kernel: flat([0x10_0010, 0x10_0000, 0x10_0041, 0, 0x10_0000]) }, 'cut short'],
    ['kernel', { kernel: flat([0xf_0010, 0xf_0000, 0, 0, 0xf_0000]) }, 'loaded at 0xf0000, below 1 MiB'],
    ['memory', { kernel: flat([0x10_0010, 0x10_0000, 0, 0xffff_ffff, 0x10_0000]) }, 'more than 4096 MiB'],
    ['initrd', { initrd: Uint8Array.of(1) }, 'takes modules instead'],
    ['modules[0]', { modules: [module(0, { size: 7 * MIB })] }, 'at least 1 MiB more memory'],
    ['modules[0]', { modules: [module(0, Uint8Array.of(1), 'a\0b')] }, 'zero byte'],
    ['modules', { modules: Array(20_000).fill(module(0, new Uint8Array())) }, 'give fewer'],
    ['cmdline', { cmdline: 'x'.repeat(0x40000) }, 'at most 262143'],
  ] as const)('a bad %s is a ConfigError that names it (%#)', (field, source, message) => {
    let caught: unknown
    try {
      loadKernel(memory(), { kernel: kernel(), ...source })
    } catch (error) {
      caught = error
    }
    expect(caught).toBeInstanceOf(ConfigError)
    expect(caught).toMatchObject({ field, message: expect.stringContaining(message) })
  })

  test('no file, however damaged, gives anything but a ConfigError', () => {
    const ram = memory()
    const modules = [module(0, Uint8Array.of(1))]
    for (const image of [kernel(), flat()]) {
      surviveDamage(image, file => loadKernel(ram, { kernel: file, modules }))
      surviveDamage(image, file => loadKernel(ram, { kernel: file, modules, boot: 'multiboot' }))
    }
  })

  test('nor do address fields of any value; nothing is written outside of what is told', () => {
    const near = fc.oneof(fc.integer({ min: 0xf_ff00, max: 0x10_0100 }), fc.nat(0xffff_ffff), fc.constant(0))
    fc.assert(
      fc.property(fc.array(near, { minLength: 5, maxLength: 5 }), addresses => {
        const ram = plainMemory([[0, 2 * MIB]])
        ram.fill(0x10_0000, MIB, 0xee)
        try {
          const { kernel } = loadKernel(ram, { kernel: flat(addresses) })
          const after = kernel.address + kernel.size
          expect(ram.read(0x10_0000, kernel.address - 0x10_0000).every(byte => byte === 0xee)).toBe(true)
          expect(ram.read(after, 2 * MIB - after).every(byte => byte === 0xee)).toBe(true)
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError)
        }
      }),
      { numRuns: 500 },
    )
  })
})
