import { describe, expect, test } from 'vitest'
import { IDENTITY_MAP_SIZE, translate, writeIdentityMap } from '../../../lib/arch/x86_64/paging.js'
import { plainMemory } from '../memory/plain.js'

const P = 1n
const W = 2n
const U = 4n
const LARGE = 0x80n
const NX = 1n << 63n

function tables(entries: Record<number, bigint>) {
  const memory = plainMemory([[0, 0x10000]])
  for (const [address, entry] of Object.entries(entries)) {
    memory.write(Number(address), new Uint8Array(BigUint64Array.of(entry).buffer))
  }
  return memory
}

describe('writeIdentityMap', () => {
  const memory = plainMemory([[0, 0x20000]])
  const cr3 = writeIdentityMap(memory, 0x9000)
  const entry = (address: number) => new DataView(memory.read(address, 8).buffer).getBigUint64(0, true)

  test('writes the entries of the Intel SDM, byte for byte', () => {
    expect(cr3).toBe(0x9000n)
    expect(entry(0x9000)).toBe(0xa003n)
    expect(entry(0xa000)).toBe(0xb003n)
    expect(entry(0xa018)).toBe(0xe003n)
    expect(entry(0xa020)).toBe(0n)
    expect(entry(0xb000)).toBe(0x0000_00e3n)
    expect(entry(0xb008)).toBe(0x0020_00e3n)
    expect(entry(0xeff8)).toBe(0xffe0_00e3n)
  })

  test('stays within the size that it names', () => {
    expect(IDENTITY_MAP_SIZE).toBe(0x6000)
    expect(memory.read(0x9000 + IDENTITY_MAP_SIZE, 0x1000).every(byte => byte === 0)).toBe(true)
    expect(memory.read(0, 0x9000).every(byte => byte === 0)).toBe(true)
  })

  test.each([0n, 0x1234n, 0x1f_ffffn, 0x20_0000n, 0x4000_0000n, 0xfee0_0000n, 0xffff_ffffn])(
    'maps %x onto itself',
    linear => {
      const expected = { physicalAddress: linear, pageSize: 0x20_0000, writable: true, user: false, executable: true }
      expect(translate(memory, cr3, linear)).toEqual(expected)
    },
  )

  test('maps nothing above 4 GiB', () => {
    expect(translate(memory, cr3, 0x1_0000_0000n)).toBeUndefined()
  })
})

describe('translate', () => {
  // PML4[511] -> 0x2000, PDPT[1] -> 0x3000, PD[3] -> 0x4000, PT[5] -> 0xabcde000
  const linear = 0xffff_ff80_4060_5123n
  const small = {
    [0x1000 + 511 * 8]: 0x2000n | P | W | U,
    [0x2000 + 8]: 0x3000n | P | W | U,
    [0x3000 + 3 * 8]: 0x4000n | P | W | U,
    [0x4000 + 5 * 8]: 0xabcd_e000n | P | W | U,
  }

  test('follows four levels to a 4 KiB page', () => {
    expect(translate(tables(small), 0x1000n, linear)).toEqual({
      physicalAddress: 0xabcd_e123n,
      pageSize: 0x1000,
      writable: true,
      user: true,
      executable: true,
    })
  })

  test('a right that one level withholds is withheld', () => {
    const rights = (entries: Record<number, bigint>) => translate(tables({ ...small, ...entries }), 0x1000n, linear)
    expect(rights({ [0x2000 + 8]: 0x3000n | P | U })).toMatchObject({ writable: false, user: true })
    expect(rights({ [0x1000 + 511 * 8]: 0x2000n | P | W })).toMatchObject({ writable: true, user: false })
    expect(rights({ [0x4000 + 40]: 0xabcd_e000n | P | NX })).toMatchObject({
      executable: false,
      physicalAddress: 0xabcd_e123n,
    })
  })

  test('the no-execute bit counts only where EFER.NXE is on', () => {
    const memory = tables({ ...small, [0x4000 + 40]: 0xabcd_e000n | P | NX })
    expect(translate(memory, 0x1000n, linear, { noExecute: false })?.executable).toBe(true)
  })

  test('ends at a 1 GiB or 2 MiB page', () => {
    const gib = tables({ ...small, [0x2000 + 8]: 0x1_4000_0000n | P | LARGE })
    expect(translate(gib, 0x1000n, linear)).toMatchObject({ physicalAddress: 0x1_4060_5123n, pageSize: 0x4000_0000 })
    const top = tables({ ...small, [0x1000 + 511 * 8]: 0x2000n | P | LARGE })
    expect(translate(top, 0x1000n, linear)?.pageSize).toBe(0x1000)
    const mib = tables({ ...small, [0x3000 + 24]: 0x1_4020_0000n | P | LARGE })
    expect(translate(mib, 0x1000n, linear)).toMatchObject({ physicalAddress: 0x1_4020_5123n, pageSize: 0x20_0000 })
  })

  test('follows five levels under CR4.LA57', () => {
    const memory = tables({ ...small, [0x5000 + 511 * 8]: 0x1000n | P })
    expect(translate(memory, 0x5000n, linear, { la57: true })?.physicalAddress).toBe(0xabcd_e123n)
    expect(translate(memory, 0x5000n, 0x00ff_ff80_4060_5123n, { la57: true })).toBeUndefined()
  })

  test('gives nothing for what is not canonical, not present or outside memory', () => {
    expect(translate(tables(small), 0x1000n, 0x0000_ff80_4060_5123n)).toBeUndefined()
    expect(translate(tables({ ...small, [0x3000 + 24]: 0x4000n | W }), 0x1000n, linear)).toBeUndefined()
    expect(translate(tables({ ...small, [0x3000 + 24]: 0xf_ffff_ffff_f000n | P }), 0x1000n, linear)).toBeUndefined()
  })
})
