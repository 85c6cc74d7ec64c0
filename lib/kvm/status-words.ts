import { addon, type NativeMemory } from './binding.js'
import type { Vm } from './vm.js'

const PAGE = 4096
const WORD = 4

/**
 * Registers of 32 bits that a guest reads at one address, and whose bits it clears by writing ones at another, as the interrupt status
 * of a device: an interrupt's handler does both. The vCPU's own thread (`VcpuThread`) answers such accesses, with no event on the event loop; they
 * still are exits to user space (KVM_EXIT_MMIO). `vcpu.run()` hands them out as any other.
 */
export class StatusWords {
  readonly #vm: Vm
  readonly #memory: NativeMemory
  readonly #words: Uint32Array
  #count = 0

  constructor(vm: Vm) {
    this.#vm = vm
    this.#memory = new addon.Memory(PAGE)
    this.#words = new Uint32Array(this.#memory.buffers()[0]!)
  }

  /**
   * Adds a register: an array of one word, 0 at first, which vCPU threads change at any time: for `Atomics`.
   * @param readAddress guest-physical, for reads of 4 bytes
   * @param clearAddress guest-physical, for writes of 4 bytes
   * @throws {RangeError} there are too many: a VM has room for 64
   */
  add(readAddress: number, clearAddress: number): Uint32Array {
    const index = this.#count
    this.#vm.native.addStatusWord(this.#memory, index * WORD, readAddress, clearAddress)
    this.#count++
    return this.#words.subarray(index, index + 1)
  }

  /** Detaches the arrays. The VM keeps the memory as long as its vCPUs may run. */
  close(): void {
    this.#memory.close()
  }
}
