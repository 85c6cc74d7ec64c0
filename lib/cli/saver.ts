import { ConfigError, type Machine, type SnapshotInfo } from '../index.js'

export interface SaveRequest {
  readonly directory: string
  /** Only what was written since the last snapshot. */
  readonly differential?: boolean
  /** The machine ends with the snapshot: what it would do after it would be lost. */
  readonly stop?: boolean
}

/** A save that is under way. */
export interface Saving {
  readonly directory: string
  /** Bytes of memory gone through, of how many. */
  readonly done: number
  readonly total: number
}

/** What saving needs of a machine. */
export type SavedMachine = Pick<Machine, 'state' | 'pause' | 'resume' | 'stop' | 'snapshot'>

/** Saves one machine, whoever asks for it: the keys of its terminal or a client of its control socket. */
export class Saver {
  readonly #machine: SavedMachine
  #current: { saving: Saving; abort: AbortController } | undefined

  constructor(machine: SavedMachine) {
    this.#machine = machine
  }

  get current(): Saving | undefined {
    return this.#current?.saving
  }

  /** @throws {SnapshotError} and what else `Machine.snapshot` throws; the machine then goes on as it did */
  async save({ directory, differential = false, stop = false }: SaveRequest): Promise<SnapshotInfo> {
    if (this.#current) {
      const problem = `a snapshot to ${this.#current.saving.directory} is being made`
      throw new ConfigError('directory', directory, problem, 'wait for it, or cancel it')
    }
    const abort = new AbortController()
    const current = { saving: { directory, done: 0, total: 0 }, abort }
    this.#current = current
    const onProgress = (done: number, total: number) => {
      current.saving = { directory, done, total }
    }
    const machine = this.#machine
    // It must not run on between its snapshot and its end.
    const { state: before } = machine
    const held = stop && before === 'running'
    try {
      if (held) await machine.pause()
      const info = await machine.snapshot(directory, { differential, onProgress, signal: abort.signal })
      if (stop) await machine.stop()
      return info
    } catch (error) {
      if (held && machine.state === 'paused') await machine.resume()
      throw error
    } finally {
      this.#current = undefined
    }
  }

  /** Ends the save that is under way, nothing of it left behind; false where there is none. */
  cancel(): boolean {
    this.#current?.abort.abort(new Error('the save was cancelled'))
    return this.#current !== undefined
  }
}
