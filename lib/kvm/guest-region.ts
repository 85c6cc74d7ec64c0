import { readFileSync } from 'node:fs'
import { addon, type NativeMemory, type NativeMemoryFile, type NativeVm } from './binding.js'
import { type ByteRange, PageSet } from './page-set.js'
import { RegionImage } from './region-image.js'
import { KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY } from './structs.js'

export interface GuestRegionOptions {
  /** Guest-physical address, a multiple of 4096. */
  guestAddress: number
  /** Bytes, a multiple of 4096. */
  size: number
  /** The memslot's number; by default the lowest free one. */
  slot?: number
  /** Guest writes become MMIO exits (KVM_MEM_READONLY, KVM_CAP_READONLY_MEM). */
  readonly?: boolean
  /** Keep a dirty log (KVM_MEM_LOG_DIRTY_PAGES). */
  logDirty?: boolean
  /**
   * What the memory is made of: anonymous memory, all zero (the default); memory with a file of its
   * own (memfd), all zero, of which `freeze()` need not make a copy; or an image, whose pages are copied when they are written.
   */
  backing?: 'anonymous' | 'memfd' | RegionImage
  /**
   * Of memory with a file of its own: huge pages where the host gives them to programs (`auto`, the default), in any case, or
   * never. They need CAP_SYS_ADMIN. `hugetlb`: of the host's pool (`vm.nr_hugepages`), from which they are reserved at once; `size` is
   * a multiple of 2 MiB then, and images are copies in pages of the usual size.
   */
  hugePages?: HugePages
}

export type HugePages = 'auto' | 'always' | 'never' | 'hugetlb'

/** Bytes of a page of the host's pool. */
export const HUGETLB_PAGE = 2 ** 21

/** Whether this host gives programs huge pages: all of them, or those that ask, as a VMM does. */
function usesHugePages(): boolean {
  try {
    return !readFileSync('/sys/kernel/mm/transparent_hugepage/enabled', 'utf8').includes('[never]')
  } catch {
    return false
  }
}

/** How a file of memory is to have huge pages: 0 never, 1 where they are given, 2 in any case. Asks the host, so only when there is a file. */
function hugeMode(hugePages: HugePages): 0 | 1 | 2 {
  if (hugePages === 'always') return 2
  return hugePages === 'auto' && usesHugePages() ? 1 : 0
}

/** Memory of the host's pool, which has all of it from now on. */
function pooledMemory(size: number): NativeMemory {
  if (size % HUGETLB_PAGE !== 0) throw new RangeError(`hugetlb: ${size} bytes are no multiple of 2 MiB`)
  const file = new addon.MemoryFile(size, 3)
  try {
    return new addon.Memory(size, file)
  } finally {
    file.close()
  }
}

/** A memslot and the memory behind it (KVM_SET_USER_MEMORY_REGION, KVM API 4.35). */
export class GuestRegion {
  readonly slot: number
  readonly guestAddress: number
  readonly size: number
  readonly #vm: NativeVm
  readonly #memory: NativeMemory
  readonly #hugePages: HugePages
  /** The memory has pages of the host's pool, and keeps them: there may be none for another mapping. */
  readonly #hugetlb: boolean
  readonly #removed: (region: GuestRegion) => void
  #flags: number
  #chunks: readonly Uint8Array[] | undefined
  /** The memory's own file, while the memory is shared with it. */
  #file: NativeMemoryFile | undefined
  #image: RegionImage | undefined
  /** Pages that the host wrote: KVM does not see those. Undefined where there are none. */
  #written: PageSet | undefined
  /** What the last `takeWritten()` found: overwritten by the next. */
  #log: PageSet | undefined

  /** @internal */
  constructor(vm: NativeVm, options: GuestRegionOptions & { slot: number }, removed: (region: GuestRegion) => void) {
    this.slot = options.slot
    this.guestAddress = options.guestAddress
    this.size = options.size
    this.#vm = vm
    this.#removed = removed
    this.#flags = (options.readonly ? KVM_MEM_READONLY : 0) | (options.logDirty ? KVM_MEM_LOG_DIRTY_PAGES : 0)
    const { backing = 'anonymous', hugePages = 'auto' } = options
    this.#hugePages = hugePages
    this.#hugetlb = backing === 'memfd' && hugePages === 'hugetlb'
    if (this.#hugetlb) this.#memory = pooledMemory(options.size)
    else {
      if (backing === 'memfd') this.#file = new addon.MemoryFile(options.size, hugeMode(hugePages))
      this.#memory = new addon.Memory(options.size, this.#file)
    }
    try {
      if (typeof backing === 'object') this.#become(backing)
      this.#apply()
    } catch (error) {
      this.#memory.close()
      this.#file?.close()
      this.#image?.release()
      throw error
    }
  }

  /** Views over the memory, in order, 2 GiB each at most. Empty after `remove()`. */
  get chunks(): readonly Uint8Array[] {
    // Not before they are asked for: V8 takes their bytes for its own, and collects garbage at once when they are many.
    this.#chunks ??= this.#memory.buffers().map(buffer => new Uint8Array(buffer))
    return this.#chunks
  }

  /**
   * One view over the whole memory.
   * @throws {RangeError} it is larger than 2 GiB: use `chunks`
   */
  get bytes(): Uint8Array {
    const [only, ...more] = this.chunks
    if (!only || more.length > 0) throw new RangeError('no single view: the region is removed or over 2 GiB')
    return only
  }

  /** Whether there is a dirty log. */
  get logsDirty(): boolean {
    return (this.#flags & KVM_MEM_LOG_DIRTY_PAGES) !== 0
  }

  /** What the memory is a copy-on-write copy of; undefined where it is memory of its own. */
  get image(): RegionImage | undefined {
    return this.#image
  }

  /**
   * Makes the memory's content, as it is now, an image: the region goes on as a copy-on-write copy of it, and others can be made of
   * it. No vCPU runs meanwhile. Nothing is copied the first time where the backing is a memfd, but for `hugetlb`, of which all is;
   * afterwards, and where it was an image from the start, only what has been written since.
   * @param written the pages written since the region had its present image (`takeWritten()`); ignored where it has none
   */
  freeze(written: PageSet): RegionImage {
    if (this.#image) {
      this.#adopt(this.#image.with(this.#memory, written.ranges()))
      return this.#image
    }
    if (this.#file) {
      const image = RegionImage.ofFile(this.size, this.#file)
      this.#become(image)
      this.#file = undefined
      return image
    }
    const file = new addon.MemoryFile(this.size)
    const all = this.#hugetlb ? this.#resident() : [{ offset: 0, length: this.size }]
    file.write(this.#memory, Float64Array.from(all.flatMap(({ offset, length }) => [offset, length, offset])))
    const image = RegionImage.ofFile(this.size, file)
    if (this.#hugetlb) this.#adopt(image)
    else this.#become(image)
    return image
  }

  /**
   * Gives the memory the content of an image of this region. No vCPU runs meanwhile.
   * @param written the pages written since the region had its present image: where it is the same one, only they are copied
   */
  rollback(image: RegionImage, written: readonly ByteRange[]): void {
    if (image === this.#image) image.readInto(this.#memory, written)
    else if (this.#hugetlb) this.#copy(image, written)
    else this.#become(image)
    this.#file?.close()
    this.#file = undefined
  }

  /**
   * Makes the memory all zero, as new memory with a file of its own is: its pages are given back, not written, but for `hugetlb`, whose
   * pages stay. Images of it stay what they are. No vCPU runs meanwhile.
   */
  clear(): void {
    this.#written = undefined
    if (this.#hugetlb) {
      for (const range of this.#resident()) this.#zero(range)
      this.#image?.release()
      this.#image = undefined
      return
    }
    const file = new addon.MemoryFile(this.size, hugeMode(this.#hugePages))
    this.#memory.share(file)
    this.#file?.close()
    this.#file = file
    this.#image?.release()
    this.#image = undefined
  }

  /**
   * The pages written since the last call: by the guest, as KVM's dirty log tells (KVM_GET_DIRTY_LOG, KVM API 4.8), and by the
   * host, as `markWritten` was told. The set is valid until the next call.
   */
  takeWritten(): PageSet {
    this.#log ??= new PageSet(this.size)
    const log = this.#log
    this.#vm.getDirtyLog(this.slot, log.bytes)
    if (this.#written) log.addAll(this.#written)
    this.#written = undefined
    return log
  }

  /** Tells that the host wrote `[offset, offset + length)` through one of the views. */
  markWritten(offset: number, length: number): void {
    if (!this.logsDirty) return
    this.#written ??= new PageSet(this.size)
    this.#written.add(offset, length)
  }

  /** Bytes that may be other than zero, where that is known without reading: all else is zero. */
  dataRanges(written: PageSet): { offset: number; length: number }[] {
    const all = new PageSet(this.size)
    if (this.#image) {
      for (const { offset, length } of this.#image.dataRanges()) all.add(offset, length)
      all.addAll(written)
      return all.ranges()
    }
    if (this.#hugetlb) return this.#resident()
    if (!this.#file) return [{ offset: 0, length: this.size }]
    const found = this.#file.dataRanges(0, this.size)
    for (let i = 0; i < found.length; i += 2) all.add(found[i]!, found[i + 1]!)
    return all.ranges()
  }

  /** Starts or stops the dirty log. */
  setLogDirty(on: boolean): void {
    this.#flags = on ? this.#flags | KVM_MEM_LOG_DIRTY_PAGES : this.#flags & ~KVM_MEM_LOG_DIRTY_PAGES
    this.#apply()
  }

  /** Deletes the memslot, detaches the views and gives the memory back. */
  remove(): void {
    this.#vm.setUserMemoryRegion(this.slot, 0, this.guestAddress, 0)
    this.release()
  }

  /** @internal The memory only: the VM goes as a whole. */
  release(): void {
    this.#chunks = []
    this.#memory.close()
    this.#file?.close()
    this.#file = undefined
    this.#image?.release()
    this.#image = undefined
    this.#removed(this)
  }

  #become(image: RegionImage): void {
    this.#require(image)
    image.mapInto(this.#memory)
    this.#adopt(image)
  }

  /** As `#become`, in the pages that the memory has. */
  #copy(image: RegionImage, written: readonly ByteRange[]): void {
    this.#require(image)
    const all = new PageSet(this.size)
    const differences = this.#image?.differences(image) ?? [...this.#resident(), ...image.dataRanges()]
    for (const { offset, length } of [...written, ...differences]) all.add(offset, length)
    image.readInto(this.#memory, all.ranges())
    this.#adopt(image)
  }

  #require(image: RegionImage): void {
    if (image.size !== this.size) throw new RangeError(`the image has ${image.size} bytes, the region ${this.size}`)
  }

  /** The pages that are there, of memory that is not swapped out. */
  #resident(): ByteRange[] {
    const found = this.#memory.residentRanges()
    return Array.from({ length: found.length / 2 }, (_, i) => ({ offset: found[2 * i]!, length: found[2 * i + 1]! }))
  }

  #zero({ offset, length }: ByteRange): void {
    let start = 0
    for (const chunk of this.chunks) {
      // What lies outside of the chunk is left out.
      chunk.fill(0, Math.max(0, offset - start), Math.max(0, offset + length - start))
      start += chunk.length
    }
  }

  #adopt(image: RegionImage): void {
    image.retain()
    this.#image?.release()
    this.#image = image
  }

  #apply(): void {
    this.#vm.setUserMemoryRegion(this.slot, this.#flags, this.guestAddress, this.size, this.#memory, 0)
  }
}
