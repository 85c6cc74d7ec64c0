import type { GuestRegion } from '../kvm/guest-region.js'
import { PageSet } from '../kvm/page-set.js'
import type { RegionImage } from '../kvm/region-image.js'
import type { MemorySource } from '../snapshot/format.js'

/** The content of a machine's memory at one moment: an image for each region, in order. */
export type RamImage = readonly RegionImage[]

interface Tracked {
  readonly region: GuestRegion
  /** Pages written since the region had its present image. */
  readonly sinceImage: PageSet
  /** Pages written since the last snapshot on disk. */
  readonly sinceSnapshot: PageSet
}

/** A machine's memory and what has been written to it since which moment. No vCPU runs while it is asked for anything. */
export class MachineRam {
  readonly #tracked: readonly Tracked[]

  constructor(regions: readonly GuestRegion[]) {
    this.#tracked = regions.map(region => ({
      region,
      sinceImage: new PageSet(region.size),
      sinceSnapshot: new PageSet(region.size),
    }))
  }

  get regions(): readonly GuestRegion[] {
    return this.#tracked.map(({ region }) => region)
  }

  /** From now on it is known what is written. */
  track(): void {
    for (const { region } of this.#tracked) if (!region.logsDirty) region.setLogDirty(true)
  }

  /** The memory as it is now. The first time nothing is copied, then only what was written since the time before. */
  freeze(): RamImage {
    this.#sweep()
    const images = this.#tracked.map(({ region, sinceImage }) => region.freeze(sinceImage))
    for (const { sinceImage } of this.#tracked) sinceImage.clear()
    this.track()
    return images
  }

  /** Makes the memory `images` again. To the last image, what is copied is what was written since. */
  rollback(images: RamImage): void {
    this.#sweepForImage()
    for (const [i, { region, sinceImage, sinceSnapshot }] of this.#tracked.entries()) {
      const image = images[i]!
      // What was written, and what now goes back: written, too, from the point of view of the snapshot.
      sinceSnapshot.addAll(sinceImage)
      // After a reset the memory is no image's copy: all that either has may differ.
      const differences = region.image?.differences(image) ?? [...region.dataRanges(sinceImage), ...image.dataRanges()]
      for (const { offset, length } of differences) sinceSnapshot.add(offset, length)
      region.rollback(image, sinceImage.ranges())
      sinceImage.clear()
    }
  }

  /**
   * Makes the memory all zero, as it was before `load`, which then writes to it in whatever way. What went is written, too, from the
   * point of view of the snapshot, and so is what comes.
   */
  reset(load: () => void): void {
    this.#sweep()
    this.#addData()
    for (const { region, sinceImage } of this.#tracked) {
      region.clear()
      sinceImage.clear()
    }
    load()
    this.#addData()
  }

  /** What is to be saved: the pages written since the last snapshot, or all that may be other than zero. */
  source(differential: boolean): MemorySource {
    this.#sweep()
    return {
      regions: this.#tracked.map(({ region, sinceImage, sinceSnapshot }) => ({
        guestAddress: region.guestAddress,
        size: region.size,
        chunks: region.chunks,
        data: differential ? sinceSnapshot.ranges() : region.dataRanges(sinceImage),
      })),
    }
  }

  /** There is a snapshot on disk of the memory as it is now. */
  saved(): void {
    this.track()
    for (const { sinceSnapshot } of this.#tracked) sinceSnapshot.clear()
  }

  /** Takes over what `other`, whose memory was the same a moment ago, has written since its last snapshot. */
  inherit(other: MachineRam): void {
    for (const [i, { sinceSnapshot }] of this.#tracked.entries()) {
      sinceSnapshot.addAll(other.#tracked[i]!.sinceSnapshot)
    }
  }

  /** All that may be other than zero is written, for the snapshot. */
  #addData(): void {
    for (const { region, sinceImage, sinceSnapshot } of this.#tracked) {
      if (!region.logsDirty) continue
      for (const { offset, length } of region.dataRanges(sinceImage)) sinceSnapshot.add(offset, length)
    }
  }

  #sweep(): void {
    for (const { region, sinceImage, sinceSnapshot } of this.#tracked) {
      if (!region.logsDirty) continue
      const written = region.takeWritten()
      sinceImage.addAll(written)
      sinceSnapshot.addAll(written)
    }
  }

  /** The same for one who adds `sinceImage` to `sinceSnapshot` next. */
  #sweepForImage(): void {
    for (const { region, sinceImage } of this.#tracked) if (region.logsDirty) sinceImage.addAll(region.takeWritten())
  }
}
