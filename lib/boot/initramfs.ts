import { constants, createWriteStream } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { ConfigError } from '../errors.js'

/**
 * One entry of an initramfs. `path` is where it is to be in the guest, with or without the leading `/`.
 *
 * A file's content is `data`, or the file `source` of this machine (its permission bits are taken over unless `mode`
 * is given). `mode` holds permission bits only, e.g. `0o755`. Owner is always root, time always 0, so that the same
 * entries give the same bytes.
 */
export type InitramfsEntry =
  | { type: 'file'; path: string; data: Uint8Array | string; mode?: number }
  | { type: 'file'; path: string; source: string; mode?: number }
  | { type: 'directory'; path: string; mode?: number }
  | { type: 'symlink'; path: string; target: string }
  | { type: 'device'; path: string; kind: 'char' | 'block'; major: number; minor: number; mode?: number }

/** A piece of an archive: bytes, or `size` bytes of the file `source` that are still on disk. */
export type InitramfsPart = Uint8Array | { readonly source: string; readonly size: number }

/** An archive laid out, no file's content read yet. `size` is the whole archive's, in bytes. */
export interface InitramfsPlan {
  readonly parts: readonly InitramfsPart[]
  readonly size: number
}

// st_mode of inode(7)
const S_IFDIR = 0o040000
const S_IFCHR = 0o020000
const S_IFBLK = 0o060000
const S_IFREG = 0o100000
const S_IFLNK = 0o120000

/** The size of a file is 8 hexadecimal digits in the header. */
const MAX_FILE_SIZE = 0xffff_ffff
/** PATH_MAX of the kernel, whose unpacker ignores longer names. */
const MAX_NAME_SIZE = 4096
const COPY_SIZE = 1 << 20

/**
 * Lays out a cpio archive in the `newc` format (Linux: Documentation/driver-api/early-userspace/buffer-format.rst).
 *
 * Entries keep their order; a parent directory that is not listed before its children is added (mode 0755). Nothing but the sizes and
 * modes of the `source` files is read.
 *
 * @throws ConfigError for a path listed twice, a path with `..`, a `source` that is missing, no file, or 4 GiB and more.
 */
export async function planInitramfs(entries: Iterable<InitramfsEntry>): Promise<InitramfsPlan> {
  const archive = new Archive()
  for (const entry of entries) {
    const path = cleanPath(entry.path)
    archive.addParents(path)
    switch (entry.type) {
      case 'directory':
        archive.addDirectory(path, entry.mode ?? 0o755)
        break
      case 'symlink':
        archive.add(path, S_IFLNK | 0o777, Buffer.from(entry.target))
        break
      case 'device': {
        const type = entry.kind === 'char' ? S_IFCHR : S_IFBLK
        archive.add(path, type | (entry.mode ?? 0o600), undefined, entry.major, entry.minor)
        break
      }
      case 'file':
        if ('source' in entry) {
          const { size, mode } = await statSource(entry.source)
          archive.add(path, S_IFREG | (entry.mode ?? mode), { source: entry.source, size })
        } else {
          const data = typeof entry.data === 'string' ? Buffer.from(entry.data) : entry.data
          archive.add(path, S_IFREG | (entry.mode ?? 0o644), data)
        }
    }
  }
  return archive.finish()
}

/**
 * Puts a planned archive into `target`, which must hold at least `plan.size` bytes (guest memory, for one): each file
 * is read straight to its place.
 *
 * @throws ConfigError when a file is gone or shorter than it was when planned.
 */
export async function fillInitramfs(plan: InitramfsPlan, target: Uint8Array): Promise<void> {
  let offset = 0
  for (const part of plan.parts) {
    if (part instanceof Uint8Array) {
      target.set(part, offset)
      offset += part.length
    } else {
      const place = target.subarray(offset, offset + part.size)
      await withSource(part.source, file => readFully(file, part, place, 0))
      offset += part.size
    }
  }
}

/** The whole archive of these entries in one Buffer. Throws as `planInitramfs` and `fillInitramfs` do. */
export async function buildInitramfs(entries: Iterable<InitramfsEntry>): Promise<Buffer> {
  const plan = await planInitramfs(entries)
  const archive = Buffer.allocUnsafeSlow(plan.size)
  await fillInitramfs(plan, archive)
  return archive
}

/**
 * Writes the archive of these entries to the file `path`, without ever holding a file's content as a whole.
 * Returns its size in bytes. Throws as `planInitramfs` and `fillInitramfs` do.
 */
export async function writeInitramfs(entries: Iterable<InitramfsEntry>, path: string): Promise<number> {
  const plan = await planInitramfs(entries)
  const output = createWriteStream(path)
  try {
    for await (const bytes of contents(plan)) {
      if (!output.write(bytes)) await drained(output)
    }
    await new Promise<void>((resolve, reject) => output.once('error', reject).end(resolve))
  } catch (error) {
    output.destroy()
    throw error
  }
  return plan.size
}

async function* contents(plan: InitramfsPlan): AsyncGenerator<Uint8Array> {
  for (const part of plan.parts) {
    if (part instanceof Uint8Array) {
      yield part
      continue
    }
    const file = await openSource(part.source)
    try {
      for (let offset = 0; offset < part.size; offset += COPY_SIZE) {
        const piece = new Uint8Array(Math.min(COPY_SIZE, part.size - offset))
        await readFully(file, part, piece, offset)
        yield piece
      }
    } finally {
      await file.close()
    }
  }
}

function drained(output: NodeJS.WritableStream): Promise<void> {
  return new Promise((resolve, reject) => {
    output.once('error', reject)
    output.once('drain', () => {
      output.removeListener('error', reject)
      resolve()
    })
  })
}

/** Collects headers and contents, each padded to four bytes. */
class Archive {
  readonly #parts: InitramfsPart[] = []
  readonly #directories = new Set<string>()
  readonly #others = new Set<string>()
  #size = 0

  addParents(path: string): void {
    const names = path.split('/').slice(0, -1)
    for (let depth = 1; depth <= names.length; depth++) this.addDirectory(names.slice(0, depth).join('/'), 0o755)
  }

  /** The first mention of a directory is the one that counts. */
  addDirectory(path: string, mode: number): void {
    if (this.#directories.has(path)) return
    this.add(path, S_IFDIR | mode)
    this.#others.delete(path)
    this.#directories.add(path)
  }

  add(path: string, mode: number, content?: InitramfsPart, major = 0, minor = 0): void {
    if (this.#others.has(path) || this.#directories.has(path)) {
      throw new ConfigError(
        'initramfs entry',
        path,
        'is there twice, or is the parent of another entry',
        'list each path once',
      )
    }
    this.#others.add(path)
    this.#entry(path, mode, content, major, minor)
  }

  #entry(name: string, mode: number, content: InitramfsPart | undefined, major: number, minor: number): void {
    const ino = name === TRAILER ? 0 : this.#directories.size + this.#others.size
    const size = content === undefined ? 0 : content instanceof Uint8Array ? content.length : content.size
    const nameBytes = Buffer.from(`${name}\0`)
    if (nameBytes.length > MAX_NAME_SIZE) {
      throw new ConfigError('initramfs entry', name, 'the path is longer than 4095 bytes', 'use a shorter path')
    }
    const nlink = (mode & 0o170000) === S_IFDIR ? 2 : 1
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    const fields = [ino, mode, 0, 0, nlink, 0, size, 0, 0, major, minor, nameBytes.length, 0]
    const header = `070701${fields.map(field => field.toString(16).padStart(8, '0')).join('')}`
    this.#push(Buffer.concat([Buffer.from(header), nameBytes]))
    this.#pad(4)
    if (content !== undefined && size > 0) this.#push(content)
    this.#pad(4)
  }

  /** cpio(1) writes whole blocks of 512 bytes; archives may then be put one after another. */
  finish(): InitramfsPlan {
    this.#entry(TRAILER, 0, undefined, 0, 0)
    this.#pad(512)
    return { parts: this.#parts, size: this.#size }
  }

  #push(part: InitramfsPart): void {
    this.#parts.push(part)
    this.#size += part instanceof Uint8Array ? part.length : part.size
  }

  #pad(multiple: number): void {
    const rest = this.#size % multiple
    if (rest !== 0) this.#push(new Uint8Array(multiple - rest))
  }
}

const TRAILER = 'TRAILER!!!'

function cleanPath(path: string): string {
  const names = path.split('/').filter(name => name !== '' && name !== '.')
  const clean = names.join('/')
  if (clean === '' || clean.includes('\0') || names.includes('..') || clean === TRAILER) {
    throw new ConfigError('initramfs entry', path, 'is no usable path', 'give a path from the root, without ".."')
  }
  return clean
}

async function statSource(source: string): Promise<{ size: number; mode: number }> {
  return withSource(source, async file => {
    const stat = await file.stat()
    if (!stat.isFile()) throw new ConfigError('initramfs source', source, 'is not a file', 'give a regular file')
    if (stat.size > MAX_FILE_SIZE) {
      const remedy = 'put it on a disk image instead'
      throw new ConfigError('initramfs source', source, 'has 4 GiB or more, which cpio newc cannot hold', remedy)
    }
    return { size: stat.size, mode: stat.mode & 0o7777 }
  })
}

async function withSource<T>(source: string, use: (file: FileHandle) => Promise<T>): Promise<T> {
  const file = await openSource(source)
  try {
    return await use(file)
  } finally {
    await file.close()
  }
}

async function openSource(source: string): Promise<FileHandle> {
  try {
    // Non-blocking, so that a FIFO is found out by its type instead of waiting for a writer.
    return await open(source, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw new ConfigError('initramfs source', source, `cannot be read (${code})`, 'check the path and its permissions')
  }
}

/** Fills `place` from `position` of the file on; the file's size is in the archive's header already, so it must hold. */
async function readFully(
  file: FileHandle,
  part: { source: string; size: number },
  place: Uint8Array,
  position: number,
): Promise<void> {
  let done = 0
  while (done < place.length) {
    const length = Math.min(place.length - done, COPY_SIZE * 64)
    const { bytesRead } = await file.read(place, done, length, position + done)
    if (bytesRead === 0) {
      const problem = `became shorter than ${part.size} bytes while it was read`
      throw new ConfigError('initramfs source', part.source, problem, 'leave the file alone and try again')
    }
    done += bytesRead
  }
}
