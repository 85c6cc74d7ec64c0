import * as fs from 'node:fs'
import { type Change, type DirectoryEntry, Errno, type NinePFile } from './file.js'

const { O_ACCMODE, O_TRUNC, O_EXCL, O_CREAT, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = {
  ...fs.constants,
  O_ACCMODE: 3,
}
const S_IFMT = 0o170000

/** A directory of this machine that is shown, and the fids in it. */
export interface HostTree {
  readonly root: string
  readonly writable: boolean
  /** Every fid: what is renamed is renamed for all of them. */
  readonly files: Set<HostFile>
}

/**
 * A file of this machine. Its path has no symbolic link in it below the tree's root: the client resolves links by itself, and
 * whoever puts one in the place of a directory (the guest is hostile) does not get past `#path`.
 *
 * Paths are latin1 strings of the bytes of the real ones.
 */
export class HostFile implements NinePFile {
  readonly #tree: HostTree
  #name: string
  #fd: number | undefined

  private constructor(tree: HostTree, name: string) {
    this.#tree = tree
    this.#name = name
    tree.files.add(this)
  }

  static attach(root: string, writable: boolean): HostFile {
    const name = Buffer.from(root).toString('latin1')
    return new HostFile({ root: name === '/' ? '' : name, writable, files: new Set() }, '')
  }

  stat(): fs.BigIntStats {
    if (this.#fd !== undefined) return fs.fstatSync(this.#fd, { bigint: true })
    return fs.lstatSync(this.#path(), { bigint: true })
  }

  walk(name: string): HostFile {
    if (name === '..') {
      const file = new HostFile(this.#tree, this.#name.slice(0, Math.max(0, this.#name.lastIndexOf('/'))))
      return file
    }
    const file = new HostFile(this.#tree, this.#entry(name))
    try {
      file.stat()
      return file
    } catch (error) {
      file.close()
      throw error
    }
  }

  clone(): HostFile {
    return new HostFile(this.#tree, this.#name)
  }

  open(flags: number): void {
    const access = flags & O_ACCMODE
    if (access !== O_RDONLY || flags & O_TRUNC) this.#mayWrite()
    const type = Number(this.stat().mode) & S_IFMT
    // A directory is read by its name; a device or FIFO of ours is not for the guest (it has its own kind).
    if (type === fs.constants.S_IFDIR) {
      fs.accessSync(this.#path(), fs.constants.R_OK)
      return
    }
    if (type !== fs.constants.S_IFREG) throw new Errno('EPERM')
    this.#fd = fs.openSync(this.#path(), access | (flags & O_TRUNC) | O_NOFOLLOW | O_NONBLOCK)
  }

  read(offset: bigint, count: number): Buffer {
    const buffer = Buffer.allocUnsafe(count)
    return buffer.subarray(0, fs.readSync(this.#open(), buffer, 0, count, offset))
  }

  write(offset: bigint, data: Buffer): number {
    return fs.writeSync(this.#open(), data, 0, data.length, Number(offset))
  }

  list(): DirectoryEntry[] {
    const entries: DirectoryEntry[] = [
      { name: '.', stat: this.stat() },
      { name: '..', stat: this.stat() },
    ]
    const directory = this.#path()
    for (const raw of fs.readdirSync(directory, { encoding: 'buffer' })) {
      const name = raw.toString('latin1')
      try {
        const stat = fs.lstatSync(Buffer.concat([directory, Buffer.from('/'), raw]), { bigint: true })
        entries.push({ name, stat })
      } catch {
        // Gone meanwhile.
      }
    }
    return entries
  }

  readlink(): string {
    return fs.readlinkSync(this.#path(), { encoding: 'buffer' }).toString('latin1')
  }

  change({ mode, uid, gid, size, atime, mtime }: Change): void {
    this.#mayWrite()
    const path = this.#path()
    const stat = this.stat()
    const isLink = (Number(stat.mode) & S_IFMT) === fs.constants.S_IFLNK
    if (isLink && (mode !== undefined || size !== undefined)) throw new Errno('EOPNOTSUPP')
    if (size !== undefined) {
      if (this.#fd === undefined) fs.truncateSync(path, Number(size))
      else fs.ftruncateSync(this.#fd, Number(size))
    }
    if (mode !== undefined) fs.chmodSync(path, mode & 0o7777)
    if (uid !== undefined || gid !== undefined) {
      try {
        fs.lchownSync(path, uid ?? Number(stat.uid), gid ?? Number(stat.gid))
      } catch (error) {
        // The guest's root acts as this user, who may not do so. Nobody in the guest is to fail because of it.
        if ((error as NodeJS.ErrnoException).code !== 'EPERM') throw error
      }
    }
    if (atime !== undefined || mtime !== undefined) {
      const now = Date.now() / 1000
      const time = (wanted: number | 'now' | undefined, old: bigint) =>
        wanted === 'now' ? now : (wanted ?? Number(old) / 1e9)
      fs.lutimesSync(path, time(atime, stat.atimeNs), time(mtime, stat.mtimeNs))
    }
  }

  statfs(): fs.StatsFs {
    return fs.statfsSync(this.#path())
  }

  sync(): void {
    if (this.#fd !== undefined) fs.fsyncSync(this.#fd)
  }

  create(name: string, flags: number, mode: number): void {
    this.#mayWrite()
    const entry = this.#entry(name)
    const kept = flags & (O_ACCMODE | O_TRUNC | O_EXCL)
    this.#fd = fs.openSync(this.#path(entry), kept | O_CREAT | O_NOFOLLOW | O_NONBLOCK, mode & 0o7777)
    this.#name = entry
  }

  mkdir(name: string, mode: number): HostFile {
    this.#mayWrite()
    fs.mkdirSync(this.#path(this.#entry(name)), mode & 0o7777)
    return this.walk(name)
  }

  symlink(name: string, target: string): HostFile {
    this.#mayWrite()
    fs.symlinkSync(Buffer.from(target, 'latin1'), this.#path(this.#entry(name)))
    return this.walk(name)
  }

  mknod(name: string, mode: number): HostFile {
    this.#mayWrite()
    // mknod(2) for anything else is not within Node's reach.
    if ((mode & S_IFMT) !== fs.constants.S_IFREG) throw new Errno('EPERM')
    fs.closeSync(fs.openSync(this.#path(this.#entry(name)), O_CREAT | O_EXCL | O_NOFOLLOW, mode & 0o7777))
    return this.walk(name)
  }

  link(name: string, file: NinePFile): void {
    this.#mayWrite()
    fs.linkSync(this.#ours(file).#path(), this.#path(this.#entry(name)))
  }

  unlink(name: string, directory: boolean): void {
    this.#mayWrite()
    const path = this.#path(this.#entry(name))
    if (directory) fs.rmdirSync(path)
    else fs.unlinkSync(path)
  }

  rename(name: string, to: NinePFile, toName: string): void {
    this.#mayWrite()
    const [from, target] = [this.#entry(name), this.#ours(to).#entry(toName)]
    fs.renameSync(this.#path(from), this.#path(target))
    for (const file of this.#tree.files) {
      if (file.#name === from || file.#name.startsWith(`${from}/`)) file.#name = target + file.#name.slice(from.length)
    }
  }

  move(to: NinePFile, toName: string): void {
    const [parent, name] = this.#split()
    using directory = new HostFile(this.#tree, parent)
    directory.rename(name, to, toName)
  }

  remove(): void {
    const [parent, name] = this.#split()
    using directory = new HostFile(this.#tree, parent)
    directory.unlink(name, (Number(this.stat().mode) & S_IFMT) === fs.constants.S_IFDIR)
  }

  close(): void {
    this.#tree.files.delete(this)
    const fd = this.#fd
    this.#fd = undefined
    if (fd !== undefined) fs.closeSync(fd)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #split(): [string, string] {
    const slash = this.#name.lastIndexOf('/')
    if (slash < 0) throw new Errno('EBUSY')
    return [this.#name.slice(0, slash), this.#name.slice(slash + 1)]
  }

  #open(): number {
    if (this.#fd === undefined) throw new Errno('EBADF')
    return this.#fd
  }

  #mayWrite(): void {
    if (!this.#tree.writable) throw new Errno('EROFS')
  }

  #ours(file: NinePFile): HostFile {
    if (file instanceof HostFile && file.#tree === this.#tree) return file
    throw new Errno('EXDEV')
  }

  #entry(name: string): string {
    if (name === '' || name === '.' || name === '..' || name.includes('/') || name.includes('\0'))
      throw new Errno('EINVAL')
    return `${this.#name}/${name}`
  }

  /** The path, after a look that every directory on it is still one. The last name is the caller's not to follow. */
  #path(name = this.#name): Buffer {
    const parent = this.#tree.root + name.slice(0, Math.max(0, name.lastIndexOf('/')))
    const real = fs.realpathSync.native(Buffer.from(parent || '/', 'latin1'), { encoding: 'buffer' })
    if (real.toString('latin1') !== (parent || '/')) throw new Errno('ELOOP')
    return Buffer.from(this.#tree.root + name || '/', 'latin1')
  }
}
