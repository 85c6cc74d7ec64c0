import {
  KVM_COALESCED_MMIO_PAGE_OFFSET,
  type KvmCoalescedMmio,
  kvm_coalesced_mmio,
  kvm_coalesced_mmio_ring,
} from './structs.js'

const PAGE = 4096
const START = KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE
const SLOTS = Math.floor((PAGE - kvm_coalesced_mmio_ring.size) / kvm_coalesced_mmio.size)

/** The ring of coalesced writes in a vCPU's mapping: the kernel moves `last`, we move `first` (KVM API 4.116). */
export class CoalescedRing {
  readonly #bytes: Uint8Array
  readonly #indices: Uint32Array | undefined

  constructor(run: ArrayBuffer) {
    this.#bytes = new Uint8Array(run)
    // The mapping is shorter where the kernel has no such ring.
    if (run.byteLength >= START + PAGE) this.#indices = new Uint32Array(run, START, 2)
  }

  drain(): KvmCoalescedMmio[] {
    const indices = this.#indices
    const writes: KvmCoalescedMmio[] = []
    // No ring, or its vCPU is closed and the view detached.
    if (!indices?.length) return writes
    let first = indices[0]! % SLOTS
    for (const last = indices[1]! % SLOTS; first !== last; first = (first + 1) % SLOTS) {
      const at = START + kvm_coalesced_mmio_ring.size + first * kvm_coalesced_mmio.size
      writes.push(kvm_coalesced_mmio.decode(this.#bytes, at))
    }
    indices[0] = first
    return writes
  }
}
