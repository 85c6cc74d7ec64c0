import { addon, type NativeMemory, type NativeVm } from './binding.js'
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
}

/** A memslot and the anonymous memory behind it (KVM_SET_USER_MEMORY_REGION, KVM API 4.35). */
export class GuestRegion {
  readonly slot: number
  readonly guestAddress: number
  readonly size: number
  readonly #vm: NativeVm
  readonly #memory: NativeMemory
  readonly #removed: (region: GuestRegion) => void
  #flags: number
  #chunks: readonly Uint8Array[]

  /** @internal */
  constructor(vm: NativeVm, options: GuestRegionOptions & { slot: number }, removed: (region: GuestRegion) => void) {
    this.slot = options.slot
    this.guestAddress = options.guestAddress
    this.size = options.size
    this.#vm = vm
    this.#removed = removed
    this.#flags = (options.readonly ? KVM_MEM_READONLY : 0) | (options.logDirty ? KVM_MEM_LOG_DIRTY_PAGES : 0)
    this.#memory = new addon.Memory(options.size)
    try {
      this.#apply()
    } catch (error) {
      this.#memory.close()
      throw error
    }
    this.#chunks = this.#memory.buffers().map(buffer => new Uint8Array(buffer))
  }

  /** Views over the memory, in order, 2 GiB each at most. Empty after `remove()`. */
  get chunks(): readonly Uint8Array[] {
    return this.#chunks
  }

  /**
   * One view over the whole memory.
   * @throws {RangeError} it is larger than 2 GiB: use `chunks`
   */
  get bytes(): Uint8Array {
    const [only] = this.#chunks
    if (!only || this.#chunks.length > 1) throw new RangeError('no single view: the region is removed or over 2 GiB')
    return only
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
    this.#removed(this)
  }

  #apply(): void {
    this.#vm.setUserMemoryRegion(this.slot, this.#flags, this.guestAddress, this.size, this.#memory, 0)
  }
}
