import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { cacheDirectory, cached } from '../../../lib/lab/cache.js'

const before = process.env.XDG_CACHE_HOME
let made = 0
beforeEach(() => {
  process.env.XDG_CACHE_HOME = mkdtempSync(join(tmpdir(), 'cache-'))
  made = 0
})
afterEach(() => {
  rmSync(process.env.XDG_CACHE_HOME!, { recursive: true })
  if (before === undefined) delete process.env.XDG_CACHE_HOME
  else process.env.XDG_CACHE_HOME = before
})

const CONTENT = 'content'
const get = (recipe = '1') =>
  cached('thing', recipe, async directory => {
    made++
    writeFileSync(join(directory, 'file'), CONTENT)
    // Whole seconds, which utimes can set again.
    utimesSync(join(directory, 'file'), 1000, 1000)
    return { made }
  })
const file = () => join(cacheDirectory(), 'thing', 'file')

test('an entry is made once, and again for another recipe', async () => {
  expect((await get()).facts).toEqual({ made: 1 })
  expect((await get()).facts).toEqual({ made: 1 })
  expect((await get('2')).facts).toEqual({ made: 2 })
  expect(readdirSync(cacheDirectory())).toEqual(['thing'])
})

test.each([
  [
    'cut short, its time unchanged',
    () => {
      const { atime, mtime } = statSync(file())
      truncateSync(file(), 3)
      utimesSync(file(), atime, mtime)
    },
  ],
  ['changed', () => writeFileSync(file(), 'CONTENT')],
  ['gone', () => rmSync(file())],
  ['without a manifest', () => rmSync(join(file(), '../manifest.json'))],
  ['with a damaged manifest', () => writeFileSync(join(file(), '../manifest.json'), '{"recipe":"1"')],
])('an entry that is %s is made again', async (_how, damage) => {
  await get()
  damage()
  const { directory } = await get()
  expect(made).toBe(2)
  expect(readFileSync(join(directory, 'file'), 'utf8')).toBe(CONTENT)
})

test('an entry with other times, a copied one, is believed by its hash', async () => {
  await get()
  utimesSync(file(), 1, 1)
  await get()
  expect(made).toBe(1)
})

test('makers at the same time all get a good entry and leave nothing else', async () => {
  const entries = await Promise.all(Array.from({ length: 8 }, () => get()))
  for (const { directory } of entries) expect(readFileSync(join(directory, 'file'), 'utf8')).toBe(CONTENT)
  expect(readdirSync(cacheDirectory())).toEqual(['thing'])
})

test('a failed maker leaves nothing, and what a killed one left is removed', async () => {
  const failing = cached('thing', '1', async directory => {
    writeFileSync(join(directory, 'half'), '')
    throw new Error('no network')
  })
  await expect(failing).rejects.toThrow('no network')
  expect(readdirSync(cacheDirectory())).toEqual([])
  // A process id that no process has: above the kernel's highest.
  writeFileSync(join(cacheDirectory(), '.thing.4194305.abc'), '')
  await get()
  expect(readdirSync(cacheDirectory())).toEqual(['thing'])
})
