import { KvmError } from '../errors.js'
import { addon, type NativeVcpuThread, ThreadEvent } from './binding.js'
import type { VcpuExit } from './exit.js'
import { throwLater } from './throw-later.js'
import type { Vcpu } from './vcpu.js'

export type VcpuThreadState = 'stopped' | 'running' | 'pausing' | 'paused' | 'stopping' | 'closed'

/** Handles an exit. The vCPU goes on when it returns, or when the promise that it returns is fulfilled. */
export type ExitHandler = (exit: VcpuExit) => void | Promise<void>

/**
 * Runs a vCPU on a native thread of its own: KVM_RUN never blocks the event loop. Exits come to `onExit` on the event
 * loop, one at a time; while bursts of them last, both sides poll instead of waking each other.
 *
 * `pause()` and `stop()` take the vCPU out of KVM_RUN by `immediate_exit` and a signal to its thread, also when the
 * guest spins with interrupts off, and complete a pending I/O first: the vCPU's state is whole then.
 */
export class VcpuThread {
  readonly vcpu: Vcpu
  readonly #native: NativeVcpuThread
  readonly #onExit: ExitHandler
  readonly #onError: (error: Error) => void
  #state: VcpuThreadState = 'stopped'
  /** An exit whose handler failed: it is unanswered, so that nothing runs on before somebody decides. */
  #held = false
  #waiting: (() => void)[] = []

  /**
   * @param onError what to do when a handler throws or KVM_RUN fails: the vCPU stands still then, until `stop()` or
   *   `close()`. By default the error is thrown on the event loop.
   * @throws {KvmError} the vCPU has a thread already (EBUSY)
   */
  constructor(vcpu: Vcpu, onExit: ExitHandler, onError: (error: Error) => void = throwLater) {
    this.vcpu = vcpu
    this.#onExit = onExit
    this.#onError = onError
    this.#native = new addon.VcpuThread(vcpu.native, (event, value) => this.#handle(event, value))
    vcpu.threads.add(this)
  }

  get state(): VcpuThreadState {
    return this.#state
  }

  /** Starts the thread and the vCPU. While it runs, it keeps the process alive. */
  start(): void {
    if (this.#state === 'running') return
    this.#native.start()
    this.#state = 'running'
  }

  /** Resolves once the vCPU is out of KVM_RUN, with a pending I/O completed. At once where it does not run. */
  pause(): Promise<void> {
    if (this.#state === 'running') {
      this.#state = 'pausing'
      this.#native.pause()
      this.#release()
    }
    return this.#settled()
  }

  /**
   * Lets a paused vCPU go on.
   * @throws {KvmError} it is not paused (EINVAL)
   */
  resume(): void {
    this.#native.resume()
    this.#state = 'running'
  }

  /** Resolves once the vCPU is out of KVM_RUN and its thread has ended. `start()` may follow. */
  stop(): Promise<void> {
    if (this.#state === 'running' || this.#state === 'pausing' || this.#state === 'paused') {
      this.#state = 'stopping'
      this.#native.stop()
      this.#release()
    }
    return this.#settled()
  }

  /** Ends the thread now, waiting the moment until it is out of KVM_RUN; a pending I/O is not completed. */
  close(): void {
    this.#native.close()
    this.vcpu.threads.delete(this)
    this.#arrive('closed')
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /** Returns true where the vCPU may go on. */
  #handle(event: number, value: number): boolean {
    switch (event) {
      case ThreadEvent.exit:
        return this.#handleExit()
      case ThreadEvent.paused:
        // A stop that came after the pause goes on from here.
        if (this.#state === 'stopping') this.#native.stop()
        else this.#arrive('paused')
        return false
      case ThreadEvent.stopped:
        this.#arrive('stopped')
        return false
      default:
        // Running on would only fail again.
        this.close()
        this.#onError(new KvmError('KVM_RUN', value))
        return false
    }
  }

  #handleExit(): boolean {
    try {
      const answer = this.#onExit(this.vcpu.readExit())
      if (!(answer instanceof Promise)) return true
      answer.then(
        () => this.#native.answer(),
        (error: unknown) => this.#hold(error),
      )
    } catch (error) {
      this.#hold(error)
    }
    return false
  }

  #hold(error: unknown): void {
    this.#held = true
    this.#onError(error instanceof Error ? error : new Error(String(error)))
    if (this.#state !== 'running') this.#release()
  }

  /** Answers an exit whose handler failed: with pause or stop commanded, that completes it and does not run the guest. */
  #release(): void {
    if (!this.#held) return
    this.#held = false
    this.#native.answer()
  }

  #arrive(state: VcpuThreadState): void {
    this.#state = state
    const waiting = this.#waiting
    this.#waiting = []
    for (const resolve of waiting) resolve()
  }

  async #settled(): Promise<void> {
    while (this.#state === 'pausing' || this.#state === 'stopping') {
      await new Promise<void>(resolve => this.#waiting.push(resolve))
    }
  }
}
