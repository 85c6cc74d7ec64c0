import type { Device } from './device.js'

/** What a guest tells of its own end (QEMU: docs/specs/pvpanic.rst). */
export type PanicEvent =
  /** Its kernel has panicked. */
  | 'panicked'
  /** Its kernel has panicked, and a crash kernel takes over. */
  | 'crash-loaded'

const PANICKED = 1 << 0
const CRASH_LOADED = 1 << 1

/** The `pvpanic` device known from QEMU, at an I/O port: reading tells which events it takes, writing is an event. */
export class PvPanic implements Device {
  readonly #event: (event: PanicEvent) => void

  constructor(event: (event: PanicEvent) => void) {
    this.#event = event
  }

  read(_offset: number, data: Uint8Array): void {
    data.fill(0)
    data[0] = PANICKED | CRASH_LOADED
  }

  write(_offset: number, data: Uint8Array): void {
    const events = data[0]!
    if (events & CRASH_LOADED) this.#event('crash-loaded')
    else if (events & PANICKED) this.#event('panicked')
  }
}
