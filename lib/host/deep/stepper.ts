import { GuestError, TimeoutError } from '../../errors.js'
import type { VcpuExit } from '../../kvm/exit.js'
import type { Vcpu } from '../../kvm/vcpu.js'
import { VcpuThread } from '../../kvm/vcpu-thread.js'

/** What a guest has reported: the port, and the 32 bits written to it. */
export interface Report {
  readonly port: number
  readonly value: number
}

/** Runs a vCPU on a thread of its own from one report to the next, each within a time: nothing that a guest does hangs. */
export class Stepper {
  readonly #thread: VcpuThread
  readonly #milliseconds: number
  #done: (outcome: Report | Error) => void = () => {}

  constructor(vcpu: Vcpu, milliseconds: number) {
    this.#milliseconds = milliseconds
    this.#thread = new VcpuThread(
      vcpu,
      exit => this.#handle(exit),
      error => this.#done(error),
    )
  }

  /**
   * Runs to the next report. The vCPU is paused then, its I/O completed, and its state can be taken.
   * @throws {GuestError} the guest made another exit
   * @throws {TimeoutError} it made none in time; it runs on until `close()`
   * @throws {KvmError} KVM cannot run it
   */
  async next(): Promise<Report> {
    let late: NodeJS.Timeout | undefined
    const outcome = await new Promise<Report | Error>(resolve => {
      this.#done = resolve
      const seconds = this.#milliseconds / 1000
      late = setTimeout(() => resolve(new TimeoutError(`nothing came within ${seconds} s`)), this.#milliseconds)
      if (this.#thread.state === 'paused') this.#thread.resume()
      else this.#thread.start()
    })
    clearTimeout(late)
    if (outcome instanceof Error) throw outcome
    await this.#thread.pause()
    return outcome
  }

  close(): void {
    this.#thread.close()
    // By which the thread was taken out of KVM_RUN.
    this.#thread.vcpu.immediateExit = false
  }

  #handle(exit: VcpuExit): void {
    if (exit.reason !== 'io-out' || exit.data.length !== 4) {
      const { rip } = this.#thread.vcpu.getRegs()
      throw new GuestError(`the guest made the exit ${exit.reason} at 0x${rip.toString(16)}`)
    }
    const value = new DataView(exit.data.buffer, exit.data.byteOffset).getUint32(0, true)
    this.#done({ port: exit.port, value })
    // With this commanded, the I/O is completed and the guest does not run on.
    void this.#thread.pause()
  }
}
