import { BOOT_INFO_ADDRESS, BOOT_INFO_ROOM } from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'

const ALIGNMENT = 16

/** Room in low memory for the structures that Multiboot and PVH hand to a kernel, filled from its start on. */
export class BootInfo {
  readonly #memory: GuestMemory
  #next = BOOT_INFO_ADDRESS

  constructor(memory: GuestMemory) {
    this.#memory = memory
  }

  /** Takes room for `size` bytes and returns its address. */
  reserve(size: number): number {
    const address = this.#next
    this.#next = Math.ceil((address + size) / ALIGNMENT) * ALIGNMENT
    if (this.#next > BOOT_INFO_ADDRESS + BOOT_INFO_ROOM) {
      const problem = `their list and command lines take more than ${BOOT_INFO_ROOM} bytes`
      throw new ConfigError('modules', `${size} bytes`, problem, 'give fewer, or shorten their command lines')
    }
    return address
  }

  /** Puts `bytes` into the room and returns their address. */
  put(bytes: Uint8Array): number {
    const address = this.reserve(bytes.length)
    this.#memory.write(address, bytes)
    return address
  }
}
