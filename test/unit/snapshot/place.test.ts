import { mkdirSync, mkdtempSync, readdirSync, readFileSync, realpathSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeEach, describe, expect, test, vi } from 'vitest'
import { ConfigError, SnapshotError } from '../../../lib/errors.js'
import { replaceDirectory } from '../../../lib/snapshot/place.js'
import { readSnapshot } from '../../../lib/snapshot/read.js'
import { writeSnapshot } from '../../../lib/snapshot/save.js'
import { MIB, PAGE, PlainMemory, scratch, someState } from './machines.js'

const root = scratch()
let directory: string
let memory: PlainMemory
const at = (name: string) => join(directory, name)
const save = (name: string, options = {}) =>
  writeSnapshot(at(name), { state: someState(), memory: memory.source() }, options)

beforeEach(() => {
  directory = mkdtempSync(join(root, 'case-'))
  memory = new PlainMemory([[0, 8 * MIB]])
  memory.fill(0, 0, 8 * MIB)
})

describe('the target of a save', () => {
  test('may be absent, an empty directory, or a snapshot, which is replaced', async () => {
    const first = await save('snap')
    expect((await readSnapshot(at('snap'))).id).toBe(first.id)
    const second = await save('snap')
    expect((await readSnapshot(at('snap'))).id).toBe(second.id)
    mkdirSync(at('empty'))
    await save('empty')
    expect(readdirSync(directory).sort()).toEqual(['empty', 'snap'])
  })

  test('may be a link to one of these: the link stays', async () => {
    await save('real')
    symlinkSync('real', at('link'))
    const { id, directory: landed } = await save('link')
    expect(landed).toBe(realpathSync(at('real')))
    expect((await readSnapshot(at('real'))).id).toBe(id)
  })

  test.each([
    ['a file', () => writeFileSync(at('t'), 'x'), /t: it is no directory; give a new directory/],
    ['a directory of something else', () => put('t', { 'notes.txt': '' }), /it holds "notes.txt", which is no part/],
    ['a manifest of something else', () => put('t', { 'manifest.json': '{"format": "x"}' }), /t: it is no snapshot/],
    [
      'parts without a manifest',
      () => put('t', { memory: '', state: '' }),
      /t: it is no snapshot: it has no manifest.json/,
    ],
    ['below no directory', () => {}, /ENOENT.*; make the directory that is to hold it first/],
  ])('is not replaced where it is %s', async (what, make, message) => {
    make()
    const before = readdirSync(directory)
    const target = what === 'below no directory' ? 'none/t' : 't'
    const progress = vi.fn()
    await expect(save(target, { onProgress: progress })).rejects.toThrow(message)
    await expect(save(target)).rejects.toThrow(SnapshotError)
    expect(progress).not.toHaveBeenCalled()
    expect(readdirSync(directory)).toEqual(before)
  })

  test('is not replaced where someone has put a file of his into the snapshot', async () => {
    await save('snap')
    writeFileSync(at('snap/notes'), 'mine')
    await expect(save('snap')).rejects.toThrow(/it holds "notes"/)
    expect(readFileSync(at('snap/notes'), 'utf8')).toBe('mine')
  })

  test('is replaced even if the old snapshot is damaged', async () => {
    await save('snap')
    writeFileSync(at('snap/state'), '')
    const { id } = await save('snap')
    expect((await readSnapshot(at('snap'))).id).toBe(id)
  })
})

describe('a save that does not end well', () => {
  test('is aborted by its signal, and leaves nothing', async () => {
    const controller = new AbortController()
    const onProgress = vi.fn(() => controller.abort(new Error('enough')))
    await expect(save('snap', { signal: controller.signal, onProgress })).rejects.toThrow('enough')
    expect(onProgress).toHaveBeenCalledTimes(1)
    expect(readdirSync(directory)).toEqual([])
    await expect(save('snap', { signal: AbortSignal.abort() })).rejects.toThrow('aborted')
  })

  test('leaves the old one as it was when its own caller fails', async () => {
    const { id } = await save('snap')
    const onProgress = () => {
      throw new Error('mine')
    }
    await expect(save('snap', { onProgress })).rejects.toThrow('mine')
    expect(readdirSync(directory)).toEqual(['snap'])
    expect((await readSnapshot(at('snap'))).id).toBe(id)
  })

  test('writes nothing that a reader would refuse', async () => {
    const state = { ...someState(), vm: { 'not a name': new Uint8Array(1) } }
    const refused = writeSnapshot(at('snap'), { state, memory: memory.source() })
    await expect(refused).rejects.toThrow(/snapshot: .*manifest.json would be refused: vm.not a name: an object: /)
    expect(readdirSync(directory)).toEqual([])
  })

  test.each([
    ['address', { guestAddress: 1 }, /memory.regions\[0\].guestAddress: 1: no address of a page/],
    ['size', { size: 5 }, /memory.regions\[0\].size: 5: no whole pages/],
    ['views', { chunks: [] }, /memory.regions\[0\].chunks: 0: these are not the 8388608 bytes/],
    [
      'range',
      { data: [{ offset: 8 * MIB, length: PAGE }] },
      /memory.regions\[0\].data: "8388608\+4096": no whole pages/,
    ],
    [
      'order',
      { data: [8, 4].map(page => ({ offset: page * PAGE, length: PAGE })) },
      /memory.regions\[0\].data: "16384\+4096"/,
    ],
  ])('refuses memory of a wrong %s', async (_, change, message) => {
    const source = { regions: [{ ...memory.source().regions[0]!, ...change }] }
    const refused = writeSnapshot(at('snap'), { state: someState(), memory: source })
    await expect(refused).rejects.toThrow(message)
    await expect(refused).rejects.toThrow(ConfigError)
  })
})

describe('a differential', () => {
  const diff = (name: string, parent: { directory: string; id: string }, of = memory) =>
    writeSnapshot(at(name), { state: someState(), memory: of.source([[{ offset: 0, length: PAGE }]]), parent })

  test('does not replace what it is based on, by whatever name', async () => {
    const { id } = await save('base')
    symlinkSync('base', at('link'))
    const parent = { directory: at('base'), id }
    await expect(diff('base', parent)).rejects.toThrow(/based on the snapshot that it would replace/)
    await expect(diff('link', parent)).rejects.toThrow(/based on the snapshot that it would replace/)
    const first = await diff('first', parent)
    const second = { directory: at('first'), id: first.id }
    await expect(diff('base', second)).rejects.toThrow(/based on the snapshot that it would replace/)
  })

  test('is refused on a parent that is another, has other memory, or is none', async () => {
    const { id } = await save('base')
    const other = { directory: at('base'), id: '01234567-0123-0123-0123-0123456789ab' }
    await expect(diff('diff', other)).rejects.toThrow(`base: the snapshot there is ${id}, not ${other.id}; save a full`)
    const smaller = new PlainMemory([[0, 4 * MIB]])
    await expect(diff('diff', { directory: at('base'), id }, smaller)).rejects.toThrow(
      /memory.regions: 0x0\+4194304: those of the parent in .*base are 0x0\+8388608/,
    )
    await expect(diff('diff', { directory: at('none'), id })).rejects.toThrow(/none: there is no such directory/)
    expect(readdirSync(directory)).toEqual(['base'])
  })

  test('names its parent so that both can be moved together', async () => {
    mkdirSync(at('deep'))
    const { id } = await save('deep/base')
    symlinkSync('deep', at('link'))
    await diff('diff', { directory: at('link/base'), id })
    expect(JSON.parse(readFileSync(at('diff/manifest.json'), 'utf8')).parent).toEqual({ id, path: '../deep/base' })
    symlinkSync(at('diff'), at('deep/way'))
    expect((await readSnapshot(at('deep/way'))).chain).toHaveLength(2)
  })
})

describe('what is left over', () => {
  const world = 'deadbeef'
  /** Temporary directories of `at('snap')` as other processes would name them. */
  const leave = async (...owners: [pid: number, start: number, world?: string][]) => {
    let own = ''
    await replaceDirectory(at('snap'), async temporary => {
      own = temporary
    })
    for (const [pid, start, world] of owners) {
      const parts = own.slice(directory.length + 1).split('-')
      parts.splice(-4, 3, String(pid), String(start), world ?? parts.at(-2)!)
      put(parts.join('-'), { memory: 'x' })
    }
  }

  test('of a process that is no more is removed by the next save to the same target, and only that', async () => {
    // Of a pid that cannot be, and of one that was used before.
    await leave([2 ** 22 + 1, 5], [process.pid, 1])
    await save('other')
    expect(readdirSync(directory)).toHaveLength(4)
    await save('snap')
    expect(readdirSync(directory).sort()).toEqual(['other', 'snap'])
  })

  test('of a process that lives is not touched', async () => {
    let end = () => {}
    const slow = replaceDirectory(at('snap'), async temporary => {
      writeFileSync(join(temporary, 'memory'), '')
      await new Promise<void>(resolve => {
        end = resolve
      })
      return readdirSync(temporary)
    })
    await vi.waitUntil(() => readdirSync(directory).length === 1)
    const { id } = await save('snap')
    expect((await readSnapshot(at('snap'))).id).toBe(id)
    expect(readdirSync(directory)).toHaveLength(2)
    end()
    expect(await slow).toEqual(['memory'])
    expect(readdirSync(directory)).toEqual(['snap'])
  })

  test('of another container is removed only when it has been silent for long', async () => {
    await leave([1, 1, world])
    await save('snap')
    expect(readdirSync(directory)).toHaveLength(2)
    const now = Date.now()
    vi.spyOn(Date, 'now').mockReturnValue(now + 11 * 60_000)
    await save('snap')
    vi.restoreAllMocks()
    expect(readdirSync(directory)).toEqual(['snap'])
  })

  test('is nothing after several saves to the same target at once: one of them is there', async () => {
    memory = new PlainMemory([[0, PAGE]])
    for (let round = 0; round < 10; round++) {
      const infos = await Promise.all(Array.from({ length: 6 }, () => save('snap')))
      expect(infos.map(({ id }) => id)).toContain((await readSnapshot(at('snap'))).id)
      expect(readdirSync(directory)).toEqual(['snap'])
    }
  })
})

function put(name: string, files: Readonly<Record<string, string>>): void {
  mkdirSync(at(name))
  for (const [file, content] of Object.entries(files)) writeFileSync(join(at(name), file), content)
}
