import { EventEmitter } from 'node:events'
import { type MachineConfig, type MachineOptions, parseMachineConfig } from '../config/machine-config.js'
import { GuestError } from '../errors.js'
import { cap } from '../kvm/capabilities.js'
import type { VcpuExit } from '../kvm/exit.js'
import { Kvm } from '../kvm/kvm.js'
import { KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN } from '../kvm/structs.js'
import type { Vcpu } from '../kvm/vcpu.js'
import { VcpuThread } from '../kvm/vcpu-thread.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { buildMachine, type Parts } from './builder.js'
import type { Console } from './console.js'
import { crashReport, exitFacts } from './report.js'

/** How a machine ended. */
export type MachineEnd =
  /** The guest powered off. */
  | { readonly reason: 'shutdown' }
  /** The guest asked for a reset. */
  | { readonly reason: 'reset' }
  /** The guest wrote to its debug-exit device; `code` is `(value << 1) | 1`. */
  | { readonly reason: 'debug-exit'; readonly code: number }
  /** `stop()`. */
  | { readonly reason: 'stopped' }
  /** The guest cannot go on: a triple fault, or KVM cannot run it. `report` has the exit's facts and the registers. */
  | { readonly reason: 'crash'; readonly message: string; readonly report: string }

export type MachineState = 'created' | 'running' | 'paused' | 'ended'

interface MachineEvents {
  shutdown: []
  reset: []
  crash: [end: Extract<MachineEnd, { reason: 'crash' }>]
  /** After any of the above, and after everything is released. */
  end: [end: MachineEnd]
}

/**
 * An L1 machine: vCPUs on threads of their own, and a PC's devices on this event loop.
 *
 * ```ts
 * const l1 = await Machine.create({ kernel: 'vmlinuz', initrd: 'initrd.cpio', memory: '1G' })
 * l1.console.pipe(process.stdout)
 * await l1.start()
 * await l1.console.expect(/login:/)
 * ```
 *
 * Once the guest has ended, by itself or by `stop()`, everything is released: threads, descriptors, memory.
 */
export class Machine extends EventEmitter<MachineEvents> {
  readonly config: MachineConfig
  readonly #parts: Parts
  readonly #threads: readonly VcpuThread[]
  #state: MachineState = 'created'
  #ended: Promise<MachineEnd> | undefined
  readonly #wait: Promise<MachineEnd>
  #resolve!: (end: MachineEnd) => void
  #reject!: (error: Error) => void

  /**
   * Checks the configuration, creates the VM and loads the kernel. Nothing runs yet.
   * @throws {ConfigError} something asked for is wrong or cannot be had here: names the field, its value and the remedy
   * @throws {KvmError} KVM is not there, or refused
   */
  static async create(options: MachineOptions): Promise<Machine> {
    // What can be wrong without KVM is told first.
    parseMachineConfig(options)
    using kvm = Kvm.open()
    return new Machine(kvm, parseMachineConfig(options, { vcpus: kvm.checkExtension(cap.MAX_VCPUS) }))
  }

  private constructor(kvm: Kvm, config: MachineConfig) {
    super()
    this.config = config
    this.#wait = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    // Who does not wait is told by the events.
    this.#wait.catch(() => {})
    this.#parts = buildMachine(kvm, config, {
      powerOff: () => void this.#end({ reason: 'shutdown' }),
      reset: () => void this.#end({ reason: 'reset' }),
      debugExit: code => void this.#end({ reason: 'debug-exit', code }),
    })
    this.#threads = this.#parts.vcpus.map(
      vcpu =>
        new VcpuThread(
          vcpu,
          exit => this.#handle(vcpu, exit),
          error => this.#fail(vcpu, error),
        ),
    )
  }

  get state(): MachineState {
    return this.#state
  }

  /** The serial console, COM1. */
  get console(): Console {
    return this.#parts.console
  }

  /** Guest-physical memory. */
  get memory(): GuestMemory {
    return this.#parts.memory
  }

  /** The vCPUs; their state can be read and set while the machine is paused or has not started. */
  get vcpus(): readonly Vcpu[] {
    return this.#parts.vcpus
  }

  /** Starts the vCPUs. While they run, the process stays alive. */
  async start(): Promise<void> {
    this.#require('created', 'start')
    this.#state = 'running'
    for (const thread of this.#threads) thread.start()
  }

  /** Takes every vCPU out of KVM_RUN, with pending I/O completed. No effect where the machine is paused. */
  async pause(): Promise<void> {
    if (this.#state === 'paused') return
    this.#require('running', 'pause')
    await Promise.all(this.#threads.map(thread => thread.pause()))
    this.#parts.uart.flush()
    // The guest may have ended in the very exit that was completed.
    this.#require('running', 'pause')
    this.#state = 'paused'
  }

  /** Lets a paused machine go on. */
  async resume(): Promise<void> {
    this.#require('paused', 'resume')
    this.#state = 'running'
    for (const thread of this.#threads) thread.resume()
  }

  /** Ends the machine, as pulling the plug does, and releases everything. No effect where it has ended. */
  async stop(): Promise<void> {
    await this.#end({ reason: 'stopped' })
  }

  /**
   * Resolves once the machine has ended and everything is released. A guest's crash is an end as others are.
   * @throws the error of a device that failed: a bug of ours
   */
  wait(): Promise<MachineEnd> {
    return this.#wait
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  #require(state: MachineState, what: string): void {
    if (this.#state !== state) throw new GuestError(`cannot ${what}: the machine is ${this.#state}`)
  }

  #handle(vcpu: Vcpu, exit: VcpuExit): void {
    const { ports, mmio } = this.#parts
    switch (exit.reason) {
      case 'io-out':
        ports.writeRepeated(exit.port, exit.size, exit.data)
        break
      case 'io-in':
        ports.readRepeated(exit.port, exit.size, exit.data)
        break
      case 'mmio-write':
        mmio.write(exit.address, exit.data)
        break
      case 'mmio-read':
        mmio.read(exit.address, exit.data)
        break
      case 'system-event':
        if (exit.type === KVM_SYSTEM_EVENT_SHUTDOWN) void this.#end({ reason: 'shutdown' })
        else if (exit.type === KVM_SYSTEM_EVENT_RESET) void this.#end({ reason: 'reset' })
        else this.#crash(vcpu, exit)
        break
      case 'intr':
        break
      default:
        this.#crash(vcpu, exit)
    }
  }

  #crash(vcpu: Vcpu, exit: VcpuExit): void {
    const message = exit.reason === 'shutdown' ? 'triple fault' : exitFacts(exit)
    void this.#end({ reason: 'crash', message, report: crashReport(vcpu, this.memory, exit) })
  }

  #fail(vcpu: Vcpu, error: Error): void {
    const ours = error.name !== 'KvmError'
    const report = crashReport(vcpu, this.memory)
    void this.#end({ reason: 'crash', message: error.message, report }, ours ? error : undefined)
  }

  #end(end: MachineEnd, failure?: Error): Promise<MachineEnd> {
    this.#ended ??= this.#release(end, failure)
    return this.#ended
  }

  async #release(end: MachineEnd, failure: Error | undefined): Promise<MachineEnd> {
    const { uart, console, vm } = this.#parts
    await Promise.all(this.#threads.map(thread => thread.stop()))
    this.#state = 'ended'
    uart.flush()
    console.finish()
    vm.close()
    if (failure) this.#reject(failure)
    else this.#resolve(end)
    if (end.reason === 'crash') this.emit('crash', end)
    else if (end.reason === 'shutdown' || end.reason === 'reset') this.emit(end.reason)
    this.emit('end', end)
    return end
  }
}
