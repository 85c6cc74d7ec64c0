import { execFileSync } from 'node:child_process'
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { SnapshotError } from '../../../lib/errors.js'
import { encodeChecksums } from '../../../lib/snapshot/checksum.js'
import { LIMITS } from '../../../lib/snapshot/format.js'
import { readSnapshot } from '../../../lib/snapshot/read.js'
import { type FileToAdd, writeSnapshot } from '../../../lib/snapshot/save.js'
import { MIB, PAGE, PlainMemory, scratch, someState } from './machines.js'

const root = scratch()
const good = join(root, 'good')
let directory: string
const at = (name: string) => join(directory, name)

beforeAll(async () => {
  mkdirSync(good)
  const memory = new PlainMemory([[0, 2 * MIB]])
  memory.fill(0, 0)
  const disk: FileToAdd = {
    name: 'disk0',
    async write(file) {
      await file.resize(3 * MIB)
      await file.put(MIB - 1, Buffer.of(1, 2))
    },
  }
  const { id } = await writeSnapshot(join(good, 'base'), {
    ...{ state: someState(), memory: memory.source(), files: [disk] },
  })
  const data = [[2, 4, 300].map(page => ({ offset: page * PAGE, length: PAGE }))]
  const parent = { directory: join(good, 'base'), id }
  await writeSnapshot(join(good, 'diff'), { state: someState(), memory: memory.source(data), parent })
})

beforeEach(() => {
  directory = mkdtempSync(join(root, 'case-'))
  cpSync(good, directory, { recursive: true })
})

/** Writes the sums anew, so that the reader goes beyond them. */
function seal(name: string): void {
  const sums = encodeChecksums(readFileSync(at(`${name}/manifest.json`)), readFileSync(at(`${name}/state`)))
  writeFileSync(at(`${name}/checksums`), sums)
}

// biome-ignore lint/suspicious/noExplicitAny: a test changes what it likes
function edit(name: string, change: (manifest: any) => void): void {
  const manifest = JSON.parse(readFileSync(at(`${name}/manifest.json`), 'utf8'))
  change(manifest)
  writeFileSync(at(`${name}/manifest.json`), JSON.stringify(manifest))
  seal(name)
}

async function refused(name: string, message: RegExp): Promise<void> {
  const error = await readSnapshot(at(name)).then(
    () => undefined,
    e => e,
  )
  expect(error).toBeInstanceOf(SnapshotError)
  expect(error.message).toMatch(message)
}

test('any flipped bit of the files that are always checked is found', async () => {
  for (const file of ['manifest.json', 'state', 'checksums']) {
    const content = readFileSync(at(`base/${file}`))
    for (let i = 0; i < 300; i++) {
      const position = Math.floor(Math.random() * content.length)
      const changed = Buffer.from(content)
      changed[position]! ^= 1 << (i % 8)
      writeFileSync(at(`base/${file}`), changed)
      await refused('base', /base\/(manifest.json|state|checksums): /)
    }
    writeFileSync(at(`base/${file}`), content)
  }
  await readSnapshot(at('base'))
})

test.each(['manifest.json', 'state', 'checksums', 'memory'])(
  'a %s that is cut short, longer or missing is found',
  async file => {
    const path = at(`base/${file}`)
    const { size } = statSync(path)
    for (const wrong of [0, 1, size - 1, size + 1]) {
      truncateSync(path, wrong)
      await refused('base', /base/)
      await refused('diff', /base/)
      truncateSync(path, size)
      cpSync(join(good, `base/${file}`), path)
    }
    rmSync(path)
    await refused(
      'base',
      file === 'manifest.json' ? /base: it is no snapshot: it has no manifest/ : /base: the file .* is missing/,
    )
  },
)

describe('a place', () => {
  test('where there is nothing, or no snapshot', async () => {
    await refused('none', /none: there is no such directory; give the directory of a snapshot/)
    await refused('none/none', /there is no such directory/)
    await refused('base/state', /base\/state: it is no directory/)
    await refused('base/state/x', /ENOTDIR/)
    mkdirSync(at('empty'))
    await refused('empty', /empty: it is no snapshot: it has no manifest.json/)
    symlinkSync('loop', at('loop'))
    await refused('loop', /ELOOP/)
  })

  test('with things that are no regular files does not hang', async () => {
    for (const file of ['manifest.json', 'state', 'checksums', 'memory']) {
      rmSync(at(`base/${file}`))
      execFileSync('mkfifo', [at(`base/${file}`)])
      await refused('base', /it is no regular file/)
      rmSync(at(`base/${file}`))
      mkdirSync(at(`base/${file}`))
      await refused('base', /it is no regular file/)
      rmSync(at(`base/${file}`), { recursive: true })
      symlinkSync('/dev/zero', at(`base/${file}`))
      await refused('base', /it is no regular file/)
      rmSync(at(`base/${file}`))
      cpSync(join(good, `base/${file}`), at(`base/${file}`))
    }
  })

  test('with files of absurd sizes: nothing of them is read', async () => {
    for (const file of ['manifest.json', 'state', 'checksums']) {
      truncateSync(at(`base/${file}`), 2 ** 40)
      await refused('base', /it has 1099511627776 bytes/)
      rmSync(at(`base/${file}`))
      cpSync(join(good, `base/${file}`), at(`base/${file}`))
    }
  })
})

describe('a manifest', () => {
  // biome-ignore lint/suspicious/noExplicitAny: a test changes what it likes
  test.each<[string, (m: any) => void, RegExp]>([
    ['of something else', m => (m.format = 'x'), /format: "x": this is no snapshot of nested-kvm; give/],
    [
      'of a newer version',
      m => Object.assign(m, { version: 2, tool: 'nested-kvm 9.0.0' }),
      /version: 2: this nested-kvm reads up to version 1; it was written by nested-kvm 9.0.0; read it with a newer/,
    ],
    ['of version 0', m => (m.version = 0), /version: 0: it must lie between 1/],
    [
      'with half a sum of a file',
      m => (m.files[0].checksums.length -= 8),
      /files\[0\].checksums.length: 24: it must be a multiple of 16/,
    ],
    [
      'with a file without sums',
      m => delete m.files[0].checksums,
      /files\[0\].checksums: missing: it must be an object/,
    ],
    ['without an id', m => delete m.id, /id: missing: it must be a UUID/],
    ['with a wrong time', m => (m.created = 'now'), /created: "now": it must be a time/],
    ['without devices', m => delete m.devices, /devices: missing: it must be an object/],
    ['with a list of devices', m => (m.devices = []), /devices: a list: it must be an object/],
    ['without a configuration', m => delete m.config, /config: missing: it is missing/],
    ['with the same vCPU twice', m => (m.vcpus[1].id = 0), /vcpus: a list: two vCPUs have the same id/],
    [
      'with a huge blob',
      m => (m.vm.KVM_GET_CLOCK.length = 2 ** 40),
      /vm.KVM_GET_CLOCK.length: 1099511627776: it must lie/,
    ],
    [
      'with a blob elsewhere',
      m => (m.vm.KVM_GET_CLOCK.offset = 1),
      /stateSize: .*: what lies in state overlaps or leaves a gap/,
    ],
    ['with a fraction', m => (m.vm.KVM_GET_CLOCK.offset = 0.5), /vm.KVM_GET_CLOCK.offset: 0.5: it must be an integer/],
    ['with a name like no ioctl', m => (m.vm.__x = m.vm.KVM_EMPTY), /vm.__x: an object: this is no name of a state/],
    [
      'with absurd memory',
      m => (m.memory.regions[0].size = 2 ** 50),
      /memory.regions\[0\].size: 1125899906842624: it must lie/,
    ],
    [
      'with half a page',
      m => (m.memory.regions[0].size += 5),
      /memory.regions\[0\].size: 2097157: it must be a multiple of 4096/,
    ],
    [
      'with another chunk size',
      m => (m.memory.chunkSize = 4096),
      /memory.chunkSize: 4096: it must lie between 1048576/,
    ],
    [
      'with overlapping regions',
      m => m.memory.regions.push(m.memory.regions[0]),
      /memory.regions\[1\].guestAddress: 0: it must lie/,
    ],
    [
      'with a thousand regions',
      m => (m.memory.regions = Array(2000).fill(0)),
      /memory.regions: a list: it has 2000 elements/,
    ],
    [
      'with memory longer than its regions',
      m => (m.memory.size *= 2),
      /memory.size: 4194304: the regions end at 2097152/,
    ],
    ['with an extent table in a full one', m => (m.memory.regions[0].extents = {}), /only a differential has them/],
    ['that nests deep', m => (m.config = JSON.parse('['.repeat(70) + ']'.repeat(70))), /nested more than 64 deep/],
    ['with millions of values', m => (m.config = Array(LIMITS.jsonValues).fill(0)), /more than 2097152 values/],
    [
      'that is its own parent',
      m => (m.parent = { id: m.id, path: '.' }),
      /memory.regions\[0\].extents: missing: a differential/,
    ],
  ])('%s is refused', async (_, change, message) => {
    edit('base', change)
    await refused('base', message)
  })

  test('that is no JSON, or no text, is refused', async () => {
    writeFileSync(at('base/manifest.json'), '{"format":')
    seal('base')
    await refused('base', /manifest.json: it is not JSON: /)
    writeFileSync(at('base/manifest.json'), Buffer.of(0xff, 0xfe))
    seal('base')
    await refused('base', /manifest.json: it is not UTF-8/)
    writeFileSync(at('base/manifest.json'), 'null')
    seal('base')
    await refused('base', /top level: null: it must be an object/)
  })

  test('keeps a __proto__ among the devices a plain member', async () => {
    const text = readFileSync(at('base/manifest.json'), 'utf8').replace(
      '"devices": {',
      '"devices": { "__proto__": {"x": 1},',
    )
    writeFileSync(at('base/manifest.json'), text)
    seal('base')
    const { devices } = (await readSnapshot(at('base'))).state
    expect(Object.keys(devices)).toContain('__proto__')
    expect('x' in devices).toBe(false)
  })
})

describe('a differential', () => {
  /** Where the table of extents lies in its `state`. */
  const table = () =>
    JSON.parse(readFileSync(at('diff/manifest.json'), 'utf8')).memory.regions[0].extents.offset as number

  test('without its parent names it and where it was looked for', async () => {
    const { id } = await readSnapshot(at('base'))
    renameSync(at('base'), at('away'))
    await refused(
      'diff',
      new RegExp(`diff: its parent ${id} is missing: there is nothing in .*/base; bring the parent back`),
    )
    edit('diff', m => (m.parent.path = at('away')))
    expect((await readSnapshot(at('diff'))).chain).toEqual([at('diff'), at('away')])
  })

  test('of another parent, or of itself, is refused', async () => {
    edit('base', m => (m.id = '01234567-0123-0123-0123-0123456789ab'))
    await refused('diff', /parent.id: .*: the snapshot in .*base is another one, 01234567/)
    edit('diff', m => (m.parent = { id: m.id, path: '../diff' }))
    await refused('diff', /parent.path: ..\/diff: the chain of parents is a circle/)
    edit('diff', m => (m.parent.path = 'a\0b'))
    await refused('diff', /parent.path: "a\\u0000b": it must be a path/)
  })

  test('whose parent has other memory is refused', async () => {
    edit('base', m => (m.memory.regions[0].guestAddress = 4096))
    await refused('diff', /memory.regions: 0x0\+2097152: those of the parent in .*base are 0x1000\+2097152/)
  })

  test('in a chain without end is refused', async () => {
    for (let i = 1; i <= LIMITS.chain; i++) {
      cpSync(at('diff'), at(`diff${i}`), { recursive: true })
      edit(`diff${i}`, m => {
        m.id = m.id.replace(/.{4}$/, String(1000 + i))
        const before = i === 1 ? 'diff' : `diff${i - 1}`
        m.parent = { id: JSON.parse(readFileSync(at(`${before}/manifest.json`), 'utf8')).id, path: `../${before}` }
      })
    }
    expect((await readSnapshot(at(`diff${LIMITS.chain - 2}`))).chain).toHaveLength(LIMITS.chain)
    await refused(`diff${LIMITS.chain - 1}`, /parent: this chain has more than 64 snapshots; squash/)
  })

  test.each<[string, (state: Buffer, at: number) => void, RegExp]>([
    [
      'beyond the region',
      (s, at) => s.writeBigUInt64LE(2n ** 40n, at + 32),
      /number 2: 1099511627776\+4096: it leaves the region/,
    ],
    [
      'beyond all numbers',
      (s, at) => s.writeBigUInt64LE(2n ** 64n - 4096n, at + 8),
      /number 0: 8192\+18446744073709\d+: it leaves/,
    ],
    ['out of order', (s, at) => s.writeBigUInt64LE(0n, at + 16), /number 1: 0\+4096: it is not after the one before/],
    ['that overlap', (s, at) => s.writeBigUInt64LE(3n * 4096n, at + 8), /number 1: 16384\+4096: it is not after/],
    ['that are empty', (s, at) => s.writeBigUInt64LE(0n, at + 8), /number 0: 8192\+0: these are no whole pages/],
    ['of half a page', (s, at) => s.writeBigUInt64LE(100n, at + 8), /number 0: 8192\+100: these are no whole pages/],
    [
      'in fewer chunks than have checksums',
      (s, at) => s.writeBigUInt64LE(40960n, at + 32),
      /checksums of memory.regions\[0\]: 16 bytes, not 8/,
    ],
  ])('with extents %s is refused', async (_, change, message) => {
    const state = readFileSync(at('diff/state'))
    change(state, table())
    writeFileSync(at('diff/state'), state)
    seal('diff')
    await refused('diff', message)
  })
})

test.each<[string, (table: Buffer) => void, RegExp]>([
  [
    'out of order',
    t => t.writeBigUInt64LE(0n, 16),
    /base\/state: checksums of files\[0\]: number 1: chunk 0 is not after/,
  ],
  ['twice', t => t.writeBigUInt64LE(1n, 0), /number 1: chunk 1 is not after/],
  [
    'behind the end',
    t => t.writeBigUInt64LE(3n, 16),
    /number 1: chunk 3 is not after the one before, within 3145728 bytes/,
  ],
  ['beyond all numbers', t => t.writeBigUInt64LE(2n ** 64n - 1n, 16), /number 1: chunk 18446744073709\d+ is not/],
])('sums of a file for chunks %s are refused', async (_, change, message) => {
  const { files } = JSON.parse(readFileSync(at('base/manifest.json'), 'utf8'))
  const { offset, length } = files[0].checksums
  const state = readFileSync(at('base/state'))
  change(state.subarray(offset, offset + length))
  writeFileSync(at('base/state'), state)
  seal('base')
  await refused('base', message)
})
