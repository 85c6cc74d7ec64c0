import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { parseElf } from '../../../lib/boot/elf.js'
import { loadKernel } from '../../../lib/boot/kernel.js'
import { ConfigError } from '../../../lib/errors.js'
import { GuestMemory } from '../../../lib/memory/guest-memory.js'
import { plainMemory } from '../memory/plain.js'
import { type ElfOptions, elf, elf32, noteSegment, pvhNote, type Segment } from './images.js'

const MIB = 2 ** 20
const VIRTUAL = 0xffff_ffff_8100_0000n
const memory = () => plainMemory([[0, 32 * MIB]])
const text: Segment = { virtual: VIRTUAL, physical: 0x100_0000n, content: Uint8Array.of(1, 2, 3, 4), memorySize: 8n }
const note: Segment = { type: 4, physical: 0n, content: Uint8Array.of(7) }
const low: Segment = { physical: 0x10_0000n, content: Uint8Array.of(1, 2, 3, 4) }
const kernel = (options: Partial<ElfOptions> = {}) => elf({ entry: 0x100_0002n, segments: [text], ...options })

describe('parseElf', () => {
  test('reads the same of both classes: entry, segments by their addresses, notes', () => {
    const high: Segment = { ...low, physical: 0x20_0000n, content: Uint8Array.of(5), memorySize: 9n }
    const segments = [high, noteSegment('GNU', 3, Uint8Array.of(1, 2, 3, 4, 5)), low, pvhNote(0x10_0001, 8)]
    for (const [make, bits] of [
      [elf32, 32],
      [elf, 64],
    ] as const) {
      const file = make({ entry: 0x20_0000n, segments })
      const parsed = parseElf(file)
      expect(parsed).toMatchObject({
        bits,
        entry: 0x20_0000n,
        segments: [
          { physicalAddress: 0x10_0000, virtualAddress: 0x10_0000n, fileSize: 4, memorySize: 4 },
          { physicalAddress: 0x20_0000, virtualAddress: 0x20_0000n, fileSize: 1, memorySize: 9 },
        ],
        notes: [
          { owner: 'GNU', type: 3, content: Uint8Array.of(1, 2, 3, 4, 5) },
          { owner: 'Xen', type: 18 },
        ],
      })
      const { offset } = parsed.segments[0]!
      expect([...file.subarray(offset, offset + 4)]).toEqual([1, 2, 3, 4])
    }
  })

  test('a note that is cut short ends the notes', () => {
    const whole = pvhNote(5)
    const twice = Buffer.concat([whole.content, whole.content])
    const count = (length: number) =>
      parseElf(kernel({ segments: [text, { ...whole, content: twice.subarray(0, length) }] })).notes.length
    expect([twice.length, twice.length - 1, whole.content.length + 5].map(count)).toEqual([2, 1, 1])
  })
})

describe('loadKernel, given an ELF file', () => {
  test('loads the segments where they belong, clears what follows, and enters at the entry point', () => {
    const ram = memory()
    ram.fill(0x100_0000, 0x100, 0xee)
    const data: Segment = { physical: 0x180_0000n, content: Uint8Array.of(9) }
    const note: Segment = { type: 4, physical: 0x90_0000n, content: Uint8Array.of(7) }
    const entry = loadKernel(ram, { kernel: kernel({ segments: [text, note, data] }), cmdline: 'quiet', rsdp: 0xe0000 })
    expect(entry).toEqual({
      mode: 'long',
      registers: { rip: 0x100_0002n, rsi: 0x7000n },
      kernel: { address: 0x100_0000, size: 0x80_0001 },
      initrd: undefined,
      modules: [],
    })
    expect([...ram.read(0x100_0000, 9)]).toEqual([1, 2, 3, 4, 0, 0, 0, 0, 0xee])
    expect(ram.read(0x180_0000, 1)[0]).toBe(9)
    expect(ram.read(0x90_0000, 1)[0]).toBe(0)
  })

  test('hands over boot parameters that pass for a boot loader’s', () => {
    const ram = memory()
    const { initrd } = loadKernel(ram, { kernel: kernel(), cmdline: 'quiet', rsdp: 0xe0000, initrd: new Uint8Array(5) })
    const view = new DataView(ram.read(0x7000, 0x1000).buffer)
    expect(view.getUint16(0x1fe, true)).toBe(0xaa55)
    expect(view.getUint32(0x202, true)).toBe(0x53726448)
    expect(view.getUint8(0x210)).toBe(0xff)
    expect(view.getBigUint64(0x70, true)).toBe(0xe0000n)
    expect(view.getUint32(0x218, true)).toBe(32 * MIB - 0x1000)
    expect(initrd).toEqual({ address: 32 * MIB - 0x1000, size: 5 })
    expect(view.getUint8(0x1e8)).toBe(3)
    expect(Buffer.from(ram.read(0x20000, 6)).toString()).toBe('quiet\0')
  })

  test('the initrd stays below 2 GiB', () => {
    const region = { guestAddress: 0, size: 3 * 2 ** 30, chunks: [new Uint8Array(20 * MIB)] }
    const { initrd } = loadKernel(new GuestMemory([region]), { kernel: kernel(), initrd: { size: 0x1000 } })
    expect(initrd?.address).toBe(2 ** 31 - 0x1000)
  })

  test('a virtual entry point is mapped through its segment', () => {
    expect(loadKernel(memory(), { kernel: kernel({ entry: VIRTUAL + 3n }) }).registers.rip).toBe(0x100_0003n)
  })

  test.each([
    ['kernel', kernel({ class: 1 }), 'no executable for x86'],
    ['kernel', kernel({ machine: 40 }), 'no executable for x86'],
    ['kernel', kernel({ machine: 3 }), 'no executable for x86'],
    ['kernel', kernel({ type: 1 }), 'no executable for x86'],
    ['kernel', elf32({ entry: 0x10_0000n, segments: [low] }), 'neither a Multiboot header nor an entry point for PVH'],
    ['kernel', kernel({ segments: [text, { ...text, physical: 0x100_0007n }] }), 'its segments overlap'],
    ['kernel', kernel({ segments: [text, { ...note, offset: 2n ** 63n }] }), 'cut short'],
    ['kernel', kernel({ segments: [text, { ...note, content: new Uint8Array(2 ** 20 + 1) }] }), 'notes are larger'],
    ['kernel', kernel({ entry: 0x42n }), 'entry point 0x42'],
    ['kernel', kernel({ entry: 0x100_0008n }), 'entry point 0x1000008'],
    ['kernel', kernel({ segments: [] }), 'nothing to be loaded'],
    ['kernel', kernel({ headerSize: 8 }), 'program headers are too small'],
    ['kernel', kernel({ headerOffset: 2n ** 64n - 1n }), 'cut short'],
    ['kernel', kernel().subarray(0, 63), 'cut short'],
    ['kernel', kernel().subarray(0, 100), 'cut short'],
    ['kernel', kernel().subarray(0, kernel().length - 1), 'cut short'],
    ['kernel', kernel({ segments: [{ ...text, offset: 2n ** 63n }] }), 'cut short'],
    ['kernel', kernel({ segments: [{ ...text, memorySize: 3n }] }), 'makes no sense'],
    ['kernel', kernel({ segments: [{ ...text, physical: 2n ** 63n }] }), 'makes no sense'],
    ['kernel', kernel({ segments: [{ ...text, physical: 0x7000n }] }), 'below 1 MiB'],
    [
      'memory',
      kernel({ segments: [{ ...text, memorySize: BigInt(40 * MIB) }] }),
      'loaded up to 0x3800000; give the guest more than 56 MiB',
    ],
    ['cmdline', kernel(), 'takes at most 2047'],
  ])('a bad %s is a ConfigError that names it (%#)', (field, image, message) => {
    let caught: unknown
    try {
      loadKernel(memory(), { kernel: image, cmdline: 'x'.repeat(field === 'cmdline' ? 2048 : 1) })
    } catch (error) {
      caught = error
    }
    expect(caught).toBeInstanceOf(ConfigError)
    expect(caught).toMatchObject({ field, message: expect.stringContaining(message) })
  })

  test('no file, however damaged, gives anything but a ConfigError', () => {
    const image = kernel({ segments: [text, { physical: 0x110_0000n, content: Uint8Array.of(5, 6) }] })
    const ram = plainMemory([[0, 18 * MIB]])
    const damage = fc.record({
      length: fc.nat(image.length),
      changes: fc.array(fc.tuple(fc.nat(image.length - 1), fc.nat(255)), { maxLength: 6 }),
    })
    fc.assert(
      fc.property(damage, ({ length, changes }) => {
        const file = image.slice(0, length)
        for (const [at, value] of changes) if (at < length) file[at] = value
        try {
          loadKernel(ram, { kernel: file })
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError)
        }
      }),
      { numRuns: 2000 },
    )
  })
})
