/**
 * What was written over a disk image, in a file that is kept:
 *
 * - a page with a header: 24 bytes that say what this is, and the disk's size in bytes as a u64 behind them;
 * - a bitmap of the disk's sectors, sector 0 in bit 0 of byte 0: those that the file has; padded to a whole page;
 * - the sectors, each at its own place: a file as long as the disk, with holes for what it has not.
 *
 * Numbers are little-endian.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { SECTOR } from './block-storage.js'
import { OverlayLayer } from './overlay-layer.js'
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

/** Writes a file with all that `source` has. */
export async function writeOverlayFile(file: FileHandle, source: OverlaySource, signal?: AbortSignal): Promise<void> {
  const { size, sectors } = source
  const header = Buffer.alloc(PAGE)
  MAGIC.copy(header)
  header.writeBigUInt64LE(BigInt(size), MAGIC.length)
  const start = dataStart(size)
  await file.truncate(start + size)
  await file.write(header, 0, PAGE, 0)
  for (const { offset, bytes } of sectors.pieces()) {
    await file.write(bytes, 0, Math.min(bytes.length, start - PAGE - offset), PAGE + offset)
  }
  const buffer = new Uint8Array(BLOCK)
  for (const { sector, count } of sectors.present()) {
    const end = (sector + count) * SECTOR
    for (let at = sector * SECTOR; at < end; ) {
      signal?.throwIfAborted()
      const bytes = buffer.subarray(0, Math.min(BLOCK, end - at))
      await source.read(bytes, at)
      for (let done = 0; done < bytes.length; ) {
        done += (await file.write(bytes, done, bytes.length - done, start + at + done)).bytesWritten
      }
      at += bytes.length
    }
  }
}

/**
 * Opens a file that `writeOverlayFile` wrote, as a layer that is only read.
 * @throws {Error} it is none, or of a disk of another size
 */
export function openOverlayFile(path: string, size: number): OverlayLayer {
  const fd = openSync(path, 'r')
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
    return new OverlayLayer(fd, start, sectors)
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
