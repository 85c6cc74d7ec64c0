import { cpuHost } from '../../lib/arch/x86_64/cpu-host.js'
import { parseCpuSpec } from '../../lib/arch/x86_64/cpu-spec.js'
import { machineCpu } from '../../lib/arch/x86_64/machine-cpu.js'
import {
  type Blobs,
  restoreVcpu,
  saveVcpu,
  type VcpuPlan,
  type VcpuState,
  vcpuPlan,
} from '../../lib/arch/x86_64/vcpu-state.js'
import { restoreClock, restoreVm, saveVm } from '../../lib/arch/x86_64/vm-state.js'
import { giveVmxMsrs } from '../../lib/arch/x86_64/vmx-cpu.js'
import { cap } from '../../lib/kvm/capabilities.js'
import type { VcpuExit } from '../../lib/kvm/exit.js'
import type { GuestRegion } from '../../lib/kvm/guest-region.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import type { Vcpu } from '../../lib/kvm/vcpu.js'
import { VcpuThread } from '../../lib/kvm/vcpu-thread.js'
import type { Vm } from '../../lib/kvm/vm.js'
import { decodeNestedState, type NestedState } from '../../lib/nested/state.js'
import { type Extension, extensionOf, type L1Options, loadL1 } from '../guests/l1.js'
import { L1_MEMORY, L1_ORIGIN, L2_VECTOR, station } from '../guests/l1-layout.js'
import { enterMode, loadGuest, runTo } from '../kvm/guest.js'

/** What L1 or L2 reported: the port, and the 32 bits written to it. */
export interface Report {
  port: number
  value: number
}

/** What is taken along from one VM to the next. */
export interface Saved {
  vcpu: VcpuState
  vm: Blobs
  memory: Uint8Array
}

/** A VM that is always there: with the first VM the kernel patches its scheduler (`preempt_notifier_key`), with the last one back, slowly. */
let standby: Vm | undefined

/** L0's side of a small hypervisor that runs: takes its reports, answers its questions, knows when it has ended. */
export class L1Run {
  readonly options: L1Options
  readonly kvm: Kvm
  readonly extension: Extension
  vm!: Vm
  ram!: GuestRegion
  vcpu!: Vcpu
  /** All reports so far, oldest first. */
  readonly reports: Report[] = []
  /** An L2 that halts is sent its interrupt at once. */
  wakes = true
  readonly #plan: VcpuPlan
  #thread: VcpuThread | undefined
  #failure: Error | undefined

  /** `cpu`: which processor L1 has; by default all that KVM supports. */
  constructor(options: L1Options, cpu?: string) {
    this.options = options
    this.kvm = Kvm.open()
    if (!standby) {
      standby = this.kvm.createVm()
      standby.createIrqchip()
      standby.createVcpu(0)
    }
    const { cpuid, ...own } = cpu
      ? machineCpu(cpuHost(this.kvm), parseCpuSpec(cpu))
      : { cpuid: this.kvm.supportedCpuid() }
    this.extension = hostExtension()
    this.#createVm()
    this.vm.enableCap(cap.EXCEPTION_PAYLOAD, 1n)
    this.vcpu.setCpuid(cpuid)
    giveVmxMsrs(this.vcpu, own)
    this.#plan = vcpuPlan(this.vcpu, this.kvm.msrIndices())
    loadL1(this.ram.bytes, this.extension, options, hasAvx())
    enterMode(this.vcpu, this.ram.bytes, 'long', { rip: BigInt(L1_ORIGIN) })
  }

  /** A VM with one vCPU and empty memory. */
  #createVm(): void {
    this.vm = this.kvm.createVm()
    this.vm.createIrqchip()
    this.ram = this.vm.addMemory({ guestAddress: 0, size: L1_MEMORY })
    this.vcpu = this.vm.createVcpu(0)
  }

  /** Runs to the next report, and completes that. */
  step(): Report {
    for (;;) {
      const report = this.#handle(this.vcpu.run())
      if (!report) continue
      this.vcpu.complete()
      return report
    }
  }

  /** Runs until `port` reports. */
  runTo(port: number): Report {
    for (;;) {
      const report = this.step()
      if (report.port === port) return report
      if (this.ended) throw new Error(`L1 ended without station 0x${port.toString(16)}`)
    }
  }

  /** Runs to the end, and returns the result. */
  finish(): string {
    while (!this.ended) this.step()
    return this.result
  }

  /** Runs the vCPU on a thread of its own. */
  start(): void {
    this.#thread = new VcpuThread(
      this.vcpu,
      exit => void this.#handle(exit),
      error => {
        this.#failure = error
      },
    )
    this.#thread.start()
  }

  /** Takes it out of KVM_RUN, wherever it is, and off its thread. */
  async pause(): Promise<void> {
    await this.#thread!.pause()
    this.#thread!.close()
    // The thread was taken out by it.
    this.vcpu.immediateExit = false
    if (this.#failure) throw this.#failure
  }

  /** Saves everything, ends the VM, and restores into a fresh one; `tamper` sees what was saved in between. */
  move(tamper: (saved: Saved) => void = () => {}): void {
    const saved = {
      vcpu: saveVcpu(this.vcpu, this.#plan),
      vm: saveVm(this.vm),
      memory: this.ram.bytes.slice(),
    }
    this.vm.close()
    tamper(saved)
    this.#createVm()
    this.ram.bytes.set(saved.memory)
    restoreVm(this.vm, saved.vm)
    const { tscShift } = restoreClock(this.vm, saved.vm, 'stopped')
    restoreVcpu(this.vcpu, saved.vcpu, { tscShift: tscShift(saved.vcpu) })
  }

  nestedState(): NestedState {
    return decodeNestedState(this.vcpu.getNestedState())
  }

  get ended(): boolean {
    return this.#halves(station.l1Hash).length === 2
  }

  /** The hashes of L2 and of L1. */
  get result(): string {
    const hash = (port: number) => {
      const [low = 0, high = 0] = this.#halves(port)
      return [high, low].map(half => half.toString(16).padStart(8, '0')).join('')
    }
    return `L2 ${hash(station.l2Hash)} L1 ${hash(station.l1Hash)}`
  }

  close(): void {
    this.vm.close()
    this.kvm.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /** Takes an exit: a report, or else a question, which is answered. */
  #handle(exit: VcpuExit): Report | undefined {
    if (exit.reason === 'io-out') {
      const report = { port: exit.port, value: new DataView(exit.data.buffer, exit.data.byteOffset).getUint32(0, true) }
      this.reports.push(report)
      if (report.port === station.failed) throw new Error(`L1 failed: 0x${report.value.toString(16)}; ${this.#tail()}`)
      if (report.port === station.halt && this.wakes) this.wake()
      return report
    }
    if (exit.reason === 'io-in') {
      // What L2 reported before, scrambled; L1 may have reported a timer in between.
      const { value } = this.reports.findLast(({ port }) => port === station.l2)!
      new DataView(exit.data.buffer, exit.data.byteOffset).setUint32(0, Math.imul(value + 1, 0x9e3779b1) >>> 0, true)
      return undefined
    }
    // L1 halts for ever.
    if (exit.reason === 'hlt' && this.ended) return undefined
    throw new Error(`unexpected exit ${exit.reason}; ${this.#tail()}`)
  }

  /** L2's interrupt, sent to the local APIC (Intel SDM vol. 3, 11.11). */
  wake(): void {
    this.vm.signalMsi({ address: 0xfee00000n, data: L2_VECTOR })
  }

  #tail(): string {
    const last = this.reports.slice(-8).map(({ port, value }) => `${port.toString(16)}:${value.toString(16)}`)
    return `${this.reports.length} reports, last ${last.join(' ')}`
  }

  #halves(port: number): number[] {
    return this.reports.filter(report => report.port === port).map(({ value }) => value)
  }
}

/** The extension that guests of this host have. */
export function hostExtension(): Extension {
  using kvm = Kvm.open()
  const extension = extensionOf(kvm.supportedCpuid())
  if (!extension) throw new Error('guests of this host have neither svm nor vmx: run this in the lab')
  return extension
}

/** The result of a run that nobody disturbs. */
export function undisturbed(options: L1Options): string {
  using run = new L1Run(options)
  return run.finish()
}

let avx: boolean | undefined

/** Whether guests can use AVX: QEMU's interpreter has it in CPUID, but refuses it to a guest that comes back from an exit. */
function hasAvx(): boolean {
  if (avx === undefined) {
    const source = `
      mov rax, cr4
      or eax, 0x40600
      mov cr4, rax
      mov eax, 7
      xor ecx, ecx
      xor edx, edx
      xsetbv
      out 0x10, al
      vxorps ymm0, ymm0, ymm0
      hlt`
    using guest = loadGuest('long', source)
    runTo(guest.vcpu, 'io-out')
    avx = guest.vcpu.run().reason === 'hlt'
  }
  return avx
}
