import type { MachineConfig } from '../config/machine-config.js'
import { saveConfig } from '../config/saved-config.js'
import { withVsockPath } from '../config/vsock.js'
import { GuestError, SnapshotError } from '../errors.js'
import { Kvm } from '../kvm/kvm.js'
import { type SnapshotInfo, writeSnapshot } from '../snapshot/save.js'
import { aboutVcpu } from './about.js'
import { type Blueprint, type Parts, rebuildMachine } from './builder.js'
import { Checkpoint } from './checkpoint.js'
import { closeDisks, diskFiles, freezeDisks, thawDisks } from './disk-states.js'
import { applyMoment, takeMoment } from './state.js'

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

/** The moments of a machine that are kept: on disk, in memory, as a twin. No vCPU runs while it is asked for anything. */
export class History {
  readonly #config: MachineConfig
  readonly #parts: Parts
  /** The snapshot on disk that a differential one is based on. */
  #base: SnapshotBase | undefined
  readonly #checkpoints = new WeakSet<Checkpoint>()

  constructor(config: MachineConfig, parts: Parts) {
    this.#config = config
    this.#parts = parts
  }

  /** `ended` ends the writing, as `options.signal` does. */
  async snapshot(directory: string, options: SnapshotOptions, ended: AbortSignal): Promise<SnapshotInfo> {
    const { differential = false } = options
    const { ram, virtio } = this.#parts
    const signal = options.signal ? AbortSignal.any([ended, options.signal]) : ended
    if (differential && !this.#base) {
      const remedy = 'take a full snapshot first'
      throw new SnapshotError(directory, 'there is no snapshot of this machine that it could be based on', remedy)
    }
    const moment = takeMoment(this.#parts)
    const state = {
      ...moment,
      config: saveConfig(this.#config),
      vcpus: moment.vcpus.map(vcpu => ({ ...vcpu, about: aboutVcpu(vcpu) })),
    }
    const files = diskFiles(virtio.peripherals)
    const contents = { state, memory: ram.source(differential), files, ...(differential && { parent: this.#base! }) }
    const info = await writeSnapshot(directory, contents, { ...options, signal })
    this.savedAs(info)
    return info
  }

  /** The machine is at this moment what this snapshot has. */
  savedAs({ directory, id }: SnapshotBase): void {
    this.#parts.ram.saved()
    this.#base = { directory, id }
  }

  checkpoint(): Checkpoint {
    const { ram, virtio } = this.#parts
    const moment = takeMoment(this.#parts)
    const disks = freezeDisks(virtio.peripherals)
    const checkpoint = new Checkpoint(moment, ram.freeze(), disks)
    this.#checkpoints.add(checkpoint)
    return checkpoint
  }

  rollback(checkpoint: Checkpoint): void {
    if (checkpoint.closed) throw new GuestError('cannot rollback: the checkpoint is closed')
    if (!this.#checkpoints.has(checkpoint))
      throw new GuestError('cannot rollback: the checkpoint is of another machine')
    const { ram, virtio } = this.#parts
    ram.rollback(checkpoint.ram)
    thawDisks(virtio.peripherals, checkpoint.disks)
    applyMoment(this.#parts, checkpoint.moment, { clock: 'stopped', rollback: true })
  }

  /** What `build` builds a machine from that is as this one at this moment; then the twin takes over the history by `inherit`. */
  async fork<T>(build: (blueprint: Blueprint) => Promise<T>): Promise<T> {
    const { ram, virtio } = this.#parts
    const disks = freezeDisks(virtio.peripherals)
    const moment = takeMoment(this.#parts)
    const images = ram.freeze().map((image, i) => ({ guestAddress: ram.regions[i]!.guestAddress, image }))
    using kvm = Kvm.open()
    // The socket is this one's.
    const config = this.#config.vsock ? withVsockPath(this.#config, null) : this.#config
    return await build({
      config,
      state: 'paused',
      unplugged: true,
      build: (peripherals, events) => {
        thawDisks(peripherals, disks)
        return rebuildMachine(kvm, images, this.#config, peripherals, events, fresh =>
          applyMoment(fresh, moment, { clock: 'realtime' }),
        )
      },
    }).finally(() => closeDisks(disks))
  }

  /** Takes over the history of another, of which this is the twin. */
  inherit(other: History): void {
    this.#parts.ram.inherit(other.#parts.ram)
    this.#base = other.#base
  }
}
