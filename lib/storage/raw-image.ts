import { closeSync, constants, fstatSync, openSync, statfsSync } from 'node:fs'
import { constants as osConstants } from 'node:os'
import { ConfigError } from '../errors.js'
import { type BlockStorage, type Done, lengthOf, SECTOR } from './block-storage.js'
import { readFully, sync, writeFully, writeZeros } from './file-io.js'
import { type LockableFile, takeImage } from './image-lock.js'

/** What `fs` has no name for on an image, of which the file is opened a second time. */
export interface ImageFile extends LockableFile {
  size(): number
  readNow(buffers: readonly Uint8Array[], offset: number, mayWait: boolean): number
  punchHole(offset: number, length: number): void
  close(): void
}

export interface RawImageOptions {
  /** For errors: the field that names the image. */
  readonly field: string
  readonly path: string
  readonly readonly: boolean
  /** O_DIRECT: past the host's page cache. */
  readonly direct: boolean
  readonly openFile: (path: string, writable: boolean) => ImageFile
}

/** What O_DIRECT asks of addresses, offsets and lengths: the largest logical block that disks have. */
const DIRECT_ALIGNMENT = 4096

/** Bytes, and buffers, that are filled on this thread where the host has the data in memory: that takes less than to wake up another one. */
const NOW_MAX = 16 * 1024
const NOW_BUFFERS_MAX = 32

/** Magic numbers of the file systems that are memory (statfs(2)), whose files say that they know no RWF_NOWAIT: tmpfs, ramfs. */
const MEMORY_FILE_SYSTEMS = [0x01021994, 0x858458f6]

/** A disk image as it stands on the disk, byte for byte: a regular file or a block device. */
export class RawImage implements BlockStorage {
  readonly size: number
  readonly readonly: boolean
  readonly #file: ImageFile
  readonly #fd: number
  /** The same with O_DIRECT. */
  readonly #direct: number | undefined
  readonly #inMemory: boolean
  /** Whether the file system can tell what it has in memory. What is to go past that is read elsewhere. */
  #tells: boolean

  /**
   * Opens an image and takes its lock: as its only writer, or as one of several readers.
   * @throws {ConfigError} there is none, it may not be read or written, it is empty, no whole number of sectors, or in use
   */
  static open(options: RawImageOptions): RawImage {
    const { field, path, readonly, openFile } = options
    checkKind(field, path, readonly)
    let file: ImageFile | undefined
    let fd: number | undefined
    try {
      file = openFile(path, !readonly)
      if (!takeImage(file, !readonly)) throw inUse(field, path, readonly)
      const size = checkSize(field, path, file.size())
      fd = openSync(path, readonly ? 'r' : 'r+')
      return new RawImage(file, fd, size, options)
    } catch (error) {
      if (fd !== undefined) closeSync(fd)
      file?.close()
      throw error instanceof ConfigError ? error : cannot(field, path, readonly, error)
    }
  }

  private constructor(file: ImageFile, fd: number, size: number, { field, path, readonly, direct }: RawImageOptions) {
    this.#file = file
    this.#fd = fd
    // The file that stands for a block device is in such a file system as a rule.
    this.#inMemory = fstatSync(fd).isFile() && MEMORY_FILE_SYSTEMS.includes(statfsSync(path).type)
    this.size = size
    this.readonly = readonly
    this.#tells = !direct
    if (!direct) return
    try {
      this.#direct = openSync(path, constants.O_DIRECT | (readonly ? constants.O_RDONLY : constants.O_RDWR))
    } catch {
      throw new ConfigError(field, path, 'its file system has no O_DIRECT', 'leave out direct, or move the image')
    }
  }

  readNow(buffers: readonly Uint8Array[], offset: number): boolean {
    if (!this.#tells || buffers.length > NOW_BUFFERS_MAX) return false
    const length = lengthOf(buffers)
    if (length > NOW_MAX) return false
    const count = this.#file.readNow(buffers, offset, this.#inMemory)
    if (count === -osConstants.errno.EOPNOTSUPP) this.#tells = false
    return count === length
  }

  read(buffers: readonly Uint8Array[], offset: number, done: Done): void {
    readFully(this.#fdFor(buffers, offset), buffers, offset, done)
  }

  write(buffers: readonly Uint8Array[], offset: number, done: Done): void {
    writeFully(this.#fdFor(buffers, offset), buffers, offset, done)
  }

  flush(done: Done): void {
    sync(this.#fd, done)
  }

  discard(offset: number, length: number, done: Done): void {
    this.zero(offset, length, true, error => {
      // It is a wish, not an order.
      done(error && isUnsupported(error) ? null : error)
    })
  }

  zero(offset: number, length: number, unmap: boolean, done: Done): void {
    if (unmap) {
      try {
        this.#file.punchHole(offset, length)
        process.nextTick(done, null)
        return
      } catch (error) {
        if (!isUnsupported(error as Error)) {
          process.nextTick(done, error as Error)
          return
        }
      }
    }
    writeZeros(this.#fd, offset, length, done)
  }

  close(): void {
    if (this.#direct !== undefined) closeSync(this.#direct)
    closeSync(this.#fd)
    this.#file.close()
  }

  /** What is not aligned goes through the page cache, which the kernel keeps in step. */
  #fdFor(buffers: readonly Uint8Array[], offset: number): number {
    if (this.#direct === undefined) return this.#fd
    const aligned = (n: number) => n % DIRECT_ALIGNMENT === 0
    // A view over guest memory starts at a page.
    const fits = aligned(offset) && buffers.every(({ byteOffset, length }) => aligned(byteOffset) && aligned(length))
    return fits ? this.#direct : this.#fd
  }
}

function checkKind(field: string, path: string, readonly: boolean): void {
  let fd: number | undefined
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
    const stats = fstatSync(fd)
    if (stats.isFile() || stats.isBlockDevice()) return
  } catch (error) {
    throw cannot(field, path, readonly, error)
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
  throw new ConfigError(field, path, 'it is neither a file nor a block device', 'give the path of a raw disk image')
}

function checkSize(field: string, path: string, size: number): number {
  if (size === 0) throw new ConfigError(field, path, 'it is empty', 'make one: truncate -s 1G disk.img')
  if (size % SECTOR === 0) return size
  const next = Math.ceil(size / SECTOR) * SECTOR
  const problem = `it has ${size} bytes, no whole number of sectors of ${SECTOR}`
  throw new ConfigError(field, path, problem, `give a raw image, or lengthen it: truncate -s ${next} FILE`)
}

function inUse(field: string, path: string, readonly: boolean): ConfigError {
  const problem = readonly ? 'another program writes to it' : 'another program has it open as a disk'
  const remedy = readonly
    ? 'end that, or give a copy'
    : 'end that, or add snapshot: true, so that the image is only read'
  return new ConfigError(field, path, problem, remedy)
}

function cannot(field: string, path: string, readonly: boolean, error: unknown): ConfigError {
  const { code = String(error) } = error as NodeJS.ErrnoException
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    return new ConfigError(field, path, 'there is no such file', 'give the path of a raw disk image')
  }
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') {
    const problem = readonly ? 'it may not be read' : 'it may not be written'
    const remedy = readonly
      ? "change the file's mode or owner"
      : "change the file's mode or owner, or add snapshot or readonly"
    return new ConfigError(field, path, problem, remedy)
  }
  return new ConfigError(field, path, `it cannot be opened (${code})`, 'give the path of a raw disk image')
}

function isUnsupported(error: Error): boolean {
  return 'code' in error && (error.code === 'EOPNOTSUPP' || error.code === 'ENOTSUP' || error.code === 'ENODEV')
}
