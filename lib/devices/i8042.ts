import type { Device } from './device.js'

/** "Pulse output bit 0 low": the reset line of the processor (IBM PC/AT Technical Reference, 8042 commands). */
const RESET_COMMAND = 0xfe

/**
 * As much of the keyboard controller's command port (0x64) as resetting a PC needs: its status always reads 0, ready for a command.
 */
export class I8042 implements Device {
  readonly #reset: () => void

  constructor(reset: () => void) {
    this.#reset = reset
  }

  read(_offset: number, data: Uint8Array): void {
    data.fill(0)
  }

  write(_offset: number, data: Uint8Array): void {
    if (data[0] === RESET_COMMAND) this.#reset()
  }
}
