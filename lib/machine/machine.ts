import { EventEmitter } from 'node:events'
import type { ClockMode } from '../arch/x86_64/vm-state.js'
import {
  type MachineConfig,
  type MachineOptions,
  parseMachineConfig,
  resetPolicy,
  type TripleFault,
} from '../config/machine-config.js'
import { saveConfig } from '../config/saved-config.js'
import { withVsockPath } from '../config/vsock.js'
import type { PanicEvent } from '../devices/pvpanic.js'
import { ConfigError, GuestError, SnapshotError } from '../errors.js'
import { cap } from '../kvm/capabilities.js'
import type { VcpuExit } from '../kvm/exit.js'
import { Kvm } from '../kvm/kvm.js'
import { KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN } from '../kvm/structs.js'
import { throwLater } from '../kvm/throw-later.js'
import type { Vcpu } from '../kvm/vcpu.js'
import { VcpuThread } from '../kvm/vcpu-thread.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { readSnapshot } from '../snapshot/read.js'
import { type SnapshotInfo, writeSnapshot } from '../snapshot/save.js'
import { verifyMemory } from '../snapshot/verify.js'
import { aboutVcpu } from './about.js'
import { buildMachine, type Parts, rebuildMachine } from './builder.js'
import { Checkpoint } from './checkpoint.js'
import type { Console } from './console.js'
import { closeDisks, diskFiles, freezeDisks, loadDisks, thawDisks } from './disk-states.js'
import { closePeripherals, openPeripherals, type Peripheral } from './peripherals.js'
import type { PlatformEvents } from './platform.js'
import { crashReport, exitFacts } from './report.js'
import { prepareReset } from './reset.js'
import { checkSnapshot, openImages } from './restore.js'
import { applyMoment, takeMoment } from './state.js'
import type { Vsock } from './vsock.js'

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

export interface RestoreOptions {
  /**
   * What becomes of the time that has passed since: the guest's clocks make up for it (`realtime`, the default), or go on from
   * where they stood.
   */
  readonly clock?: ClockMode
  /** Reads all of the memory first and checks it against its sums. */
  readonly verify?: boolean
  /** Told how much of the memory has been checked, in bytes. */
  readonly onProgress?: (done: number, total: number) => void
  /** Ends the check; its reason is thrown. */
  readonly signal?: AbortSignal
  /** As in `MachineOptions`. Default: what the machine had that was saved. */
  readonly reboot?: boolean
  /** As in `MachineOptions`. Default: what the machine had that was saved. */
  readonly onTripleFault?: TripleFault
  /** The Unix socket of its vsock, in place of the one that it had; null for none. */
  readonly vsockPath?: string | null | undefined
}

export interface SnapshotOptions {
  /** Only what was written since the last snapshot. */
  readonly differential?: boolean
  /** Told how much of the memory has been written, in bytes. */
  readonly onProgress?: (done: number, total: number) => void
  /** Ends it, nothing left behind; its reason is thrown, and the machine goes on. */
  readonly signal?: AbortSignal
}

interface SnapshotBase {
  readonly directory: string
  readonly id: string
}

/** What is done while no vCPU runs. The controller ends it where the machine ends; its signal costs time, so it is made if asked for. */
type PausedAct<T> = (abort: AbortController, wasRunning: boolean) => Promise<T>

interface Operation {
  readonly what: string
  readonly abort: AbortController
  readonly done: Promise<unknown>
}

export type MachineState = 'created' | 'running' | 'paused' | 'ended'

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

interface MachineEvents {
  shutdown: []
  /** The host failed a device, which the guest sees as a failure of the device: a full disk, say. */
  warning: [device: string, error: Error]
  /** The machine was reset, by its guest or `reset()`, and goes on; with `reboot: false` it has ended. */
  reset: [reset: GuestReset]
  /** The guest's kernel told that it panicked (`pvpanic`). What comes of that, a reset mostly, is its own choice. */
  panic: [panic: GuestPanic]
  crash: [end: Extract<MachineEnd, { reason: 'crash' }>]
  /** After whatever ends it, and after everything is released. */
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
  #state: MachineState
  /** What is being done to the paused machine, and must not be disturbed. */
  #operation: Operation | undefined
  /** The vCPUs are on their way out of KVM_RUN. */
  #pausing: Promise<void> | undefined
  /** The guest has asked for a reset: it comes once no vCPU runs. */
  #resetAsked = false
  /** A reset that the guest has asked for. */
  #guestReset: Promise<void> | undefined
  /** The snapshot on disk that a differential one is based on. */
  #base: SnapshotBase | undefined
  readonly #checkpoints = new WeakSet<Checkpoint>()
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
    const config = parseMachineConfig(options, { vcpus: kvm.checkExtension(cap.MAX_VCPUS) })
    return await Machine.#make(config, 'created', (peripherals, events) => {
      return buildMachine(kvm, config, peripherals, events)
    })
  }

  /** Opens what a machine needs of the host, then builds it with that. */
  static async #make(
    config: MachineConfig,
    state: MachineState,
    build: (peripherals: readonly Peripheral[], events: PlatformEvents) => Parts,
    host?: { readonly unplugged: boolean },
  ): Promise<Machine> {
    let machine: Machine | undefined
    const peripherals = await openPeripherals(config, (name, error) => machine?.emit('warning', name, error), host)
    try {
      machine = new Machine(config, state, events => build(peripherals, events))
      return machine
    } catch (error) {
      await closePeripherals(peripherals)
      throw error
    }
  }

  /**
   * Makes a machine that goes on where `snapshot()` left another, in this or another process: it is paused, `resume()` lets it
   * go on. Its memory is mapped, not read, so this takes no longer for a larger one; the snapshot's files must stay unchanged
   * meanwhile (they may be replaced or removed as a whole).
   * @throws {SnapshotError} it is none, or damaged, or this host lacks a feature that its vCPUs have: it is named
   * @throws {ConfigError} its configuration is beyond what this host has
   * @throws {KvmError} KVM is not there
   */
  static async restore(directory: string, options: RestoreOptions = {}): Promise<Machine> {
    const { clock = 'realtime', verify = false } = options
    if (verify) await verifyMemory(directory, options)
    const snapshot = await readSnapshot(directory)
    using kvm = Kvm.open()
    const saved = withVsockPath(checkSnapshot(snapshot, kvm), options.vsockPath)
    const { reboot = saved.reboot, onTripleFault = saved.onTripleFault } = options
    const config = { ...saved, ...resetPolicy({ reboot, onTripleFault }) }
    try {
      const images = openImages(snapshot)
      const machine = await Machine.#make(config, 'paused', (peripherals, events) => {
        loadDisks(peripherals, snapshot.files)
        return rebuildMachine(kvm, images, config, peripherals, events, parts =>
          applyMoment(parts, snapshot.state, { clock }),
        )
      })
      machine.#parts.ram.saved()
      machine.#base = { directory: snapshot.directory, id: snapshot.id }
      return machine
    } catch (error) {
      if (error instanceof ConfigError) throw error
      throw new SnapshotError(directory, (error as Error).message, 'it cannot be restored here', { cause: error })
    }
  }

  private constructor(config: MachineConfig, state: MachineState, build: (events: PlatformEvents) => Parts) {
    super()
    this.config = config
    this.#state = state
    this.#wait = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    // Who does not wait is told by the events.
    this.#wait.catch(() => {})
    this.#parts = build({
      powerOff: () => void this.#end({ reason: 'shutdown' }),
      reset: () => this.#resetByGuest(),
      debugExit: code => void this.#end({ reason: 'debug-exit', code }),
      panic: event => {
        const panic = { event, tail: this.#tail() }
        // A listener that throws is not to stop the vCPU.
        process.nextTick(() => this.emit('panic', panic))
      },
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

  /** The console that was asked for: COM1 or, with `console: 'virtio'`, hvc0. */
  get console(): Console {
    return this.#parts.virtio.console ?? this.serial
  }

  /** The serial console, COM1. */
  get serial(): Console {
    return this.#parts.console
  }

  /**
   * Streams to and from the guest.
   * @throws {ConfigError} the machine has no vsock
   */
  get vsock(): Vsock {
    const { vsock } = this.#parts.virtio
    if (!vsock) throw new ConfigError('vsock', null, 'this machine has none', 'create it with vsock: {}')
    return vsock
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
    this.#undisturbed('start')
    this.#goOn()
  }

  /** Takes every vCPU out of KVM_RUN, with pending I/O completed. No effect where the machine is paused. */
  async pause(): Promise<void> {
    if (this.#guestReset) await this.#guestReset
    if (this.#state === 'paused') return
    this.#undisturbed('pause')
    await this.#pause()
  }

  /** Lets a paused or restored machine go on. */
  async resume(): Promise<void> {
    if (this.#guestReset) await this.#guestReset
    this.#require('paused', 'resume')
    this.#undisturbed('resume')
    this.#goOn()
  }

  /**
   * Saves the machine, L2 included, to a directory, which may be absent, empty, or a snapshot that is replaced: at any moment there is
   * the old one or the new one whole. A running machine is paused meanwhile. `differential` saves only what was written since
   * the last snapshot (or restore), which stays needed.
   * @throws {SnapshotError} it cannot be written there
   * @throws {KvmError} this kernel cannot give a part of the state; the machine is unharmed
   */
  snapshot(directory: string, options: SnapshotOptions = {}): Promise<SnapshotInfo> {
    const { differential = false } = options
    return this.#whilePaused('snapshot', async ({ signal: ended }) => {
      const { ram } = this.#parts
      const signal = options.signal ? AbortSignal.any([ended, options.signal]) : ended
      if (differential && !this.#base) {
        const remedy = 'take a full snapshot first'
        throw new SnapshotError(directory, 'there is no snapshot of this machine that it could be based on', remedy)
      }
      const moment = takeMoment(this.#parts)
      const state = {
        ...moment,
        config: saveConfig(this.config),
        vcpus: moment.vcpus.map(vcpu => ({ ...vcpu, about: aboutVcpu(vcpu) })),
      }
      const files = diskFiles(this.#parts.virtio.peripherals)
      const contents = { state, memory: ram.source(differential), files, ...(differential && { parent: this.#base! }) }
      const info = await writeSnapshot(directory, contents, { ...options, signal })
      ram.saved()
      this.#base = { directory: info.directory, id: info.id }
      return info
    })
  }

  /**
   * Keeps this moment in memory, for `rollback()`. The first one costs a new mapping of the memory, each further one a copy
   * of the pages written since the one before. A running machine is paused meanwhile.
   * @throws {KvmError} this kernel cannot give a part of the state; the machine is unharmed
   */
  checkpoint(): Promise<Checkpoint> {
    return this.#whilePaused('checkpoint', async () => {
      const moment = takeMoment(this.#parts)
      const disks = freezeDisks(this.#parts.virtio.peripherals)
      const checkpoint = new Checkpoint(moment, this.#parts.ram.freeze(), disks)
      this.#checkpoints.add(checkpoint)
      return checkpoint
    })
  }

  /**
   * Goes back to a moment of this machine: vCPUs with L2, devices, clocks, memory. What the guest wrote to its console meanwhile
   * stays written. To the last checkpoint it costs what was written since; to an earlier one, a new mapping of the memory.
   * @throws {GuestError} the checkpoint is not of this machine, or closed
   */
  rollback(checkpoint: Checkpoint): Promise<void> {
    return this.#whilePaused('rollback', async () => {
      if (checkpoint.closed) throw new GuestError('cannot rollback: the checkpoint is closed')
      if (!this.#checkpoints.has(checkpoint))
        throw new GuestError('cannot rollback: the checkpoint is of another machine')
      this.#parts.ram.rollback(checkpoint.ram)
      thawDisks(this.#parts.virtio.peripherals, checkpoint.disks)
      applyMoment(this.#parts, checkpoint.moment, { clock: 'stopped', rollback: true })
    })
  }

  /**
   * A second machine, which goes on from this moment as this one does: running if this one runs, else paused. Memory is shared
   * until one of them writes to it. Its vsock has no Unix socket, and its network cards have no cable: it would have the same addresses.
   * @throws {KvmError} this kernel cannot give a part of the state; the machine is unharmed
   */
  fork(): Promise<Machine> {
    return this.#whilePaused('fork', async (_abort, wasRunning) => {
      const parts = this.#parts
      const disks = freezeDisks(parts.virtio.peripherals)
      const moment = takeMoment(parts)
      const images = parts.ram.freeze().map((image, i) => ({ guestAddress: parts.ram.regions[i]!.guestAddress, image }))
      using kvm = Kvm.open()
      const build = (peripherals: readonly Peripheral[], events: PlatformEvents) => {
        thawDisks(peripherals, disks)
        return rebuildMachine(kvm, images, this.config, peripherals, events, fresh =>
          applyMoment(fresh, moment, { clock: 'realtime' }),
        )
      }
      // The socket is this one's.
      const config = this.config.vsock ? withVsockPath(this.config, null) : this.config
      const twin = await Machine.#make(config, 'paused', build, { unplugged: true }).finally(() => closeDisks(disks))
      twin.#parts.ram.inherit(parts.ram)
      twin.#base = this.#base
      if (wasRunning) twin.#goOn()
      return twin
    })
  }

  /**
   * Resets the machine in place, as its reset button does: memory is zero, devices and vCPUs, L2 with them, are as at power-on, and
   * what it boots from is loaded again. Its console, disks and snapshots stay; `rollback()` still reaches earlier checkpoints. A
   * running machine runs on, a paused one stays paused.
   * @throws {GuestError} it has not started or has ended, or there is nothing to boot it from
   * @throws {ConfigError} a file that it boots from is gone; the machine is unharmed
   * @throws {KvmError} this kernel cannot reset a part of its state; the machine has ended then
   */
  async reset(): Promise<void> {
    const reset = await this.#whilePaused('reset', async () => this.#reset())
    this.emit('reset', reset)
  }

  /**
   * Injects a non-maskable interrupt, as the NMI button of a server does. A paused machine takes it when it goes on.
   * KVM_NMI (KVM API 4.64, KVM_CAP_USER_NMI).
   * @throws {GuestError} there is no such vCPU, or the machine does not run
   */
  async injectNmi(vcpu = 0): Promise<void> {
    const target = this.vcpus.find(({ id }) => id === vcpu)
    if (!target)
      throw new GuestError(`cannot inject an NMI: there is no vCPU ${vcpu}, only ${this.vcpus.length} in all`)
    if (this.#state === 'created') throw new GuestError('cannot inject an NMI: the machine is created')
    await this.#whilePaused('NMI', async () => target.nmi())
  }

  /** Presses the power button: a guest that attends to it powers off, in its time. */
  powerButton(): void {
    if (this.#state !== 'running' && this.#state !== 'paused') {
      throw new GuestError(`cannot press the power button: the machine is ${this.#state}`)
    }
    this.#parts.pm.pressPowerButton()
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

  /** Does something to the machine while no vCPU runs, and lets it go on if it ran. */
  async #whilePaused<T>(what: string, act: PausedAct<T>): Promise<T> {
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

  async #actPaused<T>(act: PausedAct<T>, abort: AbortController): Promise<T> {
    const wasRunning = this.#state === 'running'
    if (wasRunning) await this.#pause()
    try {
      return await act(abort, wasRunning)
    } finally {
      if (wasRunning && this.#state === 'paused' && !this.#ended) this.#goOn()
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
      await this.#parts.virtio.pause()
      this.#parts.uart.flush()
      // The guest may have ended in the very exit that was completed, or asked for a reset.
      const reset = this.#resetAsked && !this.#ended ? this.#reset() : undefined
      if (this.#ended) throw new GuestError('cannot pause: the machine is ended')
      this.#state = 'paused'
      if (reset) this.emit('reset', reset)
    } finally {
      this.#pausing = undefined
    }
  }

  /** The guest's reset takes effect when every vCPU has stopped; the one that asked for it executes nothing in between. */
  #resetByGuest(): void {
    if (this.#resetAsked || this.#ended) return
    if (!this.config.reboot) {
      void this.#end({ reason: 'reset', tail: this.#tail() })
      return
    }
    this.#resetAsked = true
    // Whoever pauses the machine brings it about.
    if (this.#pausing) return
    const done = this.#whilePaused('reset', async () => {})
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
      const reset = prepareReset(this.#parts, this.config)
      committed = true
      reset()
    } catch (error) {
      const message = `it cannot be reset: ${(error as Error).message}`
      if (committed) void this.#end({ reason: 'crash', message, report: `the console's last lines:\n${tail}` })
      throw error
    }
    return { tail }
  }

  #tail(): string {
    this.#parts.uart.flush()
    return this.console.lastLines()
  }

  #undisturbed(what: string): void {
    if (this.#operation) throw new GuestError(`cannot ${what}: a ${this.#operation.what} is being made`)
  }

  #goOn(): void {
    this.#state = 'running'
    for (const thread of this.#threads) {
      if (thread.state === 'stopped') thread.start()
      else thread.resume()
    }
    this.#parts.virtio.resume()
  }

  #require(state: MachineState, what: string): void {
    if (this.#state !== state) throw new GuestError(`cannot ${what}: the machine is ${this.#state}`)
  }

  #handle(vcpu: Vcpu, exit: VcpuExit): void | Promise<void> {
    const { ports, mmio } = this.#parts
    switch (exit.reason) {
      case 'io-out':
        ports.writeRepeated(exit.port, exit.size, exit.data)
        break
      case 'io-in':
        ports.readRepeated(exit.port, exit.size, exit.data)
        break
      case 'mmio-write':
        return mmio.write(exit.address, exit.data)
      case 'mmio-read':
        mmio.read(exit.address, exit.data)
        break
      case 'system-event':
        if (exit.type === KVM_SYSTEM_EVENT_SHUTDOWN) void this.#end({ reason: 'shutdown' })
        else if (exit.type === KVM_SYSTEM_EVENT_RESET) this.#resetByGuest()
        else this.#crash(vcpu, exit)
        break
      case 'shutdown':
        if (this.config.onTripleFault === 'reset') this.#resetByGuest()
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
    void this.#end({ reason: 'crash', message, report: crashReport(vcpu, this.memory, { exit, tail: this.#tail() }) })
  }

  #fail(vcpu: Vcpu, error: Error): void {
    const ours = error.name !== 'KvmError'
    const report = crashReport(vcpu, this.memory, { tail: this.#tail() })
    void this.#end({ reason: 'crash', message: error.message, report }, ours ? error : undefined)
  }

  #end(end: MachineEnd, failure?: Error): Promise<MachineEnd> {
    this.#ended ??= this.#release(end, failure)
    return this.#ended
  }

  async #release(end: MachineEnd, failure: Error | undefined): Promise<MachineEnd> {
    const { uart, console, virtio, vm } = this.#parts
    // What is being written reads the memory that is to go.
    this.#operation?.abort.abort(new GuestError('the machine has ended'))
    await this.#operation?.done.catch(() => {})
    await Promise.all(this.#threads.map(thread => thread.stop()))
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
    if (end.reason === 'crash') this.emit('crash', end)
    else if (end.reason === 'shutdown') this.emit('shutdown')
    else if (end.reason === 'reset') this.emit('reset', { tail: end.tail })
    this.emit('end', end)
    return end
  }
}
