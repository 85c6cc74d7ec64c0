/** The driver broke the rules of a virtqueue: the device needs a reset (virtio 1.2, 2.1.2). What the guest does is hostile: devices expect this. */
export class QueueError extends Error {
  override readonly name = 'QueueError'
}
