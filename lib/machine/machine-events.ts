import type { PanicEvent } from '../devices/pvpanic.js'

export type MachineState = 'created' | 'running' | 'paused' | 'ended'

/** How a machine ended. */
export type MachineEnd =
  /** The guest powered off. */
  | { readonly reason: 'shutdown' }
  /** The guest asked for a reset, and is not to boot again (`reboot`). `tail`: the console's last lines. */
  | { readonly reason: 'reset'; readonly tail: string }
  /** The guest wrote to its debug-exit device; `code` is `(value << 1) | 1`. */
  | { readonly reason: 'debug-exit'; readonly code: number }
  /** `stop()`. */
  | { readonly reason: 'stopped' }
  /**
   * The guest cannot go on: a triple fault, or KVM cannot run it, or it cannot boot again. `report` has the exit's facts, the
   * registers and the console's last lines.
   */
  | { readonly reason: 'crash'; readonly message: string; readonly report: string }

/** What a guest told of its own end. */
export interface GuestPanic {
  readonly event: PanicEvent
  /** The console's last lines. */
  readonly tail: string
}

/** A guest boots again, or has ended with its reset. */
export interface GuestReset {
  /** The console's last lines before it. */
  readonly tail: string
}

export interface MachineEvents {
  shutdown: []
  /**
   * The host failed a device, which the guest sees as a failure of the device: a full disk, say. With `cpu`: the host lacks what the CPU
   * model has (`check`); told when the machine starts.
   */
  warning: [device: string, error: Error]
  /** The machine was reset, by its guest or `reset()`, and goes on; with `reboot: false` it has ended. */
  reset: [reset: GuestReset]
  /** The guest's kernel told that it panicked (`pvpanic`). What comes of that, a reset mostly, is its own choice. */
  panic: [panic: GuestPanic]
  crash: [end: Extract<MachineEnd, { reason: 'crash' }>]
  /** After whatever ends it, and after everything is released. */
  end: [end: MachineEnd]
}
