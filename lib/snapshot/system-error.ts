import { SnapshotError } from '../errors.js'

const remedies: Readonly<Record<string, string>> = {
  ENOSPC: 'free some space on that file system, or save elsewhere',
  EDQUOT: 'free some of your quota, or save elsewhere',
  EFBIG: 'raise the limit on the size of files (ulimit -f), or save to a file system that takes larger ones',
  EACCES: 'give this user the right to, or use another directory',
  EPERM: 'give this user the right to, or use another directory',
  EROFS: 'use a directory that can be written',
  EBUSY: 'a directory that is mounted upon cannot be replaced: give one inside it',
  EXDEV: 'a directory that is mounted upon cannot be replaced: give one inside it',
  ENAMETOOLONG: 'give a shorter path',
  ENOTDIR: 'give a path of directories',
  ENOENT: 'make the directory that is to hold it first',
  EMFILE: 'raise the limit on open files (ulimit -n)',
  EIO: 'the disk has a fault: use another one',
}

/** An error of a system call, which Node gives a `code` as `ENOSPC` and a `syscall`. */
export function isSystemError(error: unknown): error is NodeJS.ErrnoException & { code: string } {
  return error instanceof Error && 'syscall' in error && 'code' in error && typeof error.code === 'string'
}

/** A `SnapshotError` for the error of a system call; anything else stays what it is. */
export function systemProblem(path: string, doing: string, error: unknown): unknown {
  if (!isSystemError(error)) return error
  const remedy = remedies[error.code] ?? 'see what the system says of it'
  return new SnapshotError(path, `${doing}: ${error.message}`, remedy, { cause: error })
}
