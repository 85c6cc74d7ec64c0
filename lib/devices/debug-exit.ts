import type { Device } from './device.js'

/**
 * The `isa-debug-exit` device known from QEMU: a guest that writes `code` ends the machine with `(code << 1) | 1`.
 */
export class DebugExit implements Device {
  readonly #exit: (status: number) => void

  constructor(exit: (status: number) => void) {
    this.#exit = exit
  }

  read(_offset: number, data: Uint8Array): void {
    data.fill(0)
  }

  /** An exit status has 8 bits: what does not fit is cut off. */
  write(_offset: number, data: Uint8Array): void {
    this.#exit(((data[0]! << 1) | 1) & 0xff)
  }
}
