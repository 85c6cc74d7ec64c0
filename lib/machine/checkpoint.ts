import { closeDisks, type DiskStates } from './disk-states.js'
import type { RamImage } from './ram.js'
import type { Moment } from './state.js'

/** A moment of a running machine, kept in memory: `machine.rollback()` goes back to it, as often as wanted. */
export class Checkpoint {
  /** @internal */
  readonly moment: Moment
  /** @internal */
  readonly ram: RamImage
  /** @internal */
  readonly disks: DiskStates

  #closed = false

  /** @internal */
  constructor(moment: Moment, ram: RamImage, disks: DiskStates) {
    this.moment = moment
    this.ram = ram
    this.disks = disks
    for (const image of ram) image.retain()
  }

  /** Whether it was given up. */
  get closed(): boolean {
    return this.#closed
  }

  /** Gives it up, and the memory that only it has need of. Without this, the garbage collector does so in time. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    for (const image of this.ram) image.release()
    closeDisks(this.disks)
  }

  [Symbol.dispose](): void {
    this.close()
  }
}
