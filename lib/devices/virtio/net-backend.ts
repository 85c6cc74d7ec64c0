import type { ChainBatch } from './chain-batch.js'

/** What the receiver of a frame takes over from its sender, as the frame's virtio_net_hdr says (virtio 1.2, 5.1.6). */
export interface NetOffloads {
  /** A checksum may be missing (VIRTIO_NET_HDR_F_NEEDS_CSUM). */
  readonly checksum: boolean
  /** TCP over IPv4 may come in segments that are yet to be cut. */
  readonly tso4: boolean
  readonly tso6: boolean
}

export const NO_OFFLOADS: NetOffloads = { checksum: false, tso4: false, tso6: false }

/** What came of `receive`. */
export interface Received {
  /** Of each frame its length with its header, until the next call. The first begins in the first buffer, each further one in the next that is free. */
  readonly lengths: ArrayLike<number>
  /** Where true, more buffers are needed to go on. Else there is nothing more: `readable` tells when there is. */
  readonly more: boolean
}

/** Called on the event loop. */
export interface NetEvents {
  /** There is something to receive, after `receive` had nothing more to give. */
  readable(): void
  /** Frames are taken again, after `send` did not take them all. */
  writable(): void
  /** The network is gone, and does not come back. */
  gone(): void
}

/**
 * The other end of a network device's cable. Every frame begins with a virtio_net_hdr_v1, 12 bytes; on the way to the guest its
 * `num_buffers` is left to the device.
 */
export interface NetBackend {
  /** What it can take over from the guest, and leave to the guest. */
  readonly offloads: NetOffloads
  /** Tells what the guest takes over. */
  leaveToGuest(offloads: NetOffloads): void
  /** Begins: from now on it calls back, `readable` first where there is something. */
  start(events: NetEvents): void
  /**
   * Sends frames, all of them readable, and gives how many it has taken from the first on. It keeps none of their memory. One without runs is
   * none: it is taken, and nothing sent.
   */
  send(frames: ChainBatch): number
  /**
   * Fills buffers, all of them writable, with frames that are there. With `merge`, a frame goes on in the buffers that follow as far as it
   * needs them; else one that does not fit in a buffer is dropped.
   */
  receive(buffers: ChainBatch, merge: boolean): Received
  /** Drops the frame for which there were not enough buffers. */
  drop(): void
  close(): void | Promise<void>
}
