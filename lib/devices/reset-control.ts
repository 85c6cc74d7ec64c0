import type { Device } from './device.js'

/** Of the register, from the start of the range: port 0xcf9. */
const REGISTER = 1
const RST_CPU = 1 << 2

/**
 * The Reset Control Register of a PC's chipset (Intel I/O Controller Hub 9 data sheet, section 13.7.5), by which SeaBIOS and Xen reset: a one
 * written to RST_CPU does, of whatever kind SYS_RST says. It is in the middle of PCI's CONFIG_ADDRESS (0xcf8 to 0xcfb), whose accesses are
 * dwords, and itself is for bytes only. There is no PCI bus: all else reads ones. It has no state, as RST_CPU is never seen set.
 */
export class ResetControl implements Device {
  readonly #reset: () => void

  constructor(reset: () => void) {
    this.#reset = reset
  }

  read(offset: number, data: Uint8Array): void {
    data.fill(isRegister(offset, data) ? 0 : 0xff)
  }

  write(offset: number, data: Uint8Array): void {
    if (isRegister(offset, data) && (data[0]! & RST_CPU) !== 0) this.#reset()
  }
}

function isRegister(offset: number, data: Uint8Array): boolean {
  return offset === REGISTER && data.length === 1
}
