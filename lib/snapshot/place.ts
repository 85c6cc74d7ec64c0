import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { lstat, mkdir, open, readdir, realpath, rename, rm } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { SnapshotError } from '../errors.js'
import { ADDED_NAME, FILES, FORMAT } from './format.js'
import { isSystemError } from './system-error.js'

/*
 * A snapshot is written into a directory beside its target, `.new`, which then takes the target's name. rename(2) replaces
 * nothing but an empty directory, so an old snapshot is moved aside first, to `.old`. A process that is killed between
 * these two leaves the target's name free: `locate` then finds the old snapshot, and the next save puts it back.
 */

/** How often something is tried again that another save to the same target got in the way of. */
const ATTEMPTS = 10

/** The directory that `directory` names, links resolved; undefined if there is none. */
export async function locate(directory: string): Promise<string | undefined> {
  const path = resolve(directory)
  try {
    return await realpath(path)
  } catch (error) {
    if (!isMissing(error)) throw error
  }
  try {
    const parent = await realpath(dirname(path))
    const old = (await leftovers(join(parent, basename(path)))).find(({ kind }) => kind === 'old')
    return old?.path
  } catch (error) {
    if (isMissing(error)) return undefined
    throw error
  }
}

/** Where a snapshot to be written to `directory` lands: its path with links resolved. Nothing need be there yet. */
export async function resolveTarget(directory: string): Promise<string> {
  const path = resolve(directory)
  try {
    return await realpath(path)
  } catch (error) {
    if (!isMissing(error)) throw error
    return join(await realpath(dirname(path)), basename(path))
  }
}

/**
 * @throws {SnapshotError} `target` is something that must not be replaced: neither absent, nor empty, nor a snapshot with
 * nothing else in it
 */
export async function checkReplaceable(target: string): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      const problem = await obstacle(target)
      if (problem === undefined) return
      const remedy = 'give a new directory, an empty one, or a snapshot that is to be replaced'
      throw new SnapshotError(target, problem, remedy)
    } catch (error) {
      // Another save to the same target has just moved it away from under our eyes: look again.
      if (!isMissing(error) || attempt === ATTEMPTS) throw error
    }
  }
}

/** What speaks against `target` being replaced. */
async function obstacle(target: string): Promise<string | undefined> {
  let names: string[]
  try {
    if (!(await lstat(target)).isDirectory()) return 'it is no directory'
    names = await readdir(target)
  } catch (error) {
    if (isMissing(error)) return undefined
    throw error
  }
  if (names.length === 0) return undefined
  const known: readonly string[] = Object.values(FILES)
  const foreign = names.find(name => !known.includes(name) && !ADDED_NAME.test(name))
  if (foreign !== undefined) return `it holds ${JSON.stringify(foreign)}, which is no part of a snapshot`
  const path = join(target, FILES.manifest)
  const isFile = names.includes(FILES.manifest) && (await lstat(path)).isFile()
  if (isFile && (await start(path)).includes(`"format": ${JSON.stringify(FORMAT)}`)) return undefined
  return `it is no snapshot: it has no ${FILES.manifest} of one`
}

/**
 * Makes `target` the directory that `fill` fills, all at once: whatever happens, there is the old one or the new one
 * whole. If anything fails before, nothing of it is left.
 */
export async function replaceDirectory<T>(target: string, fill: (temporary: string) => Promise<T>): Promise<T> {
  await sweep(target)
  await checkReplaceable(target)
  const temporary = temporaryName(target, 'new')
  // Guest memory holds secrets of the guest.
  await mkdir(temporary, { mode: 0o700 })
  let old: string | undefined
  let result: T
  try {
    result = await fill(temporary)
    await syncDirectory(temporary)
    old = await swap(temporary, target)
  } catch (error) {
    await rm(temporary, { recursive: true, force: true })
    throw error
  }
  await syncDirectory(dirname(target))
  if (old !== undefined) await rm(old, { recursive: true, force: true })
  return result
}

/** Gives `temporary` the name `target`; where something had to be moved away for it, to where. */
async function swap(temporary: string, target: string): Promise<string | undefined> {
  for (let attempt = 1; ; attempt++) {
    try {
      await rename(temporary, target)
      return undefined
    } catch (error) {
      // Another save to the same target may come between: then there is something to move away again.
      if (!isSystemError(error) || !['ENOTEMPTY', 'EEXIST'].includes(error.code) || attempt === ATTEMPTS) throw error
    }
    await checkReplaceable(target)
    const old = temporaryName(target, 'old')
    try {
      await rename(target, old)
    } catch (error) {
      if (isMissing(error)) continue
      throw error
    }
    try {
      await rename(temporary, target)
      return old
    } catch (error) {
      await rename(old, target).catch(() => rm(old, { recursive: true, force: true }))
      if (!isSystemError(error) || !['ENOTEMPTY', 'EEXIST'].includes(error.code)) throw error
    }
  }
}

/** Removes what killed processes left beside `target`, and puts back what one of them had moved away. */
async function sweep(target: string): Promise<void> {
  for (const { path, kind, owner } of await leftovers(target)) {
    if (await lives(path, owner)) continue
    if (kind === 'old') {
      // Where the name is taken again, by a snapshot, this one was replaced by it.
      try {
        await lstat(target)
      } catch (error) {
        if (!isMissing(error)) throw error
        await rename(path, target)
        continue
      }
    }
    await rm(path, { recursive: true, force: true })
  }
}

interface Owner {
  readonly pid: string
  /** Field 22 of /proc/pid/stat: a pid is used again, but not with the same start. */
  readonly start: string
  /** In which a pid means something: this boot of this kernel, and this PID namespace. */
  readonly world: string
}

/** Of another world (a container that shares the directory, before a reboot) only this silence tells the end. */
const SILENCE = 10 * 60_000

async function lives(path: string, owner: Owner): Promise<boolean> {
  if (owner.world === self().world) return owner.start === startOf(owner.pid)
  try {
    const names = await readdir(path)
    const times = await Promise.all(
      [path, ...names.map(name => join(path, name))].map(async p => (await lstat(p)).ctimeMs),
    )
    return Date.now() - Math.max(...times) < SILENCE
  } catch (error) {
    if (isMissing(error)) return true // its owner has just removed it
    throw error
  }
}

const NAME = /^\.nested-kvm-snapshot-([0-9a-f]{16})-(\d+)-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\.(new|old)$/

function temporaryName(target: string, kind: 'new' | 'old'): string {
  const { pid, start, world } = self()
  const random = randomBytes(4).toString('hex')
  return join(dirname(target), `.nested-kvm-snapshot-${tag(target)}-${pid}-${start}-${world}-${random}.${kind}`)
}

/** The temporary directories of `target`, newest first. */
async function leftovers(target: string): Promise<{ path: string; kind: string; owner: Owner; time: number }[]> {
  const found: { path: string; kind: string; owner: Owner; time: number }[] = []
  for (const name of await readdir(dirname(target))) {
    const match = NAME.exec(name)
    if (match?.[1] !== tag(target)) continue
    const path = join(dirname(target), name)
    const [, , pid, start, world, kind] = match as unknown as string[]
    try {
      const { ctimeMs: time } = await lstat(path)
      found.push({ path, kind: kind!, owner: { pid: pid!, start: start!, world: world! }, time })
    } catch (error) {
      if (!isMissing(error)) throw error
    }
  }
  return found.sort((a, b) => b.time - a.time)
}

function tag(target: string): string {
  return createHash('sha256').update(basename(target)).digest('hex').slice(0, 16)
}

let own: Owner | undefined
function self(): Owner {
  if (!own) {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'latin1')
    const world = createHash('sha256')
      .update(`${boot}${readlinkSync('/proc/self/ns/pid')}`)
      .digest('hex')
      .slice(0, 8)
    own = { pid: String(process.pid), start: startOf('self')!, world }
  }
  return own
}

function startOf(pid: string): string | undefined {
  try {
    // The name of the program, in parentheses, may hold anything.
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    // A zombie has ended, even if nobody has asked for its exit code.
    return fields[0] === 'Z' ? undefined : fields[19]
  } catch {
    return undefined
  }
}

async function start(path: string): Promise<string> {
  const file = await open(path)
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(256), 0, 256, 0)
    return buffer.toString('latin1', 0, bytesRead)
  } finally {
    await file.close()
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path)
  try {
    await directory.sync()
  } catch (error) {
    // Some file systems have no such thing for directories.
    if (!isSystemError(error) || !['EINVAL', 'ENOTSUP'].includes(error.code)) throw error
  } finally {
    await directory.close()
  }
}

function isMissing(error: unknown): boolean {
  return isSystemError(error) && error.code === 'ENOENT'
}
