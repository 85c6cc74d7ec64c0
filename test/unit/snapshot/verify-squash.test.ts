import { closeSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { SnapshotError } from '../../../lib/errors.js'
import { readSnapshot } from '../../../lib/snapshot/read.js'
import { writeSnapshot } from '../../../lib/snapshot/save.js'
import { squashSnapshot } from '../../../lib/snapshot/squash.js'
import { verifyMemory } from '../../../lib/snapshot/verify.js'
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

describe('verifyMemory', () => {
  beforeAll(() => chainOfThree('v'))

  test('takes a chain that is as it was written, telling how far it is', async () => {
    const seen: number[] = []
    await verifyMemory(at('v2'), { onProgress: (done, total) => seen.push(done / total) })
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
    await expect(verifyMemory(at('v2'))).rejects.toThrow(message)
    await expect(verifyMemory(at('v2'))).rejects.toThrow(SnapshotError)
    flip(path, position, 5)
    await verifyMemory(at('v2'))
  })

  test('finds a page that lies elsewhere', async () => {
    const path = at('v0/memory')
    const whole = readFileSync(path)
    // The three pages of the second chunk, the last of them a page further.
    const moved = Buffer.from(whole)
    moved.copyWithin(MIB + 3 * PAGE, MIB + 2 * PAGE, MIB + 3 * PAGE).fill(0, MIB + 2 * PAGE, MIB + 3 * PAGE)
    writeFileSync(path, moved)
    await expect(verifyMemory(at('v0'))).rejects.toThrow(/guest memory 0x100000-0x1fffff: its checksum/)
    writeFileSync(path, whole)
    await verifyMemory(at('v0'))
  })

  test('passes over what a differential has not', async () => {
    flip(at('v2/memory'), 50 * PAGE)
    await verifyMemory(at('v2'))
    flip(at('v2/memory'), 50 * PAGE)
  })

  test('ends when it is aborted', async () => {
    await expect(verifyMemory(at('v2'), { signal: AbortSignal.abort() })).rejects.toThrow('aborted')
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
    await verifyMemory(at('one'))
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
