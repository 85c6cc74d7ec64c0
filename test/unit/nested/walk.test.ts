import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { GuestMemory } from '../../../lib/memory/guest-memory.js'
import { decodeEptp, pageTableRoot, pagingMode } from '../../../lib/nested/pointers.js'
import { walkEpt, walkNpt } from '../../../lib/nested/walk.js'

/** Tables at 0x1000, 0x2000, ...: entries to write as [table number, index, entry]. */
function tables(entries: readonly (readonly [table: number, index: number, entry: bigint])[], entrySize: 4 | 8 = 8) {
  const bytes = new Uint8Array(0x10000)
  const view = new DataView(bytes.buffer)
  for (const [table, index, entry] of entries) {
    if (entrySize === 8) view.setBigUint64(table * 0x1000 + index * 8, entry, true)
    else view.setUint32(table * 0x1000 + index * 4, Number(entry), true)
  }
  return new GuestMemory([{ guestAddress: 0, size: bytes.length, chunks: [bytes] }])
}

const WB = 6n << 3n
const LEAF = 1n << 7n
const eptp = (levels: number, root = 0x1000n) => root | 6n | (BigInt(levels - 1) << 3n)
const ADDRESS = (3n << 39n) | (5n << 30n) | (7n << 21n) | (9n << 12n) | 0x123n

/** Four levels down to the page at 0xabcd000, with an entry of one level replaced. */
function ept(replace: Partial<Record<1 | 2 | 3 | 4, bigint>> = {}) {
  return tables([
    [1, 3, replace[4] ?? 0x2007n],
    [2, 5, replace[3] ?? 0x3007n],
    [3, 7, replace[2] ?? 0x4007n],
    [4, 9, replace[1] ?? 0xabcd007n | WB],
  ])
}

describe('EPT', () => {
  it('walks four levels to a 4 KiB page, step by step', () => {
    expect(walkEpt(ept(), eptp(4), ADDRESS)).toEqual({
      address: ADDRESS,
      steps: [
        { level: 4, entryAddress: 0x1018n, entry: 0x2007n, meaning: 'table, read, write, execute' },
        { level: 3, entryAddress: 0x2028n, entry: 0x3007n, meaning: 'table, read, write, execute' },
        { level: 2, entryAddress: 0x3038n, entry: 0x4007n, meaning: 'table, read, write, execute' },
        { level: 1, entryAddress: 0x4048n, entry: 0xabcd037n, meaning: 'page, WB, read, write, execute' },
      ],
      outcome: 'mapped',
      physical: 0xabcd123n,
      pageSize: 4096,
      readable: true,
      writable: true,
      executable: true,
      memoryType: 'WB',
    })
  })

  it('walks five levels', () => {
    const memory = tables([
      [5, 1, 0x1007n],
      [1, 3, 0x2007n],
      [2, 5, 0x3007n],
      [3, 7, 0x4007n],
      [4, 9, 0xabcd037n],
    ])
    const walk = walkEpt(memory, eptp(5, 0x5000n), (1n << 48n) | ADDRESS)
    expect(walk).toMatchObject({ outcome: 'mapped', physical: 0xabcd123n })
    expect(walk.steps.map(({ level }) => level)).toEqual([5, 4, 3, 2, 1])
    expect(walkEpt(memory, eptp(4), 1n << 48n)).toMatchObject({ outcome: 'address too wide', steps: [] })
    expect(walkEpt(memory, eptp(3), 0n)).toMatchObject({ outcome: 'misconfigured' })
  })

  it('ends at a page of 2 MiB or 1 GiB', () => {
    expect(walkEpt(ept({ 2: 0x4060_0000n | LEAF | WB | 7n }), eptp(4), ADDRESS)).toMatchObject({
      outcome: 'mapped',
      physical: 0x4060_0000n + 0x9123n,
      pageSize: 2 ** 21,
    })
    expect(walkEpt(ept({ 3: 0x4000_0000n | LEAF | WB | 7n }), eptp(4), ADDRESS)).toMatchObject({
      outcome: 'mapped',
      physical: 0x4000_0000n + (7n << 21n) + 0x9123n,
      pageSize: 2 ** 30,
    })
  })

  it('allows what every level allows', () => {
    expect(walkEpt(ept({ 4: 0x2005n, 1: 0xabcd033n }), eptp(4), ADDRESS)).toMatchObject({
      readable: true,
      writable: false,
      executable: false,
    })
    const userOnly = ept({ 1: 0xabcd431n })
    expect(walkEpt(userOnly, eptp(4), ADDRESS)).toMatchObject({ executable: false })
    expect(walkEpt(userOnly, eptp(4), ADDRESS, { modeBasedExecute: true })).toMatchObject({ executable: true })
  })

  it('says where nothing is present', () => {
    const walk = walkEpt(ept({ 2: 0x4000n }), eptp(4), ADDRESS)
    expect(walk).toMatchObject({ outcome: 'not present', reason: 'the level 2 entry' })
    expect(walk.steps).toHaveLength(3)
    expect(walk.steps[2]).toMatchObject({ meaning: 'not present' })
  })

  it.each<[string, 1 | 2 | 3 | 4, bigint]>([
    ['writable but not readable', 3, 0x3002n],
    ['memory type 2', 1, 0xabcd007n | (2n << 3n)],
    ['memory type 3', 1, 0xabcd007n | (3n << 3n)],
    ['memory type 7', 1, 0xabcd007n | (7n << 3n)],
    ['reserved bits of a table entry', 4, 0x2087n],
    ['reserved bits of a table entry', 2, 0x400fn],
    ['the page is not aligned to its size', 2, 0x4000_1000n | LEAF | WB | 7n],
    ['the page is not aligned to its size', 3, 0x4020_0000n | LEAF | WB | 7n],
    ['an address of more than 36 bits', 1, (1n << 36n) | WB | 7n],
    ['executable but not readable', 1, 0xabcd004n | WB],
  ])('tells a misconfiguration: %s', (reason, level, entry) => {
    const options = { maxPhyAddr: 36, executeOnly: false }
    const walk = walkEpt(ept({ [level]: entry }), eptp(4), ADDRESS, options)
    expect(walk).toMatchObject({ outcome: 'misconfigured', reason: `the level ${level} entry: ${reason}` })
  })

  it('says where a table is not in memory', () => {
    expect(walkEpt(ept({ 3: 0x1_0000_0007n }), eptp(4), ADDRESS)).toMatchObject({
      outcome: 'not in memory',
      reason: 'the level 2 entry at 0x100000038',
    })
  })
})

const long = { cr4: 0x20n, efer: 0xd00n }
const npt = (replace: Partial<Record<1 | 2 | 3 | 4, bigint>> = {}) =>
  tables([
    [1, 3, replace[4] ?? 0x2067n],
    [2, 5, replace[3] ?? 0x3067n],
    [3, 7, replace[2] ?? 0x4067n],
    [4, 9, replace[1] ?? 0xabcd067n],
  ])

describe('nested paging', () => {
  it('walks a 64-bit L1’s tables', () => {
    const walk = walkNpt(npt(), 0x1000n, long, ADDRESS)
    expect(walk).toMatchObject({
      outcome: 'mapped',
      physical: 0xabcd123n,
      pageSize: 4096,
      writable: true,
      executable: true,
    })
    expect(walk.steps.map(({ meaning }) => meaning)).toEqual([
      ...Array(3).fill('table, write, user, accessed, dirty'),
      'page, write, user, accessed, dirty',
    ])
    const large = npt({ 2: 0x4060_0000n | LEAF | 0x1000n | 7n })
    expect(walkNpt(large, 0x1000n, long, ADDRESS)).toMatchObject({ physical: 0x4060_9123n, pageSize: 2 ** 21 })
    expect(walkNpt(npt({ 3: 0x4000_0000n | LEAF | 7n }), 0x1000n, long, ADDRESS)).toMatchObject({ pageSize: 2 ** 30 })
  })

  it('walks five levels where L1 has LA57', () => {
    const memory = tables([
      [5, 1, 0x1007n],
      [1, 3, 0x2007n],
      [2, 5, 0x3007n],
      [3, 7, 0x4007n],
      [4, 9, 0xabcd007n],
    ])
    const walk = walkNpt(memory, 0x5000n, { cr4: 0x1020n, efer: 0xd00n }, (1n << 48n) | ADDRESS)
    expect(walk).toMatchObject({ outcome: 'mapped', physical: 0xabcd123n })
  })

  it('lets only through what is for users', () => {
    expect(walkNpt(npt({ 2: 0x4003n }), 0x1000n, long, ADDRESS)).toMatchObject({
      outcome: 'mapped',
      readable: false,
      writable: false,
      executable: false,
    })
    expect(walkNpt(npt({ 1: 0xabcd005n | (1n << 63n) }), 0x1000n, long, ADDRESS)).toMatchObject({
      readable: true,
      writable: false,
      executable: false,
    })
  })

  it.each<[string, 1 | 2 | 3 | 4, bigint, typeof long?]>([
    ['NX without EFER.NXE', 1, 0xabcd007n | (1n << 63n), { cr4: 0x20n, efer: 0x500n }],
    ['bit 7 of an entry that cannot map a page', 4, 0x2087n],
    ['the page is not aligned to its size', 2, 0x4000_2087n],
    ['an address of more than 36 bits', 3, (1n << 36n) | 7n],
  ])('tells reserved bits: %s', (reason, level, entry, l1 = long) => {
    expect(walkNpt(npt({ [level]: entry }), 0x1000n, l1, ADDRESS, { maxPhyAddr: 36 })).toMatchObject({
      outcome: 'misconfigured',
      reason: `the level ${level} entry: ${reason}`,
    })
  })

  it('walks the tables of a PAE L1', () => {
    const memory = tables([
      [1, 4 + 2, 0x2001n], // at 0x1020: the pointers need only 32-byte alignment
      [2, 7, 0x3007n],
      [3, 9, 0xabcd007n],
    ])
    const pae = { cr4: 0x20n, efer: 0x1000n }
    const address = (2n << 30n) | (7n << 21n) | (9n << 12n) | 0x123n
    expect(walkNpt(memory, 0x1020n, pae, address)).toMatchObject({ outcome: 'mapped', physical: 0xabcd123n })
    expect(walkNpt(memory, 0x1020n, pae, 1n << 32n)).toMatchObject({ outcome: 'address too wide' })
    const wrong = tables([[1, 2, 0x2003n]])
    expect(walkNpt(wrong, 0x1000n, pae, address)).toMatchObject({ outcome: 'misconfigured' })
  })

  it('walks the tables of a 32-bit L1', () => {
    const memory = tables(
      [
        [1, 0x123, 0x2007n],
        [2, 0x56, 0xabcd007n],
        [1, 0x200, 0x0040_0087n | (3n << 13n)],
        [1, 0x201, 0x0060_0087n],
      ],
      4,
    )
    const legacy = { cr4: 0x10n, efer: 0x1000n }
    const small = (0x123n << 22n) | (0x56n << 12n) | 0x789n
    expect(walkNpt(memory, 0x1000n, legacy, small)).toMatchObject({ physical: 0xabcd789n, pageSize: 4096 })
    const large = (0x200n << 22n) | 0x1_2345n
    expect(walkNpt(memory, 0x1000n, legacy, large)).toMatchObject({ physical: 0x3_0041_2345n, pageSize: 2 ** 22 })
    expect(walkNpt(memory, 0x1000n, legacy, 0x201n << 22n)).toMatchObject({ outcome: 'misconfigured' })
    // Without CR4.PSE bit 7 says nothing.
    expect(walkNpt(memory, 0x1000n, { ...legacy, cr4: 0n }, large)).toMatchObject({ outcome: 'not in memory' })
    expect(walkNpt(memory, 0x1000n, legacy, 1n << 32n)).toMatchObject({ outcome: 'address too wide' })
  })
})

it('ends, whatever the tables say', () => {
  const anything = {
    read: (_: number, length: number) => fc.sample(fc.uint8Array({ minLength: length, maxLength: length }), 1)[0]!,
  }
  fc.assert(
    fc.property(
      fc.bigInt(0n, 2n ** 64n - 1n),
      fc.bigInt(0n, 2n ** 64n - 1n),
      fc.bigInt(0n, 2n ** 57n),
      (pointer, bits, address) => {
        for (const walk of [
          walkEpt(anything, pointer, address),
          walkNpt(anything, pointer, { cr4: bits, efer: bits >> 1n }, address),
        ]) {
          expect(walk.steps.length).toBeLessThanOrEqual(5)
        }
      },
    ),
    { numRuns: 300 },
  )
})

it('passes on what is wrong with the memory itself', () => {
  const broken = {
    read() {
      throw new TypeError('gone')
    },
  }
  expect(() => walkEpt(broken, eptp(4), 0n)).toThrow('gone')
})

it('reads an EPT pointer', () => {
  expect(decodeEptp(0x1234_505en)).toEqual({
    memoryType: 'WB',
    levels: 4,
    accessedDirty: true,
    supervisorShadowStack: false,
    root: 0x1234_5000n,
  })
  expect(decodeEptp(0x20n)).toMatchObject({ memoryType: 'UC', levels: 5 })
  expect(decodeEptp(0x3n)).toMatchObject({ memoryType: 'reserved type 3' })
})

it('tells paging modes and where their tables start', () => {
  expect(pagingMode(0x11n, 0x20n, 0xd00n)).toBe('no paging')
  expect(pagingMode(0x8000_0011n, 0n, 0n)).toBe('32-bit')
  expect(pagingMode(0x8000_0011n, 0x20n, 0n)).toBe('PAE')
  expect(pagingMode(0x8000_0011n, 0x20n, 0x400n)).toBe('4-level')
  expect(pagingMode(0x8000_0011n, 0x1020n, 0x500n)).toBe('5-level')
  expect(pageTableRoot(0x1_2345_67ffn, '32-bit')).toBe(0x2345_6000n)
  expect(pageTableRoot(0x1_2345_67ffn, 'PAE')).toBe(0x2345_67e0n)
  expect(pageTableRoot((1n << 63n) | 0x1_2345_67ffn, '4-level')).toBe(0x1_2345_6000n)
})
