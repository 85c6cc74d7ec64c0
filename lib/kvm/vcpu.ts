import { constants } from 'node:os'
import { KvmError } from '../errors.js'
import { checkNestedState } from '../nested/rules.js'
import type { NativeVcpu } from './binding.js'
import { cap } from './capabilities.js'
import { CoalescedRing } from './coalesced-ring.js'
import { ExitReader, type VcpuExit } from './exit.js'
import { nestedVcpu } from './nested-vcpu.js'
import {
  type CpuidEntry,
  KVM_VCPU_TSC_CTRL,
  KVM_VCPU_TSC_OFFSET,
  type KvmCoalescedMmio,
  type KvmDebugregs,
  type KvmFpu,
  type KvmLapicState,
  type KvmRegs,
  type KvmSregs,
  type KvmSregs2,
  type KvmTranslation,
  type KvmVcpuEvents,
  type KvmXcrs,
  kvm_debugregs,
  kvm_fpu,
  kvm_guest_debug,
  kvm_interrupt,
  kvm_lapic_state,
  kvm_mp_state,
  kvm_nested_state,
  kvm_regs,
  kvm_run,
  kvm_signal_mask,
  kvm_sregs,
  kvm_sregs2,
  kvm_translation,
  kvm_vcpu_events,
  kvm_xcrs,
  kvm_xsave,
  type Msr,
} from './structs.js'
import {
  decodeCpuid,
  emptyCpuid,
  encodeCpuid,
  encodeEnableCap,
  encodeMsrs,
  readMsrs,
  readRawMsrs,
  writeRawMsrs,
} from './tables.js'
import type { VcpuThread } from './vcpu-thread.js'
import type { Vm } from './vm.js'

const REQUEST_INTERRUPT_WINDOW = kvm_run.offsetOf('request_interrupt_window')
const IMMEDIATE_EXIT = kvm_run.offsetOf('immediate_exit')

/**
 * A virtual processor (KVM API, "vcpu ioctls"). Its state is read and written while it is not in KVM_RUN: with `run()`
 * that is always so, under a `VcpuThread` when that is paused or handling an exit.
 */
export class Vcpu {
  readonly id: number
  readonly vm: Vm
  /** The vCPU's mapping: `struct kvm_run`, the port I/O page, the coalesced ring. Detached by `close()`. */
  readonly runPage: Uint8Array
  /** @internal */
  readonly native: NativeVcpu
  /** @internal Every VcpuThread made for this vCPU that is not closed: also a stopped one keeps the descriptor open. */
  readonly threads = new Set<VcpuThread>()
  readonly #run: () => void
  readonly #exits: ExitReader
  readonly #ring: CoalescedRing
  readonly #closed: () => void
  #cpuid: Uint8Array | undefined

  /** @internal */
  constructor(native: NativeVcpu, id: number, vm: Vm, closed: () => void) {
    this.native = native
    this.id = id
    this.vm = vm
    this.#closed = closed
    this.#run = native.runFunction()
    const run = native.runBuffer()
    this.runPage = new Uint8Array(run)
    this.#exits = new ExitReader(run)
    this.#ring = new CoalescedRing(run)
  }

  /**
   * KVM_RUN on this thread, until the guest needs something (KVM API 4.10). The exit is valid until the next call; I/O
   * is completed by that next call.
   * @throws {KvmError} KVM cannot run the vCPU, or a `VcpuThread` does (EBUSY)
   */
  run(): VcpuExit {
    this.#run()
    return this.#exits.read()
  }

  /** @internal The exit that the vCPU's thread has put into `kvm_run`. */
  readExit(): VcpuExit {
    return this.#exits.read()
  }

  /**
   * Completes a pending I/O, MMIO, MSR or hypercall exit without running the guest on: KVM_RUN with `immediate_exit`
   * (KVM_CAP_IMMEDIATE_EXIT). Before state is read for a snapshot. Returns another exit where the same instruction needs
   * one more, else undefined.
   */
  complete(): VcpuExit | undefined {
    this.immediateExit = true
    try {
      this.#run()
      const exit = this.#exits.read()
      return exit.reason === 'intr' ? undefined : exit
    } finally {
      this.immediateExit = false
    }
  }

  /** `kvm_run.immediate_exit`: while set, KVM_RUN comes back at once with 'intr'. */
  get immediateExit(): boolean {
    return this.runPage[IMMEDIATE_EXIT] !== 0
  }
  set immediateExit(on: boolean) {
    this.runPage[IMMEDIATE_EXIT] = on ? 1 : 0
  }

  /** `kvm_run.request_interrupt_window`: exit with 'irq-window-open' once the guest can take an interrupt. */
  set requestInterruptWindow(on: boolean) {
    this.runPage[REQUEST_INTERRUPT_WINDOW] = on ? 1 : 0
  }

  /** The queued writes to coalesced zones, oldest first, and empties the ring (KVM API 4.116). */
  coalescedWrites(): KvmCoalescedMmio[] {
    return this.#ring.drain()
  }

  /** KVM_GET_REGS (KVM API 4.11). */
  getRegs(): KvmRegs {
    return get(kvm_regs, bytes => this.native.getRegs(bytes))
  }

  /** KVM_SET_REGS (KVM API 4.12). Clears pending exceptions. */
  setRegs(regs: KvmRegs): void {
    this.native.setRegs(kvm_regs.encode(regs))
  }

  /** KVM_GET_SREGS (KVM API 4.13). */
  getSregs(): KvmSregs {
    return get(kvm_sregs, bytes => this.native.getSregs(bytes))
  }

  /** KVM_SET_SREGS (KVM API 4.14). */
  setSregs(sregs: KvmSregs): void {
    this.native.setSregs(kvm_sregs.encode(sregs))
  }

  /** KVM_GET_SREGS2 (KVM API 4.132, KVM_CAP_SREGS2): as `getSregs`, with the PDPTEs in place of the interrupt bitmap. */
  getSregs2(): KvmSregs2 {
    return get(kvm_sregs2, bytes => this.native.getSregs2(bytes))
  }

  /** KVM_SET_SREGS2 (KVM API 4.133, KVM_CAP_SREGS2). */
  setSregs2(sregs: KvmSregs2): void {
    this.native.setSregs2(kvm_sregs2.encode(sregs))
  }

  /** KVM_GET_FPU (KVM API 4.22): x87 and SSE. */
  getFpu(): KvmFpu {
    return get(kvm_fpu, bytes => this.native.getFpu(bytes))
  }

  /** KVM_SET_FPU (KVM API 4.23). */
  setFpu(fpu: KvmFpu): void {
    this.native.setFpu(kvm_fpu.encode(fpu))
  }

  /** Bytes of the XSAVE area: KVM_CAP_XSAVE2, at least 4096. */
  get xsaveSize(): number {
    return Math.max(kvm_xsave.size, this.vm.checkExtension(cap.XSAVE2))
  }

  /** KVM_GET_XSAVE (KVM API 4.42, KVM_CAP_XSAVE): 4096 bytes. Fails where the state is larger: then `getXsave2`. */
  getXsave(): Uint8Array {
    const bytes = new Uint8Array(kvm_xsave.size)
    this.native.getXsave(bytes)
    return bytes
  }

  /** KVM_GET_XSAVE2 (KVM API 4.134, KVM_CAP_XSAVE2): `xsaveSize` bytes. */
  getXsave2(): Uint8Array {
    const bytes = new Uint8Array(this.xsaveSize)
    this.native.getXsave2(bytes)
    return bytes
  }

  /** KVM_SET_XSAVE (KVM API 4.43): what `getXsave2` gave, at least `xsaveSize` bytes. */
  setXsave(bytes: Uint8Array): void {
    this.native.setXsave(bytes)
  }

  /** KVM_GET_XCRS (KVM API 4.44, KVM_CAP_XCRS). */
  getXcrs(): KvmXcrs {
    return get(kvm_xcrs, bytes => this.native.getXcrs(bytes))
  }

  /** KVM_SET_XCRS (KVM API 4.45, KVM_CAP_XCRS). */
  setXcrs(xcrs: KvmXcrs): void {
    this.native.setXcrs(kvm_xcrs.encode(xcrs))
  }

  /** KVM_GET_CPUID2 (KVM API 4.20, KVM_CAP_EXT_CPUID): the table that was set. */
  getCpuid(): CpuidEntry[] {
    for (let entries = 128; ; entries *= 2) {
      const bytes = emptyCpuid(entries)
      try {
        this.native.getCpuid2(bytes)
        return decodeCpuid(bytes)
      } catch (error) {
        if (!(error instanceof KvmError && error.code === 'E2BIG' && entries < 4096)) throw error
      }
    }
  }

  /** KVM_SET_CPUID2 (KVM API 4.21, KVM_CAP_EXT_CPUID). After the first run it must not differ. */
  setCpuid(entries: readonly CpuidEntry[]): void {
    this.setRawCpuid(encodeCpuid(entries))
  }

  /** @internal As `setCpuid`, with a `struct kvm_cpuid2`. */
  setRawCpuid(table: Uint8Array): void {
    this.native.setCpuid2(table)
    this.#cpuid = table
  }

  /**
   * @internal The table that was set, `struct kvm_cpuid2`. `getCpuid` may tell of more: KVM puts into it what follows from other state,
   * and all of the processor's flags where a guest's CPUID instruction cannot be intercepted.
   */
  get configuredCpuid(): Uint8Array {
    return this.#cpuid ?? encodeCpuid(this.getCpuid())
  }

  /**
   * KVM_GET_MSRS (KVM API 4.18), in the order asked for.
   * @throws {KvmError} one cannot be read; the message names it
   */
  getMsrs(indices: readonly number[]): Msr[] {
    return readMsrs(indices, bytes => this.native.getMsrs(bytes))
  }

  /** @internal As `getMsrs`, undecoded. */
  getRawMsrs(indices: readonly number[]): Uint8Array {
    return readRawMsrs(indices, bytes => this.native.getMsrs(bytes))
  }

  /** @internal As `setMsrs`, with a `struct kvm_msrs`. */
  setRawMsrs(msrs: Uint8Array): void {
    writeRawMsrs(msrs, bytes => this.native.setMsrs(bytes))
  }

  /**
   * KVM_SET_MSRS (KVM API 4.19), in order.
   * @throws {KvmError} one does not take its value; the message names it, and those before it are set
   */
  setMsrs(msrs: readonly Msr[]): void {
    this.setRawMsrs(encodeMsrs(msrs))
  }

  /** KVM_GET_LAPIC (KVM API 4.57, KVM_CAP_IRQCHIP): the local APIC's register page, 1024 bytes. */
  getLapic(): KvmLapicState {
    return get(kvm_lapic_state, bytes => this.native.getLapic(bytes))
  }

  /** KVM_SET_LAPIC (KVM API 4.58, KVM_CAP_IRQCHIP). */
  setLapic(state: KvmLapicState): void {
    this.native.setLapic(kvm_lapic_state.encode(state))
  }

  /** KVM_GET_MP_STATE (KVM API 4.38, KVM_CAP_MP_STATE): KVM_MP_STATE_*. */
  getMpState(): number {
    return get(kvm_mp_state, bytes => this.native.getMpState(bytes)).mp_state
  }

  /** KVM_SET_MP_STATE (KVM API 4.39, KVM_CAP_MP_STATE). */
  setMpState(state: number): void {
    this.native.setMpState(kvm_mp_state.encode({ mp_state: state }))
  }

  /** KVM_GET_VCPU_EVENTS (KVM API 4.31, KVM_CAP_VCPU_EVENTS): pending and injected exceptions, interrupts, NMI, SMI. */
  getVcpuEvents(): KvmVcpuEvents {
    return get(kvm_vcpu_events, bytes => this.native.getVcpuEvents(bytes))
  }

  /** KVM_SET_VCPU_EVENTS (KVM API 4.32, KVM_CAP_VCPU_EVENTS). */
  setVcpuEvents(events: KvmVcpuEvents): void {
    this.native.setVcpuEvents(kvm_vcpu_events.encode(events))
  }

  /** KVM_GET_DEBUGREGS (KVM API 4.33, KVM_CAP_DEBUGREGS). */
  getDebugregs(): KvmDebugregs {
    return get(kvm_debugregs, bytes => this.native.getDebugregs(bytes))
  }

  /** KVM_SET_DEBUGREGS (KVM API 4.34, KVM_CAP_DEBUGREGS). */
  setDebugregs(debugregs: KvmDebugregs): void {
    this.native.setDebugregs(kvm_debugregs.encode(debugregs))
  }

  /**
   * KVM_GET_NESTED_STATE (KVM API 4.114, KVM_CAP_NESTED_STATE): `struct kvm_nested_state`, header and data, exactly as
   * long as the kernel says. `decodeNestedState` reads it. The header is there also when there is no data: it tells of
   * VMXON without a current VMCS, and of SVM's GIF.
   * @throws {KvmError} this host has no nested state (EOPNOTSUPP)
   */
  getNestedState(): Uint8Array {
    const bytes = new Uint8Array(Math.max(this.#nestedStateSize('KVM_GET_NESTED_STATE'), kvm_nested_state.size))
    const view = new DataView(bytes.buffer)
    const size = kvm_nested_state.offsetOf('size')
    view.setUint32(size, bytes.length, true)
    this.native.getNestedState(bytes)
    return bytes.slice(0, view.getUint32(size, true))
  }

  /**
   * KVM_SET_NESTED_STATE (KVM API 4.115, KVM_CAP_NESTED_STATE): what `getNestedState` gave. EFER.SVME or CR4.VMXE must
   * be set before (`setSregs2`). It is checked first, for KVM would say no more than EINVAL; what
   * that refuses changes nothing, what KVM itself refuses may have taken the vCPU out of L2.
   * @throws {NestedStateError} it breaks a rule of KVM's; the message names the rule and the field
   * @throws {KvmError} this host has no nested state (EOPNOTSUPP), or refuses it for a reason of its own (EINVAL)
   */
  setNestedState(state: Uint8Array): void {
    this.#nestedStateSize('KVM_SET_NESTED_STATE')
    checkNestedState(state, nestedVcpu(this, decodeCpuid(this.configuredCpuid)))
    this.setRawNestedState(state)
  }

  /**
   * KVM_SET_NESTED_STATE without checking it first: for one that this vCPU gave.
   * @throws {KvmError} this host refuses it (EINVAL)
   * @internal
   */
  setRawNestedState(state: Uint8Array): void {
    // vmx_set_nested_state gives a positive status, no error, where L2's state is not one that can be entered.
    if (this.native.setNestedState(state) !== 0)
      throw new KvmError('KVM_SET_NESTED_STATE', constants.errno.EINVAL, 'L2 cannot be entered with it')
  }

  /** KVM_GET_TSC_KHZ (KVM API 4.56, KVM_CAP_GET_TSC_KHZ): the guest's TSC frequency, kHz. */
  getTscKhz(): number {
    return this.native.getTscKhz()
  }

  /** KVM_SET_TSC_KHZ (KVM API 4.55, KVM_CAP_TSC_CONTROL). */
  setTscKhz(khz: number): void {
    this.native.setTscKhz(khz)
  }

  /** The guest's TSC minus the host's: KVM_VCPU_TSC_OFFSET (KVM API, devices/vcpu.rst 4.1, KVM_CAP_VCPU_ATTRIBUTES). */
  getTscOffset(): bigint {
    const bytes = new Uint8Array(8)
    this.native.getDeviceAttr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, bytes)
    return new DataView(bytes.buffer).getBigUint64(0, true)
  }

  /** See `getTscOffset`. */
  setTscOffset(offset: bigint): void {
    const bytes = new Uint8Array(8)
    new DataView(bytes.buffer).setBigUint64(0, BigInt.asUintN(64, offset), true)
    this.native.setDeviceAttr(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, bytes)
  }

  /** KVM_SET_GUEST_DEBUG (KVM API 4.87, KVM_CAP_SET_GUEST_DEBUG): `control` is KVM_GUESTDBG_*; `debugreg` DR0 to DR7. */
  setGuestDebug(control: number, debugreg: readonly bigint[] = []): void {
    const registers = Array.from({ length: 8 }, (_, i) => debugreg[i] ?? 0n)
    this.native.setGuestDebug(kvm_guest_debug.encode({ control, pad: 0, arch: { debugreg: registers } }))
  }

  /** KVM_TRANSLATE (KVM API 4.16): a linear address through the guest's paging. */
  translate(linearAddress: bigint): KvmTranslation {
    const bytes = kvm_translation.encode({
      linear_address: linearAddress,
      physical_address: 0n,
      valid: 0,
      writeable: 0,
      usermode: 0,
      pad: new Uint8Array(5),
    })
    this.native.translate(bytes)
    return kvm_translation.decode(bytes)
  }

  /** KVM_NMI (KVM API 4.64, KVM_CAP_USER_NMI): queues an NMI. */
  nmi(): void {
    this.native.nmi()
  }

  /** KVM_INTERRUPT (KVM API 4.17): queues interrupt vector `irq`; only without an in-kernel interrupt controller. */
  interrupt(irq: number): void {
    this.native.interrupt(kvm_interrupt.encode({ irq }))
  }

  /** KVM_SET_SIGNAL_MASK (KVM API 4.26): signals blocked while in KVM_RUN, signal n in bit n - 1. */
  setSignalMask(blocked: bigint): void {
    const sigset = new Uint8Array(8)
    new DataView(sigset.buffer).setBigUint64(0, blocked, true)
    this.native.setSignalMask(kvm_signal_mask.encode({ len: 8, sigset: [...sigset] }))
  }

  /** KVM_KVMCLOCK_CTRL (KVM API 4.69, KVM_CAP_KVMCLOCK_CTRL): tells the guest that it was paused. */
  kvmclockCtrl(): void {
    this.native.kvmclockCtrl()
  }

  /** KVM_ENABLE_CAP on the vCPU (KVM API 4.37, KVM_CAP_ENABLE_CAP). */
  enableCap(capability: number, ...args: bigint[]): void {
    this.native.enableCap(encodeEnableCap(capability, args))
  }

  /** Closes its `VcpuThread`s, detaches the views and closes the descriptor. */
  close(): void {
    for (const thread of [...this.threads]) thread.close()
    this.native.close()
    this.#closed()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #nestedStateSize(ioctl: string): number {
    const size = this.vm.checkExtension(cap.NESTED_STATE)
    if (size > 0) return size
    const remedy =
      'this host has no KVM_CAP_NESTED_STATE: nested-kvm doctor tells why, nested-kvm lab gives a host that has it'
    throw new KvmError(ioctl, constants.errno.EOPNOTSUPP, remedy)
  }
}

function get<S extends { size: number; decode(bytes: Uint8Array): unknown }>(
  layout: S,
  call: (bytes: Uint8Array) => unknown,
): ReturnType<S['decode']> {
  const bytes = new Uint8Array(layout.size)
  call(bytes)
  return layout.decode(bytes) as ReturnType<S['decode']>
}
