import { type ExecFileSyncOptionsWithStringEncoding, execFileSync } from 'node:child_process'
import {
  closeSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { dirname } from 'node:path'

/** A file that is written out and not yet in its place. */
export interface StagedFile {
  commit(): void
  discard(): void
}

/** What the plans do to a host; tests hand in another one. */
export interface HostActions {
  /** Runs a program; what it says, and its exit code (-1 where it could not be run to its end). */
  run(program: string, args: readonly string[]): { readonly code: number; readonly output: string }
  /** Writes a file beside its place, whole and on the disk; nothing is seen of it before `commit`. Throws as `fs` does. */
  stage(path: string, content: string): StagedFile
  /** Writes a value into a file of the kernel's. Throws as `fs` does. */
  set(path: string, value: string): void
}

/** Milliseconds after which a program is ended. */
const TIMEOUT = 60_000
/** Programs of the administrator's, also where a user's PATH lacks them. */
const ADMIN_PATH = '/usr/local/sbin:/usr/sbin:/sbin'

export const hostActions: HostActions = {
  run(program, args) {
    const env = { ...process.env, PATH: `${process.env.PATH ?? ''}:${ADMIN_PATH}`, LC_ALL: 'C' }
    try {
      const options: ExecFileSyncOptionsWithStringEncoding = { env, timeout: TIMEOUT, encoding: 'utf8', stdio: 'pipe' }
      return { code: 0, output: execFileSync(program, [...args], options).trim() }
    } catch (error) {
      const { status, stderr, message } = error as Error & { status?: number | null; stderr?: string }
      return { code: status ?? -1, output: stderr?.trim() || message }
    }
  },
  stage(path, content) {
    // A link or a device in its place is not ours to replace.
    const there = lstatSync(path, { throwIfNoEntry: false })
    if (there && !there.isFile()) throw Object.assign(new Error('is no ordinary file'), { code: 'EEXIST' })
    mkdirSync(dirname(path), { recursive: true })
    const temporary = `${path}.${process.pid}.new`
    const discard = () => rmSync(temporary, { force: true })
    try {
      const fd = openSync(temporary, 'wx', there ? there.mode & 0o777 : 0o644)
      try {
        writeSync(fd, content)
        fsyncSync(fd)
      } finally {
        closeSync(fd)
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') discard()
      throw error
    }
    return { commit: () => renameSync(temporary, path), discard }
  },
  set: (path, value) => writeFileSync(path, value),
}
