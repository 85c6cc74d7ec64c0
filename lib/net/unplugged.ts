import type { ChainBatch } from '../devices/virtio/chain-batch.js'
import {
  type NetBackend,
  type NetEvents,
  type NetOffloads,
  NO_OFFLOADS,
  type Received,
} from '../devices/virtio/net-backend.js'

/** No cable at all. */
export class Unplugged implements NetBackend {
  readonly offloads: NetOffloads

  /** @param offloads what the card has offered to its driver with the cable that it had */
  constructor(offloads = NO_OFFLOADS) {
    this.offloads = offloads
  }

  leaveToGuest(): void {}

  start(events: NetEvents): void {
    events.gone()
  }

  send(frames: ChainBatch): number {
    return frames.count
  }

  receive(): Received {
    return { lengths: [], more: false }
  }

  drop(): void {}

  close(): void {}
}
