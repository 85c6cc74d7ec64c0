import { constants } from 'node:os'

const NAMES = ['SIGHUP', 'SIGINT', 'SIGTERM'] as const

/** A command was ended by a signal. Its exit code is a shell's: 128 plus the signal's number. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted'
  readonly code: number

  constructor(signal: NodeJS.Signals) {
    super(`interrupted by ${signal}`)
    this.code = 128 + constants.signals[signal]
  }
}

/** From here until `close()`, the first signal that asks us to end aborts `signal` with an `Interrupted`; further ones wait. */
export function catchSignals(): { readonly signal: AbortSignal; close(): void } {
  const controller = new AbortController()
  const interrupt = (name: NodeJS.Signals) => controller.abort(new Interrupted(name))
  for (const name of NAMES) process.on(name, interrupt)
  return {
    signal: controller.signal,
    close() {
      for (const name of NAMES) process.off(name, interrupt)
    },
  }
}
