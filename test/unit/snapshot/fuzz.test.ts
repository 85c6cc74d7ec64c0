import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, expect, test } from 'vitest'
import { SnapshotError } from '../../../lib/errors.js'
import { checkExtentCount, checkParent, placeMemory } from '../../../lib/snapshot/chain.js'
import { encodeChecksums } from '../../../lib/snapshot/checksum.js'
import type * as f from '../../../lib/snapshot/format.js'
import { blobsOf, type Layer, readLayer, readManifest } from '../../../lib/snapshot/layer.js'
import { type FileToAdd, writeSnapshot } from '../../../lib/snapshot/save.js'
import { MIB, PAGE, PlainMemory, scratch, someState } from './machines.js'

interface Files {
  manifest: Buffer
  state: Buffer
  checksums: Buffer
}

let base: Files
let diff: Files

beforeAll(async () => {
  const directory = scratch()
  const files = (name: string): Files => ({
    manifest: readFileSync(join(directory, name, 'manifest.json')),
    state: readFileSync(join(directory, name, 'state')),
    checksums: readFileSync(join(directory, name, 'checksums')),
  })
  const memory = new PlainMemory([
    [0, 2 * MIB],
    [2 ** 32, MIB],
  ])
  memory.fill(0, 0)
  const write: FileToAdd['write'] = async file => {
    await file.resize(3 * MIB)
    await file.put(MIB - 1, Buffer.of(1, 2))
  }
  const disks = [{ name: 'disk0', write }]
  const contents = { state: someState(), memory: memory.source(), files: disks }
  const { id } = await writeSnapshot(join(directory, 'base'), contents)
  const data = [[1, 4, 9, 300].map(page => ({ offset: page * PAGE, length: PAGE })), [{ offset: PAGE, length: PAGE }]]
  const parent = { directory: join(directory, 'base'), id }
  await writeSnapshot(join(directory, 'diff'), { state: someState(2), memory: memory.source(data), parent })
  base = files('base')
  diff = files('diff')
})

const loaded = new Map<Files, Layer>()

/** What was not changed is read once. */
function load(name: string, files: Files): Layer {
  const { manifest, state, checksums } = files
  const layer = loaded.get(files) ?? readLayer(name, readManifest(name, manifest, checksums), state, checksums)
  if (files === base || files === diff) loaded.set(files, layer)
  return layer
}

/** The reader behind its file access. What it gives has to hold what it promises. */
function read(child: Files, parent: Files): 'valid' {
  const chain = [load('diff', child)]
  if (chain[0]!.manifest.parent) {
    chain.push(load('base', parent))
    checkParent(chain[0]!, chain[1]!)
  }
  checkExtentCount('diff', 100)
  for (const { manifest, state } of chain) {
    for (const vcpu of manifest.vcpus) for (const blob of Object.values(blobsOf(state, vcpu.state))) expectBytes(blob)
    for (const blob of Object.values(blobsOf(state, manifest.vm))) expectBytes(blob)
  }
  for (const [i, { size, extents }] of placeMemory(chain).entries()) {
    let end = 0
    for (const { offset, length, file, fileOffset } of extents) {
      const layer = chain.find(({ directory }) => `${directory}/memory` === file)!
      const inFile = fileOffset >= 0 && fileOffset + length <= layer.manifest.memory.size
      if (offset !== end || length <= 0 || offset % PAGE || length % PAGE || !inFile) throw new Error(`region ${i}`)
      end += length
    }
    if (end !== size) throw new Error(`region ${i} is not covered`)
  }
  return 'valid'
}

function expectBytes(blob: Uint8Array): void {
  if (!(blob instanceof Uint8Array)) throw new Error('no bytes')
}

/** As mulberry32: the same every time, so that what is found can be looked for again. */
function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const VALUES: readonly unknown[] = [
  ...[0, -1, 1, 0.5, 7, 4095, 4096, 8192, 2 ** 20, 2 ** 21, 2 ** 31, 2 ** 32, 2 ** 44, 2 ** 52, 2 ** 53, 1e300, -4096],
  ...[
    null,
    true,
    '',
    'x',
    '\0',
    '../base',
    '/',
    '..',
    [],
    {},
    [[]],
    { offset: 0, length: 0 },
    { offset: 0, length: 4096 },
  ],
  ...['__proto__', Array(100).fill({}), 'x'.repeat(5000)],
]

/** Changes one member of the manifest, whichever: another value, gone, doubled, or that of another member. */
function mutateJson(bytes: Buffer, next: () => number): Buffer {
  const top = JSON.parse(bytes.toString())
  const places: [Record<string, unknown>, string][] = []
  const walk = (value: unknown) => {
    if (typeof value !== 'object' || value === null) return
    for (const key of Object.keys(value)) {
      places.push([value as Record<string, unknown>, key])
      walk((value as Record<string, unknown>)[key])
    }
  }
  walk(top)
  const pick = () => places[Math.floor(next() * places.length)]!
  for (let i = 0; i <= next() * 2; i++) {
    const [object, key] = pick()
    const [other, otherKey] = pick()
    const way = next()
    if (way < 0.4) object[key] = VALUES[Math.floor(next() * VALUES.length)]
    else if (way < 0.6 && typeof object[key] === 'number')
      object[key] = (object[key] as number) + Math.round(next() * 16 - 8)
    else if (way < 0.7) delete object[key]
    else if (way < 0.8)
      object[['', 'x', '\0', '/', '__proto__', 'extents', 'parent'][Math.floor(next() * 7)]!] = object[key]
    else if (way < 0.9 && Array.isArray(object)) object.push(object[Number(key)])
    else object[key] = structuredClone(other[otherKey])
  }
  try {
    return Buffer.from(JSON.stringify(top))
  } catch {
    return bytes // a member that holds itself
  }
}

function mutateBytes(bytes: Buffer, next: () => number): Buffer {
  const at = Math.floor(next() * bytes.length)
  const way = next()
  if (way < 0.2) return bytes.subarray(0, at)
  if (way < 0.3) return Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.floor(next() * bytes.length))])
  const changed = Buffer.from(bytes)
  if (way < 0.6) changed[at]! ^= 1 << Math.floor(next() * 8)
  else if (way < 0.8) changed[at] = [0, 0xff, 0x22, 0x5b, 0x7b, 0x2c, 0x5c, 0x39][Math.floor(next() * 8)]!
  else changed.writeUInt32LE(Math.floor(next() * 2 ** 32), Math.min(at, Math.max(0, bytes.length - 4)))
  return changed
}

/** One snapshot that something was done to, mostly behind the sums, which are made anew then. */
function mutate(files: Files, next: () => number): Files {
  const { manifest, state } = files
  const what = next()
  if (what < 0.03) return { ...files, checksums: mutateBytes(files.checksums, next) }
  if (what < 0.06) return { ...files, manifest: mutateBytes(manifest, next), state: mutateBytes(state, next) }
  const changed = { manifest, state }
  if (what < 0.55) changed.manifest = mutateJson(manifest, next)
  else if (what < 0.75) changed.manifest = mutateBytes(manifest, next)
  else changed.state = mutateTables(files, next)
  return { ...changed, checksums: encodeChecksums(changed.manifest, changed.state) }
}

/** In `state` only the tables of memory mean something to the reader. */
function mutateTables({ manifest, state }: Files, next: () => number): Buffer {
  if (next() < 0.2) return mutateBytes(state, next)
  const changed = Buffer.from(state)
  const { memory, files } = JSON.parse(manifest.toString()) as f.Manifest
  const tables = [...memory.regions.map(({ extents }) => extents), ...files.map(({ checksums }) => checksums)]
  const { offset, length } = tables[Math.floor(next() * tables.length)] ?? { offset: 0, length: 16 }
  const at = offset + 8 * Math.floor((next() * length) / 8)
  const pages = [0, 1, 2, 3, 5, 255, 256, 257, 300, 511, 512, 2 ** 40, 2 ** 51 - 1][Math.floor(next() * 13)]!
  changed.writeBigUInt64LE(BigInt(pages) * 4096n + (next() < 0.1 ? 1n : 0n), at)
  return changed
}

test('100,000 mutated snapshots are each valid, or refused by a SnapshotError', { timeout: 300_000 }, () => {
  const next = random(0x5eed)
  const outcomes = { valid: 0, refused: 0 }
  const problems = new Set<string>()
  const before = process.memoryUsage().rss
  for (let i = 0; i < 100_000; i++) {
    const ofChild = next() < 0.7
    const files = mutate(ofChild ? diff : base, next)
    try {
      if (ofChild) read(files, base)
      else if (next() < 0.5) read(files, base)
      else read(diff, files)
      outcomes.valid++
    } catch (error) {
      if (!(error instanceof SnapshotError)) throw new Error(`mutation ${i}: ${error}`, { cause: error })
      if (error.message.length > 2000) throw new Error(`mutation ${i}: a message without end`, { cause: error })
      problems.add(error.problem.replace(/\d+|"[^"]*"|[0-9a-f]{8,}/g, '#').slice(0, 60))
      outcomes.refused++
    }
  }
  // Were it nearly all the same, the mutations would stop at the door.
  expect(problems.size).toBeGreaterThan(100)
  expect(outcomes.valid).toBeGreaterThan(1000)
  expect(outcomes.refused).toBeGreaterThan(50_000)
  expect(process.memoryUsage().rss - before).toBeLessThan(2 ** 29)
})
