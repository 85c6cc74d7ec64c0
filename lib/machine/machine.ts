import { EventEmitter } from 'node:events'
import { type MachineConfig, type MachineOptions, parseMachineConfig } from '../config/machine-config.js'
import { ConfigError, GuestError, SnapshotError } from '../errors.js'
import { cap } from '../kvm/capabilities.js'
import { Kvm } from '../kvm/kvm.js'
import type { Vcpu } from '../kvm/vcpu.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { readSnapshot } from '../snapshot/read.js'
import type { SnapshotInfo } from '../snapshot/save.js'
import { verifySnapshot } from '../snapshot/verify.js'
import { type Blueprint, buildMachine } from './builder.js'
import type { Checkpoint } from './checkpoint.js'
import type { Console } from './console.js'
import { History, type SnapshotOptions } from './history.js'
import { LifeCycle } from './life-cycle.js'
import type { MachineEnd, MachineEvents, MachineState } from './machine-events.js'
import { closePeripherals, openPeripherals, type Peripheral } from './peripherals.js'
import { type RestoreOptions, restoration, restoredConfig } from './restore.js'
import type { Vsock } from './vsock.js'

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
 *
 * While virtio devices have much to do at once, the thread that runs this event loop is SCHED_BATCH (sched(7)), as is what a program starts then:
 * on a busy processor it waits for the vCPU that has it instead of taking it. A thread to which another policy was given (`chrt`) stays as it is.
 */
export class Machine extends EventEmitter<MachineEvents> {
  readonly config: MachineConfig
  readonly #life: LifeCycle
  readonly #history: History

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
    return await Machine.#make({
      config,
      state: 'created',
      build: (peripherals, events) => buildMachine(kvm, config, peripherals, events),
    })
  }

  /** Opens what a machine needs of the host, then builds it with that. */
  static async #make(blueprint: Blueprint): Promise<Machine> {
    let machine: Machine | undefined
    const warn = (name: string, error: Error) => machine?.emit('warning', name, error)
    const peripherals = await openPeripherals(blueprint.config, warn, blueprint)
    try {
      machine = new Machine(blueprint, peripherals)
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
    if (options.verify) await verifySnapshot(directory, options)
    const snapshot = await readSnapshot(directory)
    using kvm = Kvm.open()
    const config = restoredConfig(snapshot, kvm, options)
    try {
      const machine = await Machine.#make(restoration(snapshot, kvm, config, options))
      machine.#history.savedAs(snapshot)
      return machine
    } catch (error) {
      if (error instanceof ConfigError) throw error
      throw new SnapshotError(directory, (error as Error).message, 'it cannot be restored here', { cause: error })
    }
  }

  private constructor({ config, state, build }: Blueprint, peripherals: readonly Peripheral[]) {
    super()
    this.config = config
    this.#life = new LifeCycle(config, state, events => build(peripherals, events), this)
    this.#history = new History(config, this.#life.parts)
  }

  get state(): MachineState {
    return this.#life.state
  }

  /** The console that was asked for: COM1 or, with `console: 'virtio'`, hvc0. */
  get console(): Console {
    return this.#life.console
  }

  /** The serial console, COM1. */
  get serial(): Console {
    return this.#life.parts.console
  }

  /**
   * Streams to and from the guest.
   * @throws {ConfigError} the machine has no vsock
   */
  get vsock(): Vsock {
    const { vsock } = this.#life.parts.virtio
    if (!vsock) throw new ConfigError('vsock', null, 'this machine has none', 'create it with vsock: {}')
    return vsock
  }

  /** Guest-physical memory. */
  get memory(): GuestMemory {
    return this.#life.parts.memory
  }

  /** The vCPUs; their state can be read and set while the machine is paused or has not started. */
  get vcpus(): readonly Vcpu[] {
    return this.#life.parts.vcpus
  }

  /** Starts the vCPUs. While they run, the process stays alive. */
  async start(): Promise<void> {
    this.#life.start()
    // Not before: who asked for the machine listens by now.
    const { cpuLacks } = this.#life.parts
    if (cpuLacks !== undefined) this.emit('warning', 'cpu', new Error(cpuLacks))
  }

  /** Takes every vCPU out of KVM_RUN, with pending I/O completed. No effect where the machine is paused. */
  async pause(): Promise<void> {
    await this.#life.pause()
  }

  /** Lets a paused or restored machine go on. */
  async resume(): Promise<void> {
    await this.#life.resume()
  }

  /**
   * Saves the machine, L2 included, to a directory, which may be absent, empty, or a snapshot that is replaced: at any moment there is
   * the old one or the new one whole. A running machine is paused meanwhile. `differential` saves only what was written since
   * the last snapshot (or restore), which stays needed.
   * @throws {SnapshotError} it cannot be written there
   * @throws {KvmError} this kernel cannot give a part of the state; the machine is unharmed
   */
  snapshot(directory: string, options: SnapshotOptions = {}): Promise<SnapshotInfo> {
    return this.#life.whilePaused('snapshot', ({ signal }) => this.#history.snapshot(directory, options, signal))
  }

  /**
   * Keeps this moment in memory, for `rollback()`. The first one costs a new mapping of the memory, each further one a copy
   * of the pages written since the one before. A running machine is paused meanwhile.
   * @throws {KvmError} this kernel cannot give a part of the state; the machine is unharmed
   */
  checkpoint(): Promise<Checkpoint> {
    return this.#life.whilePaused('checkpoint', () => this.#history.checkpoint())
  }

  /**
   * Goes back to a moment of this machine: vCPUs with L2, devices, clocks, memory. What the guest wrote to its console meanwhile
   * stays written. To the last checkpoint it costs what was written since; to an earlier one, a new mapping of the memory.
   * @throws {GuestError} the checkpoint is not of this machine, or closed
   */
  rollback(checkpoint: Checkpoint): Promise<void> {
    return this.#life.whilePaused('rollback', () => this.#history.rollback(checkpoint))
  }

  /**
   * A second machine, which goes on from this moment as this one does: running if this one runs, else paused. Memory is shared
   * until one of them writes to it. Its vsock has no Unix socket, and its network cards have no cable: it would have the same addresses.
   * @throws {KvmError} this kernel cannot give a part of the state; the machine is unharmed
   */
  fork(): Promise<Machine> {
    return this.#life.whilePaused('fork', async (_abort, wasRunning) => {
      const twin = await this.#history.fork(blueprint => Machine.#make(blueprint))
      twin.#history.inherit(this.#history)
      if (wasRunning) twin.#life.goOn()
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
    await this.#life.reset()
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
    if (this.state === 'created') throw new GuestError('cannot inject an NMI: the machine is created')
    await this.#life.whilePaused('NMI', () => target.nmi())
  }

  /** Presses the power button: a guest that attends to it powers off, in its time. */
  powerButton(): void {
    if (this.state !== 'running' && this.state !== 'paused') {
      throw new GuestError(`cannot press the power button: the machine is ${this.state}`)
    }
    this.#life.parts.pm.pressPowerButton()
  }

  /** Ends the machine, as pulling the plug does, and releases everything. No effect where it has ended. */
  async stop(): Promise<void> {
    await this.#life.end({ reason: 'stopped' })
  }

  /**
   * Resolves once the machine has ended and everything is released. A guest's crash is an end as others are.
   * @throws the error of a device that failed: a bug of ours
   */
  wait(): Promise<MachineEnd> {
    return this.#life.wait()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }
}
