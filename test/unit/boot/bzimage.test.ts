import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { parseBzImage } from '../../../lib/boot/bzimage.js'
import { loadKernel } from '../../../lib/boot/kernel.js'
import { ConfigError } from '../../../lib/errors.js'
import { plainMemory } from '../memory/plain.js'
import { bzImage, PAYLOAD } from './images.js'

const MIB = 2 ** 20
const memory = (size = 32 * MIB) => plainMemory([[0, size]])

describe('parseBzImage', () => {
  test('reads the header', () => {
    expect(parseBzImage(bzImage({ setupSects: 3 }))).toEqual({
      version: 0x20f,
      payload: { offset: 2048, size: 0x400 },
      initrd_addr_max: 0x7fff_ffff,
      kernel_alignment: 0x20_0000,
      relocatable_kernel: true,
      cmdline_size: 2047,
      pref_address: 0x100_0000,
      init_size: 0x10_0000,
    })
  })

  test('0 setup sectors mean 4', () => {
    expect(parseBzImage(bzImage({ setupSects: 0 })).payload.offset).toBe(5 * 512)
  })

  test('the last paragraph may be incomplete, as syssize is rounded up', () => {
    const image = bzImage()
    expect(parseBzImage(image.subarray(0, image.length - 15)).payload.size).toBe(PAYLOAD.length - 15)
    expect(() => parseBzImage(image.subarray(0, image.length - 16))).toThrow('cut short')
  })

  test.each([
    ['too old', bzImage({ version: 0x20b }), 'boot protocol is 2.11, and 2.12 is needed'],
    ['32-bit only', bzImage({ xloadflags: 0 }), 'no 64-bit entry point'],
    ['a zImage', bzImage({ loadflags: 0 }), 'zImage'],
    ['cut short in the header', bzImage().subarray(0, 0x28f), 'cut short'],
    ['cut short in the kernel', bzImage().subarray(0, 1500), 'cut short: its header tells of 2048 bytes'],
    ['something else', new Uint8Array(4096), 'no Linux setup header'],
  ])('refuses what is %s', (_, image, message) => {
    expect(() => parseBzImage(image)).toThrow(ConfigError)
    expect(() => parseBzImage(image)).toThrow(message)
  })
})

describe('loadKernel, given a bzImage', () => {
  test('puts the kernel at 16 MiB and enters 0x200 above', () => {
    const ram = memory()
    const entry = loadKernel(ram, { kernel: bzImage() })
    expect(entry).toEqual({
      mode: 'long',
      registers: { rip: 0x100_0200n, rsi: 0x7000n },
      kernel: { address: 0x100_0000, size: 0x10_0000 },
      initrd: undefined,
      modules: [],
    })
    expect(ram.read(0x100_0000, PAYLOAD.length)).toEqual(PAYLOAD)
  })

  test('puts a kernel that cannot be relocated where it wants to be', () => {
    const ram = memory()
    const entry = loadKernel(ram, { kernel: bzImage({ relocatable: 0, prefAddress: 0x20_0000n }) })
    expect(entry.registers.rip).toBe(0x20_0200n)
    expect(ram.read(0x20_0000, PAYLOAD.length)).toEqual(PAYLOAD)
  })

  test('the boot parameters have the header, the address map, and nothing else of the file', () => {
    const ram = memory()
    loadKernel(ram, { kernel: bzImage(), cmdline: 'console=ttyS0', rsdp: 0xe0000 })
    const params = ram.read(0x7000, 0x1000)
    const view = new DataView(params.buffer)
    expect(params.subarray(0x1f1, 0x200)).toEqual(bzImage().subarray(0x1f1, 0x200))
    expect(view.getUint32(0x202, true)).toBe(0x53726448)
    expect(view.getUint8(0x210)).toBe(0xff)
    expect(view.getUint32(0x214, true)).toBe(0x100_0000)
    expect(view.getUint32(0x228, true)).toBe(0x20000)
    expect(view.getUint32(0x238, true)).toBe(2047)
    expect(view.getBigUint64(0x70, true)).toBe(0xe0000n)
    expect(params[0x1ef]).toBe(0)
    expect(params.subarray(0x26c, 0x2d0).every(byte => byte === 0)).toBe(true)
    expect(Buffer.from(ram.read(0x20000, 14)).toString()).toBe('console=ttyS0\0')

    expect(view.getUint8(0x1e8)).toBe(3)
    const entry = (i: number) => [
      view.getBigUint64(0x2d0 + i * 20, true),
      view.getBigUint64(0x2d8 + i * 20, true),
      view.getUint32(0x2e0 + i * 20, true),
    ]
    expect([0, 1, 2].map(entry)).toEqual([
      [0n, 0x9fc00n, 1],
      [0xe0000n, 0x20000n, 2],
      [0x100000n, BigInt(31 * MIB), 1],
    ])
  })

  test('the address map goes on above 4 GiB', () => {
    const both = plainMemory([
      [0, 32 * MIB],
      [2 ** 32, MIB],
    ])
    loadKernel(both, { kernel: bzImage() })
    const view = new DataView(both.read(0x7000, 0x1000).buffer)
    expect(view.getUint8(0x1e8)).toBe(4)
    expect(view.getBigUint64(0x2d0 + 60, true)).toBe(2n ** 32n)
    expect(view.getBigUint64(0x2d8 + 60, true)).toBe(BigInt(MIB))
  })

  test('the initrd lies as high as it may, on a page, in one piece', () => {
    const ram = memory()
    const parts = [Uint8Array.of(1, 2, 3), new Uint8Array(0x1000).fill(4)]
    const { initrd } = loadKernel(ram, { kernel: bzImage(), initrd: parts })
    expect(initrd).toEqual({ address: 32 * MIB - 0x2000, size: 0x1003 })
    expect([...ram.read(initrd!.address, 5)]).toEqual([1, 2, 3, 4, 4])
    const view = new DataView(ram.read(0x7000, 0x1000).buffer)
    expect(view.getUint32(0x218, true)).toBe(initrd!.address)
    expect(view.getUint32(0x21c, true)).toBe(0x1003)
  })

  test('the initrd stays below initrd_addr_max', () => {
    const kernel = bzImage({ initrdAddressMax: 24 * MIB - 1 })
    const { initrd } = loadKernel(memory(), { kernel, initrd: new Uint8Array(0x1000) })
    expect(initrd?.address).toBe(24 * MIB - 0x1000)
  })

  test('an initrd of which only the size is given gets its place', () => {
    const { initrd } = loadKernel(memory(), { kernel: bzImage(), initrd: { size: 0x1800 } })
    expect(initrd).toEqual({ address: 32 * MIB - 0x2000, size: 0x1800 })
  })

  test.each([
    ['initrd', { initrd: { size: 20 * MIB } }, 'at least 5 MiB more memory'],
    ['initrd', { initrd: { size: 1e15 } }, 'more memory'],
    [
      'initrd',
      { kernel: bzImage({ initrdAddressMax: 18 * MIB - 1 }), initrd: { size: 2 * MIB } },
      'only below 0x1200000',
    ],
    ['cmdline', { cmdline: 'x'.repeat(2048) }, '2048 bytes long, and this kernel takes at most 2047'],
    ['cmdline', { cmdline: 'ä'.repeat(1024) }, '2048 bytes long'],
    ['cmdline', { kernel: bzImage({ cmdlineSize: 0xffff_ffff }), cmdline: 'x'.repeat(0x40000) }, 'at most 262143'],
    ['cmdline', { cmdline: 'a\0b' }, 'zero byte'],
    [
      'modules',
      { modules: [{ field: 'modules[0]', content: new Uint8Array(1), name: 'm', cmdline: '' }] },
      'takes none',
    ],
    ['memory', { kernel: bzImage({ initSize: 17 * MIB }) }, 'more than 33 MiB'],
    ['memory', { kernel: bzImage({ prefAddress: 0x8000_0000n }) }, 'unpacks itself up to 0x80100000'],
    ['kernel', { kernel: bzImage({ prefAddress: 2n ** 63n, relocatable: 0 }) }, 'relocatable'],
    ['kernel', { kernel: bzImage({ prefAddress: 0x1000n, relocatable: 0 }) }, 'it wants to be loaded at 0x1000'],
    ['kernel', { kernel: new Uint8Array() }, 'neither a bzImage nor an ELF'],
    ['kernel', { kernel: Buffer.from('MZ is no kernel') }, '4d5a206973206e6f": it is neither a bzImage nor an ELF'],
  ])('a bad %s is a ConfigError that names it (%#)', (field, source, message) => {
    let caught: unknown
    try {
      loadKernel(memory(), { kernel: bzImage(), ...source })
    } catch (error) {
      caught = error
    }
    expect(caught).toBeInstanceOf(ConfigError)
    expect(caught).toMatchObject({ field, message: expect.stringContaining(message) })
  })

  test('a command line of exactly the allowed length is taken', () => {
    const ram = memory()
    loadKernel(ram, { kernel: bzImage(), cmdline: 'x'.repeat(2047) })
    expect([...ram.read(0x20000 + 2046, 2)]).toEqual([0x78, 0])
  })

  test('memory that ends below 1 MiB is refused', () => {
    expect(() => loadKernel(memory(0x9000), { kernel: bzImage() })).toThrow('memory')
  })

  test('no image, however damaged, gives anything but a ConfigError', () => {
    const image = bzImage({ setupSects: 0 })
    const damage = fc.record({
      length: fc.nat(image.length),
      changes: fc.array(fc.tuple(fc.integer({ min: 0x1f1, max: 0x270 }), fc.nat(255)), { maxLength: 8 }),
    })
    fc.assert(
      fc.property(damage, ({ length, changes }) => {
        const kernel = image.slice(0, length)
        for (const [at, value] of changes) if (at < length) kernel[at] = value
        onlyConfigError(() => loadKernel(fuzzMemory, { kernel, initrd: { size: 0x3000 }, cmdline: 'quiet' }))
      }),
      { numRuns: 2000 },
    )
  })
})

const fuzzMemory = memory(18 * MIB)

function onlyConfigError(action: () => void): void {
  try {
    action()
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError)
  }
}
