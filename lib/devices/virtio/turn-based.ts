import type { Json } from '../device.js'
import type { Chain } from './chain.js'
import type { VirtioDevice, VirtioLink } from './device.js'
import type { Queue } from './queue.js'
import { QueueError } from './queue-error.js'

/** Milliseconds that a device works before others have their turn. */
const TURN = 2

/**
 * A device that is done with a chain within the call that took it. It works in turns, so that a guest that always has more does not hold
 * the event loop, and touches neither queues nor memory while it is quiet, as it is until the first `resume`.
 */
export abstract class TurnBasedDevice implements VirtioDevice {
  abstract readonly type: number
  abstract readonly features: bigint
  abstract readonly queueSizes: readonly number[]
  abstract readonly config: Uint8Array
  #link: VirtioLink | undefined
  #quiet = true
  #working = false
  /** It was asked to work while it did. */
  #again = false
  #next: NodeJS.Immediate | undefined
  readonly #given = new Set<Queue>()

  start(link: VirtioLink): void {
    this.#link = link
  }

  notify(_index: number): void {
    this.work()
  }

  async quiesce(): Promise<void> {
    this.#quiet = true
    this.#cancelTurn()
  }

  resume(): void {
    this.#quiet = false
    this.work()
  }

  reset(): void {
    this.#link = undefined
    this.#cancelTurn()
  }

  close(): void | Promise<void> {
    this.reset()
  }

  abstract saveState(): Json
  abstract loadState(state: Json): void

  /** Does one thing, such as one chain. False where nothing is to be done before it is notified or told otherwise. */
  protected abstract step(link: VirtioLink): boolean

  /** The driver's queues and what it agreed to, while the driver has it started and keeps the rules. */
  protected get link(): VirtioLink | undefined {
    return this.#link
  }

  /** Takes up work where there is some: `step` is called for it. */
  protected work(): void {
    if (this.#next === undefined) this.#turn()
  }

  /** The next chain. Where there is none, the driver notifies of the next one. */
  protected take(queue: Queue): Chain | undefined {
    let chain = queue.pop()
    if (!chain) {
      if (!queue.enableNotifications()) return undefined
      chain = queue.pop()
    }
    queue.disableNotifications()
    return chain
  }

  /** Gives a chain back, of which `written` bytes were written. The driver is told at the end of the turn. */
  protected give(queue: Queue, chain: Chain, written: number): void {
    queue.push(chain, written)
    this.#given.add(queue)
  }

  #turn(): void {
    const link = this.#link
    this.#again = this.#working
    if (!link || this.#quiet || this.#working) return
    this.#working = true
    try {
      const end = performance.now() + TURN
      let more = true
      while (more && performance.now() < end) {
        this.#again = false
        more = this.step(link) || this.#again
      }
      if (more) this.#next = setImmediate(this.#nextTurn)
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      this.#link = undefined
      link.fail(error)
    } finally {
      this.#working = false
      for (const queue of this.#given) link.used(queue)
      this.#given.clear()
    }
  }

  readonly #nextTurn = (): void => {
    this.#next = undefined
    this.#turn()
  }

  #cancelTurn(): void {
    clearImmediate(this.#next)
    this.#next = undefined
  }
}
