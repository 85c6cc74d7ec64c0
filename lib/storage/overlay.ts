import { promisify } from 'node:util'
import { type BlockStorage, type Done, join, lengthOf, SECTOR, slice } from './block-storage.js'
import { type OverlayTarget, openOverlayFile, writeOverlayFile } from './overlay-file.js'
import type { OverlayLayer } from './overlay-layer.js'
import { SectorMap } from './sector-map.js'

/** What was written over an image at one moment. Without `close`, the garbage collector lets go of it in time. */
export class OverlayState {
  readonly layers: readonly OverlayLayer[]

  constructor(layers: readonly OverlayLayer[]) {
    this.layers = layers.map(layer => layer.retain())
    forgotten.register(this, this.layers, this)
  }

  close(): void {
    forgotten.unregister(this)
    for (const layer of this.layers) layer.release()
  }
}

const forgotten = new FinalizationRegistry<readonly OverlayLayer[]>(layers => {
  for (const layer of layers) layer.release()
})

/** A part of a read: sectors that all come from the same layer, or from the image. */
interface Part {
  readonly layer: OverlayLayer | undefined
  readonly sector: number
  readonly count: number
}

const ZEROS = new Uint8Array(2 ** 20)

/**
 * Copy-on-write over an image, which stays as it is: what is written goes to a layer above it, sector by sector. To keep a moment costs
 * nothing: the layer so far is only read from then on, and a new one is begun.
 */
export class Overlay implements BlockStorage {
  readonly size: number
  readonly readonly = false
  readonly #base: BlockStorage
  readonly #makeLayer: () => OverlayLayer
  /** What is only read, the newest last. */
  #below: readonly OverlayLayer[] = []
  #top: OverlayLayer

  /** @param makeLayer makes an empty layer, but for the first: that one may have something in it */
  constructor(base: BlockStorage, makeLayer: () => OverlayLayer) {
    this.size = base.size
    this.#base = base
    this.#makeLayer = makeLayer
    this.#top = makeLayer()
  }

  readNow(buffers: readonly Uint8Array[], offset: number): boolean {
    const first = offset / SECTOR
    const parts = this.#parts(first, first + lengthOf(buffers) / SECTOR)
    return parts.length === 1 && parts[0]!.layer === undefined && this.#base.readNow(buffers, offset)
  }

  read(buffers: readonly Uint8Array[], offset: number, done: Done): void {
    const first = offset / SECTOR
    const parts = this.#parts(first, first + lengthOf(buffers) / SECTOR)
    const one = join(parts.length, done)
    for (const { layer, sector, count } of parts) {
      const at = sector * SECTOR
      const piece = parts.length === 1 ? buffers : slice(buffers, at - offset, count * SECTOR)
      ;(layer ?? this.#base).read(piece, at, one)
    }
  }

  write(buffers: readonly Uint8Array[], offset: number, done: Done): void {
    this.#top.write(buffers, offset, lengthOf(buffers), done)
  }

  flush(done: Done): void {
    this.#top.flush(done)
  }

  /** What was written stays: it would be the image's sectors that show otherwise. */
  discard(_offset: number, _length: number, done: Done): void {
    process.nextTick(done, null)
  }

  zero(offset: number, length: number, _unmap: boolean, done: Done): void {
    const piece = ZEROS.subarray(0, Math.min(length, ZEROS.length))
    this.#top.write([piece], offset, piece.length, error => {
      if (error || piece.length === length) done(error)
      else this.zero(offset + piece.length, length - piece.length, _unmap, done)
    })
  }

  /** What was written up to now. Nothing is under way. */
  freeze(): OverlayState {
    if (!this.#top.sectors.isEmpty) {
      this.#below = [...this.#below, this.#top]
      this.#top = this.#makeLayer()
    }
    return new OverlayState(this.#below)
  }

  /** Makes the content what it was at the moment of `state`, which is of an overlay of the same image. Nothing is under way. */
  thaw(state: OverlayState): void {
    const top = this.#top.sectors.isEmpty ? this.#top : this.#makeLayer()
    if (top !== this.#top) this.#top.release()
    this.#top = top
    const below = state.layers.map(layer => layer.retain())
    for (const layer of this.#below) layer.release()
    this.#below = below
  }

  /** Writes a file with all that was written. Nothing is under way, nor begun before it is done. */
  async save(file: OverlayTarget, signal?: AbortSignal): Promise<void> {
    const sectors = new SectorMap()
    for (const layer of [...this.#below, this.#top]) sectors.addAll(layer.sectors)
    const read = promisify((bytes: Uint8Array, offset: number, done: Done) => this.read([bytes], offset, done))
    await writeOverlayFile(file, { size: this.size, sectors, read }, signal)
  }

  /**
   * Begins with what `save` wrote. The file must stay as it is; it may be removed.
   * @throws {Error} it is none, or of an image of another size
   */
  load(path: string): void {
    const layer = openOverlayFile(path, this.size)
    for (const before of this.#below) before.release()
    this.#below = [layer]
  }

  close(): void {
    for (const layer of this.#below) layer.release()
    this.#top.release()
    this.#base.close()
  }

  #parts(from: number, to: number): Part[] {
    const parts: Part[] = []
    const layers = this.#below.length > 0 ? [...this.#below, this.#top] : [this.#top]
    const resolve = (depth: number, start: number, end: number) => {
      const layer = layers[depth]
      for (let at = start; at < end; ) {
        const run = layer ? layer.sectors.runAt(at, end) : { sector: at, count: end - at, present: true }
        if (run.present) parts.push({ layer, sector: at, count: run.count })
        else resolve(depth - 1, at, at + run.count)
        at += run.count
      }
    }
    resolve(layers.length - 1, from, to)
    return parts
  }
}
