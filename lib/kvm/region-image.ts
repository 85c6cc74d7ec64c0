import { addon, type NativeMemory, type NativeMemoryFile } from './binding.js'
import type { ByteRange } from './page-set.js'

/** A file and how many have need of it: it is closed after the last one. */
class SharedFile {
  readonly native: NativeMemoryFile
  users = 0

  constructor(native: NativeMemoryFile) {
    this.native = native
  }
}

/** A part of a region and the file that has its content; a hole in the file reads as zero. */
interface ImageExtent extends ByteRange {
  readonly file: SharedFile
  readonly fileOffset: number
}

/** As `ImageExtent`, with the file's path. */
export interface FileExtent extends ByteRange {
  readonly file: string
  readonly fileOffset: number
}

/** More extents than this are put into one file: each is a mapping of its own, and a process has 65,530 at most. */
const MOST_EXTENTS = 1024

/**
 * The content of a region at one moment, which does not change any more: what a region begins with, goes back to, or
 * shares with another until one of them writes. It is made of pieces of files; those without a name (memfd) go with it.
 */
export class RegionImage {
  readonly size: number
  /** Ascending, without a gap. */
  readonly #extents: readonly ImageExtent[]

  private constructor(size: number, extents: readonly ImageExtent[]) {
    this.size = size
    this.#extents = extents
  }

  /** @internal The whole content of a file. */
  static ofFile(size: number, file: NativeMemoryFile): RegionImage {
    return new RegionImage(size, [{ offset: 0, length: size, file: new SharedFile(file), fileOffset: 0 }])
  }

  /**
   * @internal Whoever has need of the image says so, and says when no more: then its files are closed, but for those that other
   * images are made of. Without that the garbage collector closes them.
   */
  retain(): void {
    for (const file of this.#files()) file.users++
  }

  /** @internal See `retain`. */
  release(): void {
    for (const file of this.#files()) if (--file.users === 0) file.native.close()
  }

  /**
   * The content of files that exist. They must not be changed while the image is in use: whoever cuts one short ends the
   * process that reads it.
   * @throws {KvmError} a file cannot be opened
   * @throws {RangeError} the extents do not cover the region
   */
  static fromFiles(size: number, extents: readonly FileExtent[]): RegionImage {
    let end = 0
    const files = new Map<string, SharedFile>()
    const opened = extents.map(({ offset, length, file: path, fileOffset }) => {
      if (offset !== end) throw new RangeError(`image of a memory region: nothing covers offset ${end}`)
      end += length
      const file = files.get(path) ?? new SharedFile(new addon.MemoryFile(path))
      files.set(path, file)
      return { offset, length, file, fileOffset }
    })
    if (end !== size) throw new RangeError(`image of a memory region: it has ${end} bytes, not ${size}`)
    return new RegionImage(size, opened)
  }

  /** @internal This content with what `memory` has now in `written`, whose pages are copied. */
  with(memory: NativeMemory, written: readonly ByteRange[]): RegionImage {
    if (written.length === 0) return this
    const file = new addon.MemoryFile(this.size)
    const all = overlay(this.#extents, written, new SharedFile(file))
    if (all.length <= MOST_EXTENTS) {
      file.write(memory, runs(written))
      return new RegionImage(this.size, all)
    }
    file.write(memory, runs(this.dataRanges()))
    file.write(memory, runs(written))
    return RegionImage.ofFile(this.size, file)
  }

  /** @internal Makes `memory` this content, copied on write. Where there are very many extents, small ones are read at once. */
  mapInto(memory: NativeMemory): void {
    let least = 0
    if (this.#extents.length > MOST_EXTENTS) {
      least = this.#extents.map(({ length }) => length).sort((a, b) => b - a)[MOST_EXTENTS]! + 1
    }
    for (const { offset, length, file, fileOffset } of this.#extents) {
      if (length >= least) memory.map(offset, length, file.native, fileOffset)
    }
    if (least > 0)
      this.readInto(
        memory,
        this.#extents.filter(({ length }) => length < least),
      )
  }

  /** @internal Gives `memory` this content in `ranges`, by copying. */
  readInto(memory: NativeMemory, ranges: readonly ByteRange[]): void {
    const perFile = new Map<SharedFile, number[]>()
    let file: SharedFile | undefined
    let list: number[] = []
    let at = 0
    for (const { offset, length } of ranges) {
      const end = offset + length
      while (endOf(this.#extents[at]!) <= offset) at++
      for (let i = at; i < this.#extents.length && this.#extents[i]!.offset < end; i++) {
        const extent = this.#extents[i]!
        // Mostly the one before: what was written is what was written before.
        if (extent.file !== file) {
          file = extent.file
          list = perFile.get(file) ?? []
          perFile.set(file, list)
        }
        const from = Math.max(offset, extent.offset)
        list.push(from, Math.min(end, endOf(extent)) - from, extent.fileOffset + from - extent.offset)
      }
    }
    for (const [{ native }, list] of perFile) native.read(memory, new Float64Array(list))
  }

  /** What may be other than zero, ascending. */
  dataRanges(): ByteRange[] {
    return this.#extents.flatMap(({ offset, length, file, fileOffset }) => {
      const found = file.native.dataRanges(fileOffset, length)
      const ranges: ByteRange[] = []
      for (let i = 0; i < found.length; i += 2) {
        ranges.push({ offset: found[i]! - fileOffset + offset, length: found[i + 1]! })
      }
      return ranges
    })
  }

  /** Where this content and that of `other` may differ. */
  differences(other: RegionImage): ByteRange[] {
    if (other === this) return []
    const ranges: ByteRange[] = []
    for (let [i, j] = [0, 0]; i < this.#extents.length && j < other.#extents.length; ) {
      const a = this.#extents[i]!
      const b = other.#extents[j]!
      const offset = Math.max(a.offset, b.offset)
      const end = Math.min(endOf(a), endOf(b))
      const same = a.file === b.file && a.fileOffset - a.offset === b.fileOffset - b.offset
      if (!same) ranges.push({ offset, length: end - offset })
      if (endOf(a) === end) i++
      if (endOf(b) === end) j++
    }
    return ranges
  }

  #files(): Set<SharedFile> {
    return new Set(this.#extents.map(({ file }) => file))
  }
}

function endOf({ offset, length }: ByteRange): number {
  return offset + length
}

/** The extents with `written` taken from `file`, at the same offsets. */
function overlay(extents: readonly ImageExtent[], written: readonly ByteRange[], file: SharedFile): ImageExtent[] {
  const result: ImageExtent[] = []
  const keep = (extent: ImageExtent, from: number, to: number) => {
    if (from >= to) return
    result.push({ ...extent, offset: from, length: to - from, fileOffset: extent.fileOffset + from - extent.offset })
  }
  let next = 0
  for (const extent of extents) {
    let at = extent.offset
    const end = endOf(extent)
    for (; next < written.length && written[next]!.offset < end; next++) {
      const range = written[next]!
      keep(extent, at, range.offset)
      if (range.offset >= extent.offset) result.push({ ...range, file, fileOffset: range.offset })
      at = Math.min(end, endOf(range))
      // It reaches into the next extent, which loses its beginning.
      if (endOf(range) > end) break
    }
    keep(extent, at, end)
  }
  return result
}

function runs(ranges: readonly ByteRange[]): Float64Array {
  const list = new Float64Array(ranges.length * 3)
  for (const [i, { offset, length }] of ranges.entries()) list.set([offset, length, offset], i * 3)
  return list
}
