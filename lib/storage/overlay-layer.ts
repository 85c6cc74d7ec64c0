import { randomUUID } from 'node:crypto'
import { closeSync, openSync, unlinkSync } from 'node:fs'
import { join } from 'node:path'
import { ConfigError } from '../errors.js'
import { type Done, SECTOR } from './block-storage.js'
import { readFully, writeFully } from './file-io.js'
import { SectorMap } from './sector-map.js'

/**
 * Sectors that were written over a disk image, each at its own place in a sparse file. Several overlays may have it among their layers:
 * the file is closed when the last lets go.
 */
export class OverlayLayer {
  readonly sectors: SectorMap
  protected readonly fd: number
  /** Where sector 0 lies in the file. */
  protected readonly start: number
  #users = 1

  constructor(fd: number, start = 0, sectors = new SectorMap()) {
    this.fd = fd
    this.start = start
    this.sectors = sectors
  }

  /**
   * An empty one, in a file without a name: whatever becomes of us, nothing is left behind.
   * @throws {ConfigError} none can be made in `directory`
   */
  static temporary(directory: string): OverlayLayer {
    const path = join(directory, `nested-kvm-overlay-${randomUUID()}`)
    try {
      const fd = openSync(path, 'wx+', 0o600)
      unlinkSync(path)
      return new OverlayLayer(fd)
    } catch (error) {
      const problem = `no temporary file can be made there (${(error as NodeJS.ErrnoException).code})`
      throw new ConfigError('TMPDIR', directory, problem, 'set TMPDIR to a directory that this user may write to')
    }
  }

  retain(): this {
    this.#users++
    return this
  }

  release(): void {
    if (--this.#users === 0) this.close()
  }

  protected close(): void {
    closeSync(this.fd)
  }

  /** What goes with the machine needs no place on a disk. */
  flush(done: Done): void {
    process.nextTick(done, null)
  }

  read(buffers: readonly Uint8Array[], offset: number, done: Done): void {
    readFully(this.fd, buffers, this.start + offset, done)
  }

  /** The sectors are in the layer once they are written. */
  write(buffers: readonly Uint8Array[], offset: number, length: number, done: Done): void {
    writeFully(this.fd, buffers, this.start + offset, error => {
      if (!error) this.sectors.add(offset / SECTOR, length / SECTOR)
      done(error)
    })
  }
}
