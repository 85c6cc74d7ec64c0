import { describe, expect, test } from 'vitest'
import { parseElf } from '../../../lib/boot/elf.js'
import { loadKernel } from '../../../lib/boot/kernel.js'
import { pvhEntry } from '../../../lib/boot/pvh.js'
import { ConfigError } from '../../../lib/errors.js'
import { plainMemory } from '../memory/plain.js'
import { surviveDamage } from './damage.js'
import { elf, elf32, noteSegment, pvhNote, type Segment } from './images.js'

const MIB = 2 ** 20
const memory = () => plainMemory([[0, 8 * MIB]])
const text: Segment = { physical: 0x10_0000n, content: Uint8Array.of(1, 2, 3, 4), memorySize: 0x1801n }
const kernel = (segments: Segment[] = [text, pvhNote(0x10_0002)]) => elf32({ entry: 0x10_0000n, segments })
const module = (i: number, content: Uint8Array | { size: number }, cmdline = '') => ({
  field: `modules[${i}]`,
  content,
  name: 'name',
  cmdline,
})

function view(ram: ReturnType<typeof memory>, address: bigint | number, size: number): DataView {
  return new DataView(ram.read(Number(address), size).buffer)
}

describe('loadKernel, given a kernel with an entry point for PVH', () => {
  test('enters it in protected mode with the start info in EBX', () => {
    const ram = memory()
    const initrd = Uint8Array.of(7, 8)
    const modules = [module(0, Uint8Array.of(9), 'one two'), module(1, { size: 0x1001 })]
    const entry = loadKernel(ram, { kernel: kernel(), cmdline: 'quiet', rsdp: 0xe0000, initrd, modules })
    expect(entry).toEqual({
      mode: 'protected',
      registers: { rip: 0x10_0002n, rbx: 0x60000n },
      kernel: { address: 0x10_0000, size: 0x1801 },
      // On a page each, behind what the kernel clears.
      initrd: { address: 0x10_2000, size: 2 },
      modules: [
        { address: 0x10_3000, size: 1 },
        { address: 0x10_4000, size: 0x1001 },
      ],
    })
    expect([...ram.read(0x10_2000, 3)]).toEqual([7, 8, 0])
    expect(ram.read(0x10_3000, 1)[0]).toBe(9)

    const start = view(ram, 0x60000, 56)
    expect([0, 4, 8, 12, 48, 52].map(at => start.getUint32(at, true))).toEqual([0x336ec578, 1, 0, 3, 3, 0])
    const [list, cmdline, rsdp, map] = [16, 24, 32, 40].map(at => start.getBigUint64(at, true)) as [
      bigint,
      bigint,
      bigint,
      bigint,
    ]
    expect(rsdp).toBe(0xe0000n)
    expect(Buffer.from(ram.read(Number(cmdline), 6)).toString()).toBe('quiet\0')
    const words = (at: bigint, count: number) =>
      Array.from({ length: count }, (_, i) => view(ram, at, count * 8).getBigUint64(i * 8, true))
    const listed = words(list, 12)
    expect([listed.slice(0, 4), listed.slice(8)]).toEqual([
      [0x10_2000n, 2n, 0n, 0n],
      [0x10_4000n, 0x1001n, 0n, 0n],
    ])
    expect([listed[4], listed[5], listed[7]]).toEqual([0x10_3000n, 1n, 0n])
    expect(Buffer.from(ram.read(Number(listed[6]), 8)).toString()).toBe('one two\0')
    expect(words(map, 9)).toEqual([0n, 0x9fc00n, 1n, 0xe0000n, 0x20000n, 2n, 0x100000n, BigInt(7 * MIB), 1n])
  })

  test('without modules there is no list', () => {
    const ram = memory()
    loadKernel(ram, { kernel: kernel() })
    const start = view(ram, 0x60000, 56)
    expect([start.getUint32(12, true), start.getBigUint64(16, true), start.getBigUint64(32, true)]).toEqual([0, 0n, 0n])
  })

  test.each([
    ['an ELF64 kernel with the note', elf, [text, pvhNote(0x10_0002, 8)], {}, 'protected'],
    [
      'a Linux with the note',
      elf,
      [text, pvhNote(0x10_0002), noteSegment('Linux', 257, new Uint8Array(4))],
      {},
      'long',
    ],
    [
      'a Linux with the note, forced',
      elf,
      [text, pvhNote(0x10_0002), noteSegment('Linux', 257, new Uint8Array(4))],
      { boot: 'pvh' },
      'protected',
    ],
    ['an ELF64 kernel with the note, forced', elf, [text, pvhNote(0x10_0002)], { boot: 'linux' }, 'long'],
    ['an ELF64 kernel with another note', elf, [text, noteSegment('Xen', 17, new Uint8Array(4))], {}, 'long'],
    ["an ELF64 kernel with another's note", elf, [text, noteSegment('Zen', 18, new Uint8Array(4))], {}, 'long'],
  ] as const)('%s is entered as it should be', (_, make, segments, options, mode) => {
    expect(
      loadKernel(memory(), { kernel: make({ entry: 0x10_0000n, segments: [...segments] }), ...options }).mode,
    ).toBe(mode)
  })

  test('the entry point may have 4 bytes or 8, and is not less', () => {
    const entry = (note: Segment) => pvhEntry(parseElf(kernel([text, note])))
    expect([pvhNote(5), pvhNote(6, 8), noteSegment('Xen', 18, new Uint8Array(3))].map(entry)).toEqual([5, 6, undefined])
    expect(entry(noteSegment('Xen', 18, new Uint8Array(8).fill(0xff)))).toBe(2 ** 64)
  })

  test.each([
    ['kernel', { kernel: kernel([text]), boot: 'pvh' }, 'no entry point for PVH'],
    ['kernel', { kernel: new Uint8Array(100), boot: 'pvh' }, 'no ELF file'],
    ['kernel', { kernel: kernel([text, pvhNote(0xf_ffff)]) }, 'PVH entry point 0xfffff is in none of its segments'],
    ['kernel', { kernel: kernel([text, pvhNote(0x10_1801)]) }, 'in none of its segments'],
    ['memory', { kernel: kernel([{ ...text, memorySize: 9n * BigInt(MIB) }, pvhNote(0x10_0000)]) }, 'more than 10 MiB'],
    ['initrd', { initrd: { size: 7 * MIB } }, 'at least 1 MiB more memory'],
    ['modules[1]', { modules: [module(0, { size: 6 * MIB }), module(1, { size: MIB })] }, 'does not fit'],
    ['modules[0]', { modules: [module(0, { size: Number.NaN })] }, 'does not fit'],
    ['modules[0]', { modules: [module(0, Uint8Array.of(1), 'a\0b')] }, 'zero byte'],
    ['modules', { modules: [module(0, Uint8Array.of(1), 'x'.repeat(0x30000))] }, 'more than 196608 bytes'],
    ['cmdline', { cmdline: 'x'.repeat(0x40000) }, 'at most 262143'],
    ['cmdline', { cmdline: 'a\0b' }, 'zero byte'],
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
    for (const make of [elf, elf32]) {
      const image = make({ entry: 0x10_0000n, segments: [text, pvhNote(0x10_0002), text] })
      surviveDamage(image, file => loadKernel(ram, { kernel: file, modules }))
      surviveDamage(kernel(), file => loadKernel(ram, { kernel: file, modules, boot: 'pvh' }))
    }
  })
})
