/**
 * Throws on the event loop, as an uncaught exception. Node only warns of what a callback throws into native code
 * (DEP0168), and goes on as if nothing had happened.
 */
export function throwLater(error: unknown): void {
  queueMicrotask(() => {
    throw error
  })
}
