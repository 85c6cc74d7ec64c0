import { closeSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { beforeAll, describe, expect, test } from 'vitest'
import { SnapshotError } from '../../../lib/errors.js'
import { readSnapshot } from '../../../lib/snapshot/read.js'
import { type FileToAdd, writeSnapshot } from '../../../lib/snapshot/save.js'
import { squashSnapshot } from '../../../lib/snapshot/squash.js'
import { verifySnapshot } from '../../../lib/snapshot/verify.js'
import { expectMemory, MIB, PAGE, PlainMemory, scratch, someState } from './machines.js'

const directory = scratch()
const at = (name: string) => join(directory, name)

/** A chain of three in `prefix`0 to `prefix`2; what its memory is at the end. */
async function chainOfThree(prefix: string): Promise<{ memory: Buffer[]; id: string }> {
  const memory = new PlainMemory([
    [0, 5 * MIB],
    [2 ** 32, MIB + PAGE],
  ])
  memory.fill(0, 0, MIB + 3 * PAGE)
  memory.fill(1, MIB)
  let { id } = await writeSnapshot(at(`${prefix}0`), { state: someState(), memory: memory.source() })
  for (const i of [1, 2]) {
    const pages = [i, 100 * i, 256, 300 + i]
    for (const page of pages) memory.fill(0, page * PAGE)
    memory.regions[0]!.bytes.fill(0, 0, PAGE)
    const written = [[0, ...pages].map(page => ({ offset: page * PAGE, length: PAGE })), []]
    const parent = { directory: at(`${prefix}${i - 1}`), id }
    id = (await writeSnapshot(at(`${prefix}${i}`), { state: someState(i), memory: memory.source(written), parent })).id
  }
  return { memory: memory.copy(), id }
}

function flip(path: string, position: number, bit = 0): void {
  const byte = readFileSync(path)[position]!
  const fd = openSync(path, 'r+')
  writeSync(fd, Buffer.of(byte ^ (1 << bit)), 0, 1, position)
  closeSync(fd)
}

describe('verifySnapshot', () => {
  beforeAll(() => chainOfThree('v'))

  test('takes a chain that is as it was written, telling how far it is', async () => {
    const seen: number[] = []
    await verifySnapshot(at('v2'), { onProgress: (done, total) => seen.push(done / total) })
    expect(seen.at(-1)).toBe(1)
    expect(seen).toEqual([...seen].sort((a, b) => a - b))
  })

  test.each([
    ['v0', 3, 'data', /v0\/memory: guest memory 0x0-0xfffff: its checksum is [0-9a-f]{16}, not [0-9a-f]{16}; /],
    ['v0', 5 * MIB - 1, 'a hole', /v0\/memory: guest memory 0x400000-0x4fffff: /],
    ['v0', 5 * MIB + MIB + 100, 'the last, short chunk', /v0\/memory: guest memory 0x100100000-0x100100fff: /],
    ['v1', 300 * PAGE + PAGE + 4, 'a differential', /v1\/memory: guest memory 0x100000-0x1fffff: /],
    ['v2', 9, 'a page that became zero', /v2\/memory: guest memory 0x0-0xfffff: /],
  ])('finds a bit flipped in the memory of %s at %i, in %s', async (name, position, _, message) => {
    const path = at(`${name}/memory`)
    flip(path, position, 5)
    await expect(verifySnapshot(at('v2'))).rejects.toThrow(message)
    await expect(verifySnapshot(at('v2'))).rejects.toThrow(SnapshotError)
    flip(path, position, 5)
    await verifySnapshot(at('v2'))
  })

  test('finds a page that lies elsewhere', async () => {
    const path = at('v0/memory')
    const whole = readFileSync(path)
    // The three pages of the second chunk, the last of them a page further.
    const moved = Buffer.from(whole)
    moved.copyWithin(MIB + 3 * PAGE, MIB + 2 * PAGE, MIB + 3 * PAGE).fill(0, MIB + 2 * PAGE, MIB + 3 * PAGE)
    writeFileSync(path, moved)
    await expect(verifySnapshot(at('v0'))).rejects.toThrow(/guest memory 0x100000-0x1fffff: its checksum/)
    writeFileSync(path, whole)
    await verifySnapshot(at('v0'))
  })

  test('passes over what a differential has not', async () => {
    flip(at('v2/memory'), 50 * PAGE)
    await verifySnapshot(at('v2'))
    flip(at('v2/memory'), 50 * PAGE)
  })

  test('ends when it is aborted', async () => {
    await expect(verifySnapshot(at('v2'), { signal: AbortSignal.abort() })).rejects.toThrow('aborted')
  })
})

/** Of a disk: a header, and something far behind it. */
const DISK = 5 * MIB + 512
const disk: FileToAdd = {
  name: 'disk0',
  async write(file) {
    await file.resize(DISK)
    await file.put(0, Buffer.alloc(512, 'header'))
    await file.put(3 * MIB - 512, Buffer.alloc(1024, 7))
    await file.put(5 * MIB, Buffer.alloc(512, 8))
  },
}

async function withDisk(name: string): Promise<void> {
  const memory = new PlainMemory([[0, MIB]])
  memory.fill(0, 0)
  const parent = at(`${name}-parent`)
  const { id } = await writeSnapshot(parent, { state: someState(), memory: memory.source(), files: [disk] })
  const differential = { state: someState(), memory: memory.source([[{ offset: 0, length: PAGE }]]), files: [disk] }
  await writeSnapshot(at(name), { ...differential, parent: { directory: parent, id } })
}

describe('files of disks', () => {
  test('are written with holes, and checked, with progress up to all of it', async () => {
    await withDisk('f')
    const bytes = readFileSync(at('f/disk0'))
    expect(bytes.length).toBe(DISK)
    expect([bytes.toString('latin1', 0, 12), bytes[3 * MIB - 513], bytes[3 * MIB - 512]]).toEqual([
      'headerheader',
      0,
      7,
    ])
    expect([bytes[3 * MIB + 511], bytes[3 * MIB + 512], bytes[5 * MIB - 1], bytes[5 * MIB]]).toEqual([7, 0, 0, 8])
    expect(statSync(at('f/disk0')).blocks * 512).toBeLessThanOrEqual(5 * PAGE)
    const seen: number[] = []
    await verifySnapshot(at('f'), { onProgress: (done, total) => seen.push(done / total) })
    expect(seen.at(-1)).toBe(1)
    expect(seen).toEqual([...seen].sort((a, b) => a - b))
  })

  test.each([
    [5, 'the header', /f\/disk0: bytes 0-1048575: its checksum is [0-9a-f]{16}, not [0-9a-f]{16}; /],
    [3 * MIB + 3, 'the second half of what was written at once', /f\/disk0: bytes 3145728-4194303: /],
    [4 * MIB + 5, 'a chunk that is a hole', /f\/disk0: bytes 4194304-5242879: its checksum is \w+, not 0{16}; /],
    [DISK - 1, 'the last byte', /f\/disk0: bytes 5242880-5243391: /],
  ])(
    'a bit flipped at %i, in %s, is found by a check and by a squash, but does not hinder reading',
    async (position, _, message) => {
      flip(at('f/disk0'), position, 3)
      await expect(verifySnapshot(at('f'))).rejects.toThrow(message)
      await expect(squashSnapshot(at('f'), at('f-whole'))).rejects.toThrow(message)
      expect((await readSnapshot(at('f'))).files).toEqual([{ name: 'disk0', path: at('f/disk0') }])
      flip(at('f/disk0'), position, 3)
      await verifySnapshot(at('f'))
    },
  )

  test('what became zero is found', async () => {
    const whole = readFileSync(at('f/disk0'))
    writeFileSync(at('f/disk0'), Buffer.from(whole).fill(0, 5 * MIB))
    await expect(verifySnapshot(at('f'))).rejects.toThrow(/bytes 5242880-5243391: its checksum is 0{16}, not/)
    writeFileSync(at('f/disk0'), whole)
  })

  test('those of a parent are of no use to what is based on it', async () => {
    flip(at('f-parent/disk0'), 5)
    await verifySnapshot(at('f'))
    await expect(verifySnapshot(at('f-parent'))).rejects.toThrow(/f-parent\/disk0: bytes 0-1048575/)
  })

  test('a squash keeps them, with their sums', async () => {
    await squashSnapshot(at('f'), at('squashed'))
    await verifySnapshot(at('squashed'))
    expect(readFileSync(at('squashed/disk0')).equals(readFileSync(at('f/disk0')))).toBe(true)
    flip(at('squashed/disk0'), 1)
    await expect(verifySnapshot(at('squashed'))).rejects.toThrow(/bytes 0-1048575/)
  })

  test('that are not written in order, or behind their end, are refused', async () => {
    const memory = new PlainMemory([[0, MIB]])
    const save = (write: FileToAdd['write']) => {
      const contents = { state: someState(), memory: memory.source(), files: [{ name: 'disk0', write }] }
      return writeSnapshot(at('bad'), contents)
    }
    await expect(
      save(async file => {
        await file.resize(2 * MIB)
        await file.put(MIB, Buffer.of(1))
        await file.put(0, Buffer.of(1))
      }),
    ).rejects.toThrow(/before others/)
    await expect(save(file => file.put(0, Buffer.of(1)))).rejects.toThrow(/behind the end/)
    expect(statSync(at('bad'), { throwIfNoEntry: false })).toBeUndefined()
  })

  test('whatever is written in whatever pieces, it is there, and so is its sum', async () => {
    const piece = fc.record({
      gap: fc.oneof(fc.nat(2000), fc.nat(2 * MIB)),
      length: fc.oneof(fc.nat(600), fc.nat(MIB)),
      byte: fc.nat(255),
    })
    const memory = new PlainMemory([[0, PAGE]])
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 6 }), fc.nat(5000), async (pieces, rest) => {
        const size = pieces.reduce((sum, { gap, length }) => sum + gap + length, 0) + rest
        const expected = Buffer.alloc(size)
        const write: FileToAdd['write'] = async file => {
          await file.resize(size)
          let at = 0
          for (const { gap, length, byte } of pieces) {
            expected.fill(byte, at + gap, at + gap + length)
            await file.put(at + gap, Buffer.alloc(length, byte))
            at += gap + length
          }
        }
        const files = [{ name: 'disk7', write }]
        await writeSnapshot(at('any'), { state: someState(), memory: memory.source(), files })
        expect(readFileSync(at('any/disk7')).equals(expected)).toBe(true)
        await verifySnapshot(at('any'))
        if (size === 0) return
        flip(at('any/disk7'), size >> 1, 2)
        await expect(verifySnapshot(at('any'))).rejects.toThrow(/any\/disk7: bytes/)
      }),
      { numRuns: 30 },
    )
  })
})

describe('squashSnapshot', () => {
  test('makes one of a chain, the same in content and id', async () => {
    const { memory, id } = await chainOfThree('s')
    const seen: number[] = []
    const info = await squashSnapshot(at('s2'), at('one'), { onProgress: (done, total) => seen.push(done / total) })
    expect(info).toMatchObject({ id, directory: at('one') })
    expect(seen.at(-1)).toBe(1)
    expect(seen).toEqual([...seen].sort((a, b) => a - b))
    const [one, chain] = [await readSnapshot(at('one')), await readSnapshot(at('s2'))]
    expect(one.chain).toEqual([at('one')])
    expect(one.state).toEqual(chain.state)
    expect([one.id, one.created]).toEqual([chain.id, chain.created])
    expectMemory(one, memory)
    await verifySnapshot(at('one'))
    // Holes stay holes: 256 + 3 + 1 pages of the first, less page 0, and what was added.
    expect(statSync(at('one/memory')).blocks * 512).toBeLessThan(270 * PAGE)
  })

  test('may take the place of what it was made of, and what is based on that stays valid', async () => {
    const { memory } = await chainOfThree('p')
    await squashSnapshot(at('p1'), at('p1'))
    const snapshot = await readSnapshot(at('p2'))
    expect(snapshot.chain).toEqual([at('p2'), at('p1')])
    expectMemory(snapshot, memory)
  })

  test('takes the place of none that it is based on', async () => {
    await chainOfThree('b')
    await expect(squashSnapshot(at('b2'), at('b0'))).rejects.toThrow(/based on the one that this would replace/)
    expect((await readSnapshot(at('b2'))).chain).toHaveLength(3)
  })

  test('gives no new checksum to damaged memory', async () => {
    await chainOfThree('d')
    flip(at('d0/memory'), 20 * PAGE)
    await expect(squashSnapshot(at('d2'), at('damaged'))).rejects.toThrow(
      /d0\/memory: guest memory 0x0-0xfffff: its checksum/,
    )
    expect(statSync(at('damaged'), { throwIfNoEntry: false })).toBeUndefined()
  })
})
