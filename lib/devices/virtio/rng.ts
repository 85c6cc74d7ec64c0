import type { Json } from '../device.js'
import type { VirtioLink } from './device.js'
import { QueueError } from './queue-error.js'
import { TurnBasedDevice } from './turn-based.js'

const QUEUE_SIZE = 64
/** Bytes for one request: the driver asks again for the rest (virtio 1.2, 5.4.6.1: it need not be filled). */
const REQUEST_MAX = 1 << 16

/** The entropy device (virtio 1.2, 5.4): fills the driver's buffers with what `random` fills in. */
export class VirtioRng extends TurnBasedDevice {
  readonly type = 4
  readonly features = 0n
  readonly queueSizes = [QUEUE_SIZE]
  readonly config = new Uint8Array()
  readonly #random: (bytes: Uint8Array) => void

  /** @param random fills bytes, which are guest memory, with randomness */
  constructor(random: (bytes: Uint8Array) => void) {
    super()
    this.#random = random
  }

  saveState(): Json {
    return null
  }

  loadState(state: Json): void {
    if (state !== null) throw new TypeError('saved device state: an entropy device has none')
  }

  protected step({ queues: [queue] }: VirtioLink): boolean {
    const chain = queue && this.take(queue)
    if (!chain) return false
    // "The driver MUST NOT place driver-readable buffers into the queue" (5.4.6.1).
    if (chain.readable.length > 0) throw new QueueError('a request for randomness with a readable buffer')
    let written = 0
    for (const { bytes } of chain.writable) {
      const part = bytes.subarray(0, REQUEST_MAX - written)
      if (part.length === 0) break
      this.#random(part)
      written += part.length
    }
    this.give(queue, chain, written)
    return true
  }
}
