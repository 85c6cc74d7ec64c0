import type { BigIntStats, StatsFs } from 'node:fs'
import { constants } from 'node:os'

/** What a request failed with, as an error number of Linux. */
export class Errno extends Error {
  readonly errno: number

  constructor(code: keyof typeof constants.errno) {
    super(code)
    this.errno = constants.errno[code]
  }
}

/** The error number in whatever a file operation threw. */
export function errnoOf(error: unknown): number {
  const { errno } = error as { errno?: unknown }
  return typeof errno === 'number' && errno !== 0 ? Math.abs(errno) : constants.errno.EIO
}

/** A change of attributes; what is undefined stays. A time of `now` is the time of the change. */
export interface Change {
  readonly mode: number | undefined
  readonly uid: number | undefined
  readonly gid: number | undefined
  readonly size: bigint | undefined
  readonly atime: number | 'now' | undefined
  readonly mtime: number | 'now' | undefined
}

export interface DirectoryEntry {
  readonly name: string
  readonly stat: BigIntStats
}

/**
 * One file that a client holds (a fid). Everything but `read` and `write` is done when the call returns, and so is one request before
 * the next: nothing can change between a check and what it was for. All of it throws errors with an `errno`.
 */
export interface NinePFile {
  stat(): BigIntStats
  /** The entry `name` of this directory. */
  walk(name: string): NinePFile
  /** Another fid of the same file, not open. */
  clone(): NinePFile
  open(flags: number): void
  read(offset: bigint, count: number, cancel: AbortSignal): Buffer | Promise<Buffer>
  write(offset: bigint, data: Buffer): number | Promise<number>
  list(): DirectoryEntry[]
  readlink(): string
  change(change: Change): void
  statfs(): StatsFs
  sync(): void
  /** Makes and opens an entry; this becomes it. */
  create(name: string, flags: number, mode: number): void
  mkdir(name: string, mode: number): NinePFile
  symlink(name: string, target: string): NinePFile
  mknod(name: string, mode: number): NinePFile
  link(name: string, file: NinePFile): void
  unlink(name: string, directory: boolean): void
  rename(name: string, to: NinePFile, toName: string): void
  /** Renames or removes what this is itself. */
  move(to: NinePFile, toName: string): void
  remove(): void
  close(): void
}
