import type { EventEmitter } from 'node:events'
import type { MachineConfig } from '../config/machine-config.js'
import { GuestError } from '../errors.js'
import type { VcpuExit } from '../kvm/exit.js'
import { throwLater } from '../kvm/throw-later.js'
import type { Vcpu } from '../kvm/vcpu.js'
import { VcpuThread } from '../kvm/vcpu-thread.js'
import type { Parts } from './builder.js'
import type { Console } from './console.js'
import { handleExit } from './exits.js'
import type { GuestReset, MachineEnd, MachineEvents, MachineState } from './machine-events.js'
import type { PlatformEvents } from './platform.js'
import { crashReport, exitFacts } from './report.js'
import { prepareReset } from './reset.js'

/** What is done while no vCPU runs. The controller ends it where the machine ends; its signal costs time, so it is made if asked for. */
type PausedAct<T> = (abort: AbortController, wasRunning: boolean) => T | Promise<T>

interface Operation {
  readonly what: string
  readonly abort: AbortController
  readonly done: Promise<unknown>
}

/** A machine's vCPU threads, and when they run: it starts, comes to rest, goes on, is reset and ends, by its guest or its owner. */
export class LifeCycle {
  readonly parts: Parts
  readonly #config: MachineConfig
  readonly #events: EventEmitter<MachineEvents>
  readonly #threads: readonly VcpuThread[]
  #state: MachineState
  /** What is being done to the paused machine, and must not be disturbed. */
  #operation: Operation | undefined
  /** The vCPUs are on their way out of KVM_RUN. */
  #pausing: Promise<void> | undefined
  /** The guest has asked for a reset: it comes once no vCPU runs. */
  #resetAsked = false
  /** A reset that the guest has asked for. */
  #guestReset: Promise<void> | undefined
  #ended: Promise<MachineEnd> | undefined
  readonly #wait: Promise<MachineEnd>
  #resolve!: (end: MachineEnd) => void
  #reject!: (error: Error) => void

  constructor(
    config: MachineConfig,
    state: MachineState,
    build: (events: PlatformEvents) => Parts,
    events: EventEmitter<MachineEvents>,
  ) {
    this.#config = config
    this.#state = state
    this.#events = events
    this.#wait = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    // Who does not wait is told by the events.
    this.#wait.catch(() => {})
    this.parts = build({
      powerOff: () => void this.end({ reason: 'shutdown' }),
      reset: () => this.#resetByGuest(),
      debugExit: code => void this.end({ reason: 'debug-exit', code }),
      panic: event => {
        const panic = { event, tail: this.#tail() }
        // A listener that throws is not to stop the vCPU.
        process.nextTick(() => this.#events.emit('panic', panic))
      },
    })
    this.#threads = this.parts.vcpus.map(vcpu => this.#threadOf(vcpu))
  }

  get state(): MachineState {
    return this.#state
  }

  /** The console that was asked for. */
  get console(): Console {
    return this.parts.virtio.console ?? this.parts.console
  }

  start(): void {
    this.#require('created', 'start')
    this.#undisturbed('start')
    this.goOn()
  }

  async pause(): Promise<void> {
    if (this.#guestReset) await this.#guestReset
    if (this.#state === 'paused') return
    this.#undisturbed('pause')
    await this.#pause()
  }

  async resume(): Promise<void> {
    if (this.#guestReset) await this.#guestReset
    this.#require('paused', 'resume')
    this.#undisturbed('resume')
    this.goOn()
  }

  /** Lets the vCPUs, none of which runs, run. */
  goOn(): void {
    this.#state = 'running'
    for (const thread of this.#threads) {
      if (thread.state === 'stopped') thread.start()
      else thread.resume()
    }
    this.parts.virtio.resume()
    this.parts.rtc.resume()
  }

  /** Does something to the machine while no vCPU runs, and lets it go on if it ran. */
  async whilePaused<T>(what: string, act: PausedAct<T>): Promise<T> {
    if (this.#guestReset) await this.#guestReset
    this.#undisturbed(what)
    if (this.#state === 'ended') throw new GuestError(`cannot ${what}: the machine is ended`)
    const abort = new AbortController()
    const done = this.#actPaused(act, abort)
    this.#operation = { what, abort, done }
    try {
      return await done
    } finally {
      this.#operation = undefined
    }
  }

  async reset(): Promise<void> {
    const reset = await this.whilePaused('reset', () => this.#reset())
    this.#events.emit('reset', reset)
  }

  /** Ends the machine, once. `failure`: a device of ours failed, which whoever waits is told. */
  end(end: MachineEnd, failure?: Error): Promise<MachineEnd> {
    this.#ended ??= this.#release(end, failure)
    return this.#ended
  }

  wait(): Promise<MachineEnd> {
    return this.#wait
  }

  #threadOf(vcpu: Vcpu): VcpuThread {
    const { onTripleFault } = this.#config
    const outcomes = {
      shutdown: () => void this.end({ reason: 'shutdown' }),
      reset: () => this.#resetByGuest(),
      crash: (exit: VcpuExit) => this.#crash(vcpu, exit),
    }
    return new VcpuThread(
      vcpu,
      exit => handleExit(this.parts, exit, outcomes, onTripleFault),
      error => this.#fail(vcpu, error),
    )
  }

  async #actPaused<T>(act: PausedAct<T>, abort: AbortController): Promise<T> {
    const wasRunning = this.#state === 'running'
    if (wasRunning) await this.#pause()
    try {
      return await act(abort, wasRunning)
    } finally {
      if (wasRunning && this.#state === 'paused' && !this.#ended) this.goOn()
    }
  }

  async #pause(): Promise<void> {
    this.#require('running', 'pause')
    this.#pausing ??= this.#comeToRest()
    await this.#pausing
  }

  async #comeToRest(): Promise<void> {
    try {
      await Promise.all(this.#threads.map(thread => thread.pause()))
      this.parts.rtc.pause()
      await this.parts.virtio.pause()
      this.parts.uart.flush()
      // The guest may have ended in the very exit that was completed, or asked for a reset.
      const reset = this.#resetAsked && !this.#ended ? this.#reset() : undefined
      if (this.#ended) throw new GuestError('cannot pause: the machine is ended')
      this.#state = 'paused'
      if (reset) this.#events.emit('reset', reset)
    } finally {
      this.#pausing = undefined
    }
  }

  /** The guest's reset takes effect when every vCPU has stopped; the one that asked for it executes nothing in between. */
  #resetByGuest(): void {
    if (this.#resetAsked || this.#ended) return
    if (!this.#config.reboot) {
      void this.end({ reason: 'reset', tail: this.#tail() })
      return
    }
    this.#resetAsked = true
    // Whoever pauses the machine brings it about.
    if (this.#pausing) return
    const done = this.whilePaused('reset', () => {})
    this.#guestReset = done
      .catch((error: Error) => {
        if (!this.#ended) throwLater(error)
      })
      .finally(() => {
        this.#guestReset = undefined
      })
  }

  /** Resets the machine, none of whose vCPUs runs. Ends it where that ends half done, or its guest asked for what cannot be done. */
  #reset(): GuestReset {
    let committed = this.#resetAsked
    this.#resetAsked = false
    if (this.#state === 'created') throw new GuestError('cannot reset: the machine is created')
    const tail = this.#tail()
    try {
      const reset = prepareReset(this.parts, this.#config)
      committed = true
      reset()
    } catch (error) {
      const message = `it cannot be reset: ${(error as Error).message}`
      if (committed) void this.end({ reason: 'crash', message, report: `the console's last lines:\n${tail}` })
      throw error
    }
    return { tail }
  }

  #tail(): string {
    this.parts.uart.flush()
    return this.console.lastLines()
  }

  #undisturbed(what: string): void {
    if (this.#operation) throw new GuestError(`cannot ${what}: a ${this.#operation.what} is being made`)
  }

  #require(state: MachineState, what: string): void {
    // It may be about to end.
    const now = this.#ended ? 'ended' : this.#state
    if (now !== state) throw new GuestError(`cannot ${what}: the machine is ${now}`)
  }

  #crash(vcpu: Vcpu, exit: VcpuExit): void {
    const message = exit.reason === 'shutdown' ? 'triple fault' : exitFacts(exit)
    const report = crashReport(vcpu, this.parts.memory, { exit, tail: this.#tail() })
    void this.end({ reason: 'crash', message, report })
  }

  #fail(vcpu: Vcpu, error: Error): void {
    const ours = error.name !== 'KvmError'
    const report = crashReport(vcpu, this.parts.memory, { tail: this.#tail() })
    void this.end({ reason: 'crash', message: error.message, report }, ours ? error : undefined)
  }

  async #release(end: MachineEnd, failure: Error | undefined): Promise<MachineEnd> {
    const { uart, rtc, console, virtio, vm } = this.parts
    // What is being written reads the memory that is to go.
    this.#operation?.abort.abort(new GuestError('the machine has ended'))
    await this.#operation?.done.catch(() => {})
    await Promise.all(this.#threads.map(thread => thread.stop()))
    rtc.pause()
    await virtio.pause()
    this.#state = 'ended'
    uart.flush()
    console.finish()
    virtio.console?.finish()
    // What a device has of guest memory is not touched any more.
    vm.close()
    await virtio.close()
    if (failure) this.#reject(failure)
    else this.#resolve(end)
    if (end.reason === 'crash') this.#events.emit('crash', end)
    else if (end.reason === 'shutdown') this.#events.emit('shutdown')
    else if (end.reason === 'reset') this.#events.emit('reset', { tail: end.tail })
    this.#events.emit('end', end)
    return end
  }
}
