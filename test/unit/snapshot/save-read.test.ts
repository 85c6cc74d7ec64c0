import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { readSnapshot } from '../../../lib/snapshot/read.js'
import { writeSnapshot } from '../../../lib/snapshot/save.js'
import { expectMemory, MIB, PAGE, PlainMemory, scratch, someState } from './machines.js'

const directory = scratch()
const at = (name: string) => join(directory, name)

/** Two regions with data at their ends, at the seams of views and chunks, and pages with a single byte in them. */
function someMemory(view?: number): PlainMemory {
  const memory = new PlainMemory(
    [
      [0, 3 * MIB],
      [2 ** 32, 2 * MIB + 3 * PAGE],
    ],
    view,
  )
  memory.fill(0, 0)
  memory.fill(0, MIB - PAGE, 3 * PAGE)
  memory.regions[0]!.bytes[2 * MIB + 5 * PAGE - 1] = 1
  memory.fill(0, 3 * MIB - PAGE)
  memory.fill(1, 64 * PAGE, 40 * PAGE)
  memory.fill(1, 2 * MIB, 3 * PAGE)
  return memory
}

describe('a full snapshot', () => {
  test.each([undefined, MIB, 5 * PAGE])('gives back what was saved, from views of %s bytes', async view => {
    const memory = someMemory(view)
    const info = await writeSnapshot(at('full'), { state: someState(), memory: memory.source() })
    const snapshot = await readSnapshot(at('full'))
    expect(snapshot.state).toEqual(someState())
    expect(snapshot.id).toBe(info.id)
    expect(snapshot.parent).toBeUndefined()
    expect(snapshot.chain).toEqual([at('full')])
    expect(snapshot.memory.regions.map(({ guestAddress, size }) => [guestAddress, size])).toEqual([
      [0, 3 * MIB],
      [2 ** 32, 2 * MIB + 3 * PAGE],
    ])
    expectMemory(snapshot, memory.copy())
    expect(Date.now() - Date.parse(snapshot.created)).toBeLessThan(60_000)
  })

  test('has no block on disk for a zero page', async () => {
    const memory = new PlainMemory([[0, 64 * MIB]])
    for (let page = 0; page < 10; page++) memory.fill(0, page * 3 * MIB)
    const { bytes, pages } = await writeSnapshot(at('sparse'), { state: someState(), memory: memory.source() })
    const { size, blocks } = statSync(at('sparse/memory'))
    expect(size).toBe(64 * MIB)
    expect(blocks * 512).toBeGreaterThanOrEqual(10 * PAGE)
    expect(blocks * 512).toBeLessThanOrEqual(12 * PAGE) // a file system may need a block for itself
    expect(pages).toBe((64 * MIB) / PAGE)
    const others = ['manifest.json', 'state', 'checksums'].reduce((sum, f) => sum + statSync(at(`sparse/${f}`)).size, 0)
    expect(bytes).toBe(10 * PAGE + others)
  })

  test('does not look at what is said to be zero', async () => {
    const memory = new PlainMemory([[0, 4 * MIB]])
    memory.fill(0, 0, 4 * MIB)
    const whole = memory.copy()[0]!
    const data = [
      { offset: PAGE, length: 2 * PAGE },
      { offset: 3 * PAGE, length: PAGE },
      { offset: 2 * MIB - PAGE, length: 2 * PAGE },
    ]
    await writeSnapshot(at('part'), { state: someState(), memory: memory.source([data]) })
    const expected = Buffer.alloc(4 * MIB)
    for (const { offset, length } of data) whole.copy(expected, offset, offset, offset + length)
    expectMemory(await readSnapshot(at('part')), [expected])
  })

  test('has sums that sha256sum takes, and a manifest for people', async () => {
    await writeSnapshot(at('sums'), { state: someState(), memory: someMemory().source() })
    const output = execFileSync('sha256sum', ['-c', 'checksums'], { cwd: at('sums'), encoding: 'utf8' })
    expect(output).toBe('manifest.json: OK\nstate: OK\n')
    expect(readdirSync(at('sums')).sort()).toEqual(['checksums', 'manifest.json', 'memory', 'state'])
    const text = readFileSync(at('sums/manifest.json'), 'utf8')
    expect(text).toMatch(/^\{\n {2}"format": "nested-kvm snapshot",\n {2}"version": 1,\n/)
    expect(JSON.parse(text).vcpus[1].state.KVM_GET_REGS).toEqual({ offset: 48 + 520 + 144 + 8, length: 144 })
  })
})

describe('a differential snapshot', () => {
  test('has the pages written since its parent, and no others', async () => {
    const memory = someMemory()
    const base = await writeSnapshot(at('base'), { state: someState(), memory: memory.source() })
    memory.fill(0, 4 * PAGE, 2 * PAGE)
    memory.regions[0]!.bytes.fill(0, MIB - PAGE, MIB) // was written before, and is zero now
    memory.fill(1, 2 * MIB + 2 * PAGE)
    const written = [
      [
        { offset: 4 * PAGE, length: PAGE },
        { offset: 5 * PAGE, length: PAGE },
        { offset: MIB - PAGE, length: PAGE },
      ],
      [{ offset: 2 * MIB + 2 * PAGE, length: PAGE }],
    ]
    const info = await writeSnapshot(at('diff'), {
      state: someState(9),
      memory: memory.source(written),
      parent: { directory: at('base'), id: base.id },
    })
    expect(info.pages).toBe(4)
    expect(statSync(at('diff/memory')).blocks * 512).toBeLessThanOrEqual(4 * PAGE)
    const snapshot = await readSnapshot(at('diff'))
    expect(snapshot.state).toEqual(someState(9))
    expect(snapshot.parent).toEqual({ id: base.id, directory: at('base') })
    expect(snapshot.chain).toEqual([at('diff'), at('base')])
    expectMemory(snapshot, memory.copy())
    expect(JSON.parse(readFileSync(at('diff/manifest.json'), 'utf8')).parent).toEqual({ id: base.id, path: '../base' })
  })

  test('may be based on another one, and so on', async () => {
    const memory = someMemory()
    let parent = { directory: at('chain0'), id: '' }
    parent.id = (await writeSnapshot(parent.directory, { state: someState(), memory: memory.source() })).id
    for (let i = 1; i <= 12; i++) {
      // Extents that overlap those of the parents in many ways.
      const written = [0, 1].map(region => {
        const pages = [...new Set(Array.from({ length: 30 }, () => Math.floor(Math.random() * 500)))].sort(
          (a, b) => a - b,
        )
        for (const page of pages) memory.fill(region, page * PAGE)
        return pages.map(page => ({ offset: page * PAGE, length: PAGE }))
      })
      const next = at(`chain${i}`)
      const { id } = await writeSnapshot(next, { state: someState(), memory: memory.source(written), parent })
      parent = { directory: next, id }
    }
    const snapshot = await readSnapshot(parent.directory)
    expect(snapshot.chain).toHaveLength(13)
    expectMemory(snapshot, memory.copy())
    for (const { size, extents } of snapshot.memory.regions) {
      let end = 0
      for (const { offset, length } of extents) {
        expect(offset).toBe(end)
        end += length
      }
      expect(end).toBe(size)
    }
  })
})
