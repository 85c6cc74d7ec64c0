import type { Json } from '../device.js'
import type { Queue } from './queue.js'
import type { QueueError } from './queue-error.js'

/** What a started device has of its transport: the driver's queues, and the way to tell it something. */
export interface VirtioLink {
  /** By index; undefined where the driver has set up none. */
  readonly queues: readonly (Queue | undefined)[]
  /** The feature bits that both sides agreed on. */
  readonly features: bigint
  /** Chains were given back to `queue`: interrupts the driver if it wants to know (2.7.7). */
  used(queue: Queue): void
  /** Has `notify` called as if the driver had rung: where a device stopped before a queue was empty. */
  notify(index: number): void
  /** The host woke the device, not its driver, with so much to do: of its driver's notifications the transport knows by itself. */
  woken(found: number): void
  /** The configuration space has other content now (2.5, 2.3). */
  configChanged(): void
  /** The driver broke the rules: nothing more is done until it resets the device (2.1.2). */
  fail(error: QueueError): void
}

/**
 * A device as its transport sees it (virtio 1.2, chapters 2 and 5). What happens between `start` and `reset` is the driver's doing, and
 * hostile: `notify` may throw `QueueError`, which counts as `link.fail`; nothing else leaves a device, whose own failures are told to the
 * driver in the way of its kind.
 */
export interface VirtioDevice {
  /** Device id: 1 network, 2 block, 3 console, 4 entropy, 19 socket (chapter 5). */
  readonly type: number
  /** Feature bits of its kind that it offers. Those of queues and transport are added (chapter 6). */
  readonly features: bigint
  /** The largest size of each of its queues: powers of two. */
  readonly queueSizes: readonly number[]
  /** The device configuration space, as it is now. */
  readonly config: Uint8Array
  /** The driver writes to the configuration space: without this, it is read-only. */
  writeConfig?(offset: number, data: Uint8Array): void
  /** DRIVER_OK: from now on it may take chains. */
  start(link: VirtioLink): void
  /** The driver made chains available in queue `index`. */
  notify(index: number): void
  /**
   * Takes no further chain and resolves once it works on none: each one that it took is given back, or is part of `saveState`. Guest
   * memory is not touched from then on until `resume`.
   */
  quiesce(): Promise<void>
  /** Goes on after `quiesce`. A `notify` of every queue follows where it is started. */
  resume(): void
  /** The driver or the machine resets it: it forgets its link and all that the driver did. It is quiet at the time. */
  reset(): void
  /** What it has beside its queues. It is quiet at the time. */
  saveState(): Json
  /** Takes over what `saveState` gave; `start` follows where it was started. Throws `TypeError` where `state` is nothing that it gives. */
  loadState(state: Json): void
  /** The machine has ended: lets go of what it holds of the host. It is quiet at the time. */
  close(): void | Promise<void>
}
