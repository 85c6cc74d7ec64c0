/**
 * What was written over a disk image, in a file that is kept:
 *
 * - a page with a header: 24 bytes that say what this is, and the disk's size in bytes as a u64 behind them;
 * - a bitmap of the disk's sectors, sector 0 in bit 0 of byte 0: those that the file has; padded to a whole page;
 * - the sectors, each at its own place: a file as long as the disk, with holes for what it has not.
 *
 * Numbers are little-endian.
 */
import { closeSync, existsSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs'
import { type Done, join, SECTOR } from './block-storage.js'
import { sync, writeFully } from './file-io.js'
import { takeImage } from './image-lock.js'
import { OverlayLayer } from './overlay-layer.js'
import type { ImageFile } from './raw-image.js'
import { PIECE_BYTES, SectorMap } from './sector-map.js'

const PAGE = 4096
const MAGIC = Buffer.from('nested-kvm disk overlay\n')
/** So much is read and written at once. */
const BLOCK = 2 ** 20

function dataStart(size: number): number {
  return PAGE + Math.ceil(size / SECTOR / 8 / PAGE) * PAGE
}

/** What a file is written from. */
export interface OverlaySource {
  readonly size: number
  /** All that was written. */
  readonly sectors: SectorMap
  read(bytes: Uint8Array, offset: number): Promise<void>
}

/** What a file is written to, in ascending order; what is not written is zero. */
export interface OverlayTarget {
  resize(size: number): Promise<void>
  put(position: number, bytes: Uint8Array): Promise<void>
}

/** Writes a file with all that `source` has. */
export async function writeOverlayFile(
  file: OverlayTarget,
  source: OverlaySource,
  signal?: AbortSignal,
): Promise<void> {
  const { size, sectors } = source
  const start = dataStart(size)
  await file.resize(start + size)
  await file.put(0, headerOf(size))
  for (const { offset, bytes } of sectors.pieces()) {
    await file.put(PAGE + offset, bytes.subarray(0, Math.min(bytes.length, start - PAGE - offset)))
  }
  const buffer = new Uint8Array(BLOCK)
  for (const { sector, count } of sectors.present()) {
    const end = (sector + count) * SECTOR
    for (let at = sector * SECTOR; at < end; ) {
      signal?.throwIfAborted()
      const bytes = buffer.subarray(0, Math.min(BLOCK, end - at))
      await source.read(bytes, at)
      await file.put(start + at, bytes)
      at += bytes.length
    }
  }
}

/**
 * Opens a file that `writeOverlayFile` wrote, as a layer that is only read.
 * @throws {Error} it is none, or of a disk of another size
 */
export function openOverlayFile(path: string, size: number): OverlayLayer {
  return openLayer(path, 'r', size, (fd, sectors) => new OverlayLayer(fd, dataStart(size), sectors))
}

/**
 * Opens such a file to go on with it, or makes an empty one.
 * @throws {Error} it is something else, of a disk of another size, or may not be written
 */
export function openKeptLayer(
  path: string,
  size: number,
  openFile: (path: string, writable: boolean) => ImageFile,
): OverlayLayer {
  if (!existsSync(path)) createOverlayFile(path, size)
  const lock = openFile(path, true)
  try {
    if (!takeImage(lock, true)) throw new Error('another machine has it open')
    return openLayer(path, 'r+', size, (fd, sectors) => new KeptLayer(fd, lock, dataStart(size), sectors))
  } catch (error) {
    lock.close()
    throw error
  }
}

/** What is kept: data and bitmap are on the disk once `flush` is done, and the bitmap never tells of what is not. */
class KeptLayer extends OverlayLayer {
  readonly #lock: ImageFile
  #flushing = false
  #waiting: Done[] = []

  constructor(fd: number, lock: ImageFile, start: number, sectors: SectorMap) {
    super(fd, start, sectors)
    this.#lock = lock
  }

  protected override close(): void {
    super.close()
    this.#lock.close()
  }

  override flush(done: Done): void {
    this.#waiting.push(done)
    if (!this.#flushing) this.#flush()
  }

  #flush(): void {
    const dones = this.#waiting
    this.#waiting = []
    this.#flushing = true
    const changed = this.sectors.takeChanged()
    const finish = (error: Error | null) => {
      if (error) this.sectors.untakeChanged(changed)
      this.#flushing = false
      if (this.#waiting.length > 0) this.#flush()
      for (const done of dones) done(error)
    }
    sync(this.fd, error => {
      if (error || changed.length === 0) finish(error)
      else this.#writeBitmap(changed, error => (error ? finish(error) : sync(this.fd, finish)))
    })
  }

  #writeBitmap(pieces: readonly { readonly offset: number; readonly bytes: Uint8Array }[], done: Done): void {
    const one = join(pieces.length, done)
    for (const { offset, bytes } of pieces) {
      // The last piece may be longer than the bitmap.
      const length = Math.min(bytes.length, this.start - PAGE - offset)
      writeFully(this.fd, [bytes.subarray(0, length)], PAGE + offset, one)
    }
  }
}

function createOverlayFile(path: string, size: number): void {
  const fd = openSync(path, 'wx', 0o600)
  try {
    ftruncateSync(fd, dataStart(size) + size)
    writeSync(fd, headerOf(size), 0, PAGE, 0)
  } finally {
    closeSync(fd)
  }
}

function headerOf(size: number): Buffer {
  const header = Buffer.alloc(PAGE)
  MAGIC.copy(header)
  header.writeBigUInt64LE(BigInt(size), MAGIC.length)
  return header
}

function openLayer(
  path: string,
  flags: string,
  size: number,
  make: (fd: number, sectors: SectorMap) => OverlayLayer,
): OverlayLayer {
  const fd = openSync(path, flags)
  try {
    const header = readAt(fd, 0, PAGE)
    if (!header.subarray(0, MAGIC.length).equals(MAGIC)) throw new Error(`${path}: it is no disk overlay`)
    const own = header.readBigUInt64LE(MAGIC.length)
    if (own !== BigInt(size)) throw new Error(`${path}: it is of a disk of ${own} bytes, and the image has ${size}`)
    const start = dataStart(size)
    const { size: length } = fstatSync(fd)
    if (length !== start + size) throw new Error(`${path}: it has ${length} bytes, not ${start + size}`)
    const sectors = new SectorMap()
    const bytes = Math.ceil(size / SECTOR / 8)
    for (let at = 0; at < bytes; at += PIECE_BYTES) {
      sectors.load(at, readAt(fd, PAGE + at, Math.min(PIECE_BYTES, bytes - at)))
    }
    return make(fd, sectors)
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

function readAt(fd: number, position: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let at = 0; at < length; ) {
    const count = readSync(fd, bytes, at, length - at, position + at)
    if (count === 0) throw new Error('it ends early')
    at += count
  }
  return bytes
}
