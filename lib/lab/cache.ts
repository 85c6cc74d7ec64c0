import { createHash, randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { isAbsolute, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { ConfigError } from '../errors.js'

const MANIFEST = 'manifest.json'

interface FileRecord {
  readonly path: string
  readonly size: number
  readonly mtimeMs: number
  readonly sha256: string
}

/** Beside the files of a cache entry: what it was made by, what its maker said of it, and how to know it is whole. */
interface Manifest<Facts> {
  readonly recipe: string
  readonly facts: Facts
  readonly files: readonly FileRecord[]
}

/** Where fetched assets are kept (XDG Base Directory Specification): `$XDG_CACHE_HOME/nested-kvm` or `~/.cache/nested-kvm`. */
export function cacheDirectory(): string {
  const base = process.env.XDG_CACHE_HOME
  // The specification has relative paths ignored.
  return join(base && isAbsolute(base) ? base : join(homedir(), '.cache'), 'nested-kvm')
}

/** Its files, and what its maker said of it. */
export interface CacheEntry<Facts> {
  readonly directory: string
  readonly facts: Facts
}

/** The cache entry `name`, verified, where that recipe has made one. */
export async function inCache<Facts>(name: string, recipe: string): Promise<CacheEntry<Facts> | undefined> {
  const directory = join(cacheDirectory(), name)
  const facts = await verified<Facts>(directory, recipe)
  return facts === undefined ? undefined : { directory, facts }
}

/**
 * The cache entry `name`, verified, and made first where it is missing, damaged, or was made by another `recipe`.
 *
 * `make` fills an empty directory and returns facts to keep with it. The entry appears whole or not at all; processes that make it at
 * once each get a good one. A file is believed by its size and time; where those differ, by its SHA-256.
 *
 * @throws ConfigError when the cache cannot be written to, and whatever `make` throws.
 */
export async function cached<Facts>(
  name: string,
  recipe: string,
  make: (directory: string) => Promise<Facts>,
): Promise<CacheEntry<Facts>> {
  const cache = cacheDirectory()
  const directory = join(cache, name)
  const known = await inCache<Facts>(name, recipe)
  if (known) return known

  const work = join(cache, `.${name}.${process.pid}.${randomUUID()}`)
  await mkdir(work, { recursive: true }).catch((error: NodeJS.ErrnoException) => {
    const remedy = 'set XDG_CACHE_HOME to a directory that can be written to'
    throw new ConfigError('cache directory', cache, `cannot be written to (${error.code})`, remedy)
  })
  try {
    await removeLeftovers(cache)
    const facts = await make(work)
    const manifest: Manifest<Facts> = { recipe, facts, files: await describe(work) }
    await writeFile(join(work, MANIFEST), JSON.stringify(manifest))
    return { directory, facts: (await putInPlace<Facts>(work, directory, recipe)) ?? facts }
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** Renames `work` to `directory`. Another process may have been first: then its entry stays, and its facts are returned. */
async function putInPlace<Facts>(work: string, directory: string, recipe: string): Promise<Facts | undefined> {
  for (;;) {
    try {
      await rename(work, directory)
      return undefined
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code !== 'ENOTEMPTY' && code !== 'EEXIST' && code !== 'ENOTDIR') throw error
    }
    const theirs = await verified<Facts>(directory, recipe)
    if (theirs !== undefined) return theirs
    // Away with the bad one. Whoever else does so at this moment may be first, which is as good.
    const away = `${work}.old`
    await rename(directory, away).catch(ignoreMissing)
    await rm(away, { recursive: true, force: true })
  }
}

/** The facts of a whole entry, or undefined. */
async function verified<Facts>(directory: string, recipe: string): Promise<Facts | undefined> {
  try {
    const manifest: Manifest<Facts> = JSON.parse(await readFile(join(directory, MANIFEST), 'utf8'))
    if (manifest.recipe !== recipe) return undefined
    for (const file of manifest.files) {
      const path = join(directory, file.path)
      const { size, mtimeMs } = await stat(path)
      if (size !== file.size) return undefined
      if (mtimeMs !== file.mtimeMs && (await sha256(path)) !== file.sha256) return undefined
    }
    return manifest.facts
  } catch {
    return undefined
  }
}

async function describe(directory: string): Promise<FileRecord[]> {
  const records: FileRecord[] = []
  for (const path of (await readdir(directory, { recursive: true })).sort()) {
    const file = join(directory, path)
    const { size, mtimeMs, ...facts } = await stat(file)
    if ((facts.mode & 0o170000) !== 0o100000) continue
    records.push({ path, size, mtimeMs, sha256: await sha256(file) })
  }
  return records
}

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash)
  return hash.digest('hex')
}

/** What processes that were killed while they made an entry have left. */
async function removeLeftovers(cache: string): Promise<void> {
  for (const name of await readdir(cache)) {
    const pid = /^\.[\w-]+\.(\d+)\.[\w-]+(\.old)?$/.exec(name)?.[1]
    if (pid !== undefined && !isAlive(Number(pid))) await rm(join(cache, name), { recursive: true, force: true })
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

function ignoreMissing(error: NodeJS.ErrnoException): void {
  if (error.code !== 'ENOENT') throw error
}
