import { addon, type NativeEventFd } from './binding.js'
import { throwLater } from './throw-later.js'

/**
 * An `eventfd(2)`: a 64-bit counter in the kernel. Bound to a GSI it raises an interrupt without an exit to user space
 * (`vm.irqfd`), bound to an address it takes the guest's writes without one (`vm.ioeventfd`).
 */
export class EventFd {
  /** @internal */
  readonly native: NativeEventFd = new addon.EventFd()

  /** Adds `count` to the counter. */
  signal(count = 1): void {
    this.native.signal(count)
  }

  /** Takes the counter and sets it to 0. Does not wait: gives 0 where nothing was signalled. */
  read(): number {
    return this.native.read()
  }

  /**
   * Calls `onEvent` on the event loop with the counter each time it was signalled, and sets it to 0. While watched, it
   * keeps the process alive. A second call replaces the callback. What the callback throws is an uncaught exception.
   */
  watch(onEvent: (count: number) => void): void {
    this.native.watch(count => {
      try {
        onEvent(count)
      } catch (error) {
        throwLater(error)
      }
    })
  }

  unwatch(): void {
    this.native.unwatch()
  }

  /** Closes the descriptor; what the kernel bound to it is let go. */
  close(): void {
    this.native.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}
