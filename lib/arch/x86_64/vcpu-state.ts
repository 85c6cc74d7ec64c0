/**
 * The whole state of a vCPU, taken and given back in the order that KVM needs.
 *
 * What the kernel gives is kept as it is, by the name of the ioctl that gave it: nothing is decoded on the way, so nothing
 * that a newer kernel knows is lost, and taking a state costs little more than its ioctls.
 */
import { constants } from 'node:os'
import { KvmError } from '../../errors.js'
import { type CapabilityName, cap } from '../../kvm/capabilities.js'
import {
  type CpuidEntry,
  KVM_STATE_NESTED_FORMAT_SVM,
  KVM_STATE_NESTED_FORMAT_VMX,
  KVM_STATE_NESTED_GIF_SET,
  KVM_STATE_NESTED_GUEST_MODE,
  kvm_debugregs,
  kvm_lapic_state,
  kvm_mp_state,
  kvm_msr_entry,
  kvm_msrs,
  kvm_nested_state,
  kvm_regs,
  kvm_sregs2,
  kvm_vcpu_events,
  kvm_vmx_nested_state_hdr,
  kvm_xcrs,
  type Msr,
} from '../../kvm/structs.js'
import { decodeCpuid, decodeMsrs } from '../../kvm/tables.js'
import type { Vcpu } from '../../kvm/vcpu.js'
import { VMX_MSRS, WRITABLE_VMX_MSRS } from '../../nested/vmx-capabilities.js'
import { flagsOf } from './cpuid.js'
import { MSR, savedMsrs } from './msrs.js'
import { setWithDeadline } from './preemption-timer.js'

const { EINVAL, EOPNOTSUPP } = constants.errno

/** State by the name of the ioctl that gave it, the kernel's bytes unchanged. */
export type Blobs = Readonly<Record<string, Uint8Array>>

export interface VcpuState {
  readonly id: number
  readonly state: Blobs
}

/** How a vCPU's state is taken: what follows from its CPUID and the host, found out once. */
export interface VcpuPlan {
  readonly msrs: readonly number[]
  /** The vCPU has vmx or svm, and so a nested state. */
  readonly nested: 'vmx' | 'svm' | undefined
}

/** Without any one of these a vCPU's state is not whole, and is not taken. */
const NEEDED: readonly CapabilityName[] = [
  'VCPU_EVENTS',
  'MP_STATE',
  'XSAVE2',
  'XCRS',
  'SREGS2',
  'DEBUGREGS',
  'GET_TSC_KHZ',
  'VCPU_ATTRIBUTES',
  // Pending and injected exceptions are told apart only with it: confused, they are wrong for L2 (KVM API 7.14).
  'EXCEPTION_PAYLOAD',
]

/**
 * Finds out what makes up the state of `vcpu`, which has its CPUID already.
 * @param msrIndices KVM_GET_MSR_INDEX_LIST
 * @throws {KvmError} this kernel cannot give a part of it; the message names the capability
 */
export function vcpuPlan(vcpu: Vcpu, msrIndices: readonly number[]): VcpuPlan {
  const { vm } = vcpu
  for (const name of NEEDED) {
    if (vm.checkExtension(cap[name]) > 0) continue
    throw new KvmError(`KVM_CAP_${name}`, EOPNOTSUPP, "without it a vCPU's state is not whole: run a newer kernel")
  }
  const flags = flagsOf(decodeCpuid(vcpu.configuredCpuid))
  const nested = flags.includes('vmx') ? 'vmx' : flags.includes('svm') ? 'svm' : undefined
  if (nested && vm.checkExtension(cap.NESTED_STATE) === 0) {
    const remedy = `the vCPU has ${nested} but this host has no KVM_CAP_NESTED_STATE: start the machine with --cpu host,-${nested}`
    throw new KvmError('KVM_GET_NESTED_STATE', EOPNOTSUPP, remedy)
  }
  return { msrs: savedMsrs(vcpu, msrIndices), nested }
}

/**
 * Takes the state of a vCPU that is out of KVM_RUN, its pending exit completed (`vcpu.complete()`, or a paused
 * `VcpuThread`). The order is QEMU's (`kvm_arch_get_registers`).
 * @throws {KvmError} the kernel does not give a part of it; the message names which
 */
export function saveVcpu(vcpu: Vcpu, plan: VcpuPlan): VcpuState {
  const { native } = vcpu
  const state: Record<string, Uint8Array> = {}
  // First the events, as they are: reading the mp_state accepts a pending INIT or SIPI, which changes them.
  state.KVM_GET_VCPU_EVENTS = filled(kvm_vcpu_events.size, bytes => native.getVcpuEvents(bytes))
  // Before the registers: a SIPI that is accepted here sets CS and RIP.
  state.KVM_GET_MP_STATE = filled(kvm_mp_state.size, bytes => native.getMpState(bytes))
  state.KVM_GET_REGS = filled(kvm_regs.size, bytes => native.getRegs(bytes))
  state.KVM_GET_XSAVE2 = vcpu.getXsave2()
  state.KVM_GET_XCRS = filled(kvm_xcrs.size, bytes => native.getXcrs(bytes))
  state.KVM_GET_SREGS2 = filled(kvm_sregs2.size, bytes => native.getSregs2(bytes))
  state.KVM_GET_MSRS = vcpu.getRawMsrs(plan.msrs)
  if (vcpu.vm.hasIrqchip) state.KVM_GET_LAPIC = filled(kvm_lapic_state.size, bytes => native.getLapic(bytes))
  state.KVM_GET_DEBUGREGS = filled(kvm_debugregs.size, bytes => native.getDebugregs(bytes))
  // With its header also where there is no data: it tells of VMXON without a current VMCS, and of GIF.
  if (plan.nested) state.KVM_GET_NESTED_STATE = vcpu.getNestedState()
  state.KVM_GET_TSC_KHZ = u32(vcpu.getTscKhz())
  state.KVM_VCPU_TSC_OFFSET = u64(vcpu.getTscOffset())
  state.KVM_SET_CPUID2 = vcpu.configuredCpuid
  return { id: vcpu.id, state }
}

export interface RestoreOptions {
  /**
   * What is added to the vCPU's TSC offset, from `restoreClock`. Undefined where the host's TSC is not known to it: then the
   * guest's TSC goes on from the value that it had.
   */
  readonly tscShift?: bigint | undefined
  /** The state is the vCPU's own, of an earlier moment: its CPUID and VMX capabilities stand, and are not set again. */
  readonly rollback?: boolean
}

/**
 * Gives a vCPU the state that `saveVcpu` took. The VM has its memory, its capabilities, its interrupt controllers and its
 * clock already (`vm-state.ts`).
 * @throws {KvmError} the kernel refuses a part of it; the message names which. The vCPU is in no defined state then.
 */
export function restoreVcpu(vcpu: Vcpu, { state }: VcpuState, { tscShift, rollback }: RestoreOptions = {}): void {
  const { native } = vcpu
  const { msrs, idleNested, xsave, pvclock } = prepare(vcpu, state)
  // Out of L2 and out of VMX operation first: in there, SREGS that turn off EFER.SVME or CR4.VMXE are refused.
  const nested = state.KVM_GET_NESTED_STATE
  if (idleNested) vcpu.setRawNestedState(idleNested)
  if (rollback) takePending(vcpu)
  else {
    // Before everything that it allows or forbids.
    vcpu.setRawCpuid(part(state, 'KVM_SET_CPUID2').slice())
    // After CPUID, which they must agree with, and before VMXON, after which they cannot be written.
    vcpu.setRawMsrs(msrs.vmxCapabilities)
  }
  // The frequency first, for the offset is in its ticks; both before whatever compares itself with the TSC: the APIC timer's
  // deadline (IA32_TSC_DEADLINE) and the VMX-preemption timer's (nested state).
  restoreTsc(vcpu, state, tscShift)
  // Before CR4.VMXE; set to 0 after VMXON it would leave VMX operation.
  vcpu.setRawMsrs(msrs.featureControl)
  // EFER.SVME and CR4.VMXE, which the nested state needs, and IA32_APIC_BASE, which the APIC's mode follows.
  native.setSregs2(part(state, 'KVM_GET_SREGS2'))
  // Before the MSRs: while its timer is not in deadline mode, a write to IA32_TSC_DEADLINE is silently dropped.
  if (vcpu.vm.hasIrqchip) native.setLapic(part(state, 'KVM_GET_LAPIC'))
  if (tscShift === undefined) vcpu.setRawMsrs(msrs.timeStampCounter)
  vcpu.setRawMsrs(msrs.others)
  // XCR0 tells which parts of the XSAVE area count.
  native.setXcrs(part(state, 'KVM_GET_XCRS'))
  native.setXsave(xsave)
  // Clears pending exceptions, so before the events.
  native.setRegs(part(state, 'KVM_GET_REGS'))
  // Entering or leaving SMM leaves nested operation, so before the nested state.
  native.setVcpuEvents(part(state, 'KVM_GET_VCPU_EVENTS'))
  native.setMpState(part(state, 'KVM_GET_MP_STATE'))
  native.setDebugregs(part(state, 'KVM_GET_DEBUGREGS'))
  // Last: it checks itself against all of the above.
  if (nested) {
    const set = (bytes: Uint8Array) => (rollback ? vcpu.setRawNestedState(bytes) : vcpu.setNestedState(bytes))
    setWithDeadline(vcpu, nested, set)
  }
  // Again, for L2: with SVM the nested state brings the interrupt shadow that VMCB12 had at VMRUN (nested_vmcb02_prepare_control).
  // An L2 that halts under it would never wake.
  if (nested && inGuestMode(nested)) native.setVcpuEvents(part(state, 'KVM_GET_VCPU_EVENTS'))
  if (!rollback) checkDerivedMsrs(vcpu, msrs.derived)
  if (pvclock) tellOfPause(vcpu)
}

/** An NMI that is queued, and an INIT or SIPI that nobody has accepted, come now: they would outlive the state that follows. */
function takePending({ native }: Vcpu): void {
  native.getVcpuEvents(new Uint8Array(kvm_vcpu_events.size))
  native.getMpState(new Uint8Array(kvm_mp_state.size))
}

/** What is made from a saved state before it is given to a vCPU: once, however often a rollback goes back to it. */
interface Prepared {
  readonly msrs: MsrPhases
  readonly idleNested: Uint8Array | undefined
  readonly xsave: Uint8Array
  /** The guest has told KVM where its pvclock is. */
  readonly pvclock: boolean
}

const prepared = new WeakMap<Blobs, Prepared>()

function prepare(vcpu: Vcpu, state: Blobs): Prepared {
  const known = prepared.get(state)
  if (known) return known
  const nested = state.KVM_GET_NESTED_STATE
  const fresh: Prepared = {
    msrs: msrsByPhase(state),
    idleNested: nested && idleNestedState(nested),
    xsave: fitXsave(part(state, 'KVM_GET_XSAVE2'), vcpu.xsaveSize),
    pvclock: msrsOf(state).some(({ index, value }) => SYSTEM_TIME_MSRS.includes(index) && (value & 1n) !== 0n),
  }
  prepared.set(state, fresh)
  return fresh
}

/** MSR_KVM_SYSTEM_TIME_NEW and its older number: an address, and whether it is on in bit 0 (KVM documentation, x86/msr.rst). */
const SYSTEM_TIME_MSRS: readonly number[] = [0x4b564d01, 0x12]

/** Each a `struct kvm_msrs`. */
interface MsrPhases {
  readonly vmxCapabilities: Uint8Array
  readonly featureControl: Uint8Array
  /** Not set where an offset stands for it. */
  readonly timeStampCounter: Uint8Array
  readonly others: Uint8Array
  /** What KVM makes from the others, or from CPUID, and does not take. */
  readonly derived: Uint8Array
}

const vmxMsrs: ReadonlySet<number> = new Set(Object.values(VMX_MSRS))
const writableVmxMsrs: ReadonlySet<number> = new Set(WRITABLE_VMX_MSRS)

function phaseOf(index: number): keyof MsrPhases | 'deadline' {
  if (writableVmxMsrs.has(index)) return 'vmxCapabilities'
  if (vmxMsrs.has(index)) return 'derived'
  if (index === MSR.IA32_FEATURE_CONTROL) return 'featureControl'
  if (index === MSR.IA32_TIME_STAMP_COUNTER) return 'timeStampCounter'
  return index === MSR.IA32_TSC_DEADLINE ? 'deadline' : 'others'
}

/** Sorts the saved MSRs, undecoded. */
function msrsByPhase(state: Blobs): MsrPhases {
  const saved = part(state, 'KVM_GET_MSRS')
  const size = kvm_msr_entry.size
  const at: Record<keyof MsrPhases | 'deadline', number[]> = {
    vmxCapabilities: [],
    featureControl: [],
    timeStampCounter: [],
    others: [],
    derived: [],
    deadline: [],
  }
  const data = view(saved)
  for (let offset = kvm_msrs.size; offset + size <= saved.length; offset += size) {
    const index = data.getUint32(offset, true)
    at[phaseOf(index)].push(offset)
  }
  const pack = (offsets: readonly number[]) => {
    const bytes = new Uint8Array(kvm_msrs.size + offsets.length * size)
    view(bytes).setUint32(0, offsets.length, true)
    for (const [i, offset] of offsets.entries()) {
      bytes.set(saved.subarray(offset, offset + size), kvm_msrs.size + i * size)
    }
    return bytes
  }
  return {
    vmxCapabilities: pack(at.vmxCapabilities),
    featureControl: pack(at.featureControl),
    timeStampCounter: pack(at.timeStampCounter),
    // The deadline last: whatever it is compared with is set by then.
    others: pack([...at.others, ...at.deadline]),
    derived: pack(at.derived),
  }
}

/** The MSRs of a saved state. */
export function msrsOf(state: Blobs): Msr[] {
  return decodeMsrs(part(state, 'KVM_GET_MSRS'))
}

/** The CPUID table of a saved state. */
export function cpuidOf(state: Blobs): CpuidEntry[] {
  return decodeCpuid(part(state, 'KVM_SET_CPUID2'))
}

/** The TSC frequency of a saved state, kHz. */
export function tscKhzOf(state: Blobs): number {
  return view(part(state, 'KVM_GET_TSC_KHZ')).getUint32(0, true)
}

function restoreTsc(vcpu: Vcpu, state: Blobs, shift: bigint | undefined): void {
  const khz = tscKhzOf(state)
  // Where the host cannot scale, it takes only its own frequency, and says so.
  if (khz !== vcpu.getTscKhz()) vcpu.setTscKhz(khz)
  if (shift !== undefined) {
    vcpu.setTscOffset(BigInt.asUintN(64, view(part(state, 'KVM_VCPU_TSC_OFFSET')).getBigUint64(0, true) + shift))
  }
}

/** What cannot be set must have come out the same. */
function checkDerivedMsrs(vcpu: Vcpu, saved: Uint8Array): void {
  const derived = decodeMsrs(saved)
  const now = vcpu.getMsrs(derived.map(({ index }) => index))
  const bad = now.findIndex(({ value }, i) => value !== derived[i]!.value)
  if (bad < 0) return
  const { index, value } = derived[bad]!
  const remedy = `MSR 0x${index.toString(16)} is 0x${now[bad]!.value.toString(16)} on this host and was 0x${value.toString(16)}`
  throw new KvmError('KVM_SET_MSRS', EINVAL, `${remedy}: restore on a host whose VMX capabilities are the same`)
}

/** So that a guest with pvclock does not take the pause for a lockup; EINVAL where it has none, which is no error. */
function tellOfPause(vcpu: Vcpu): void {
  try {
    vcpu.kvmclockCtrl()
  } catch (error) {
    if (!(error instanceof KvmError && error.code === 'EINVAL')) throw error
  }
}

/** The nested state of a vCPU that has done nothing with its extension, in the format of `nested`. */
function idleNestedState(nested: Uint8Array): Uint8Array {
  const { format } = kvm_nested_state.decode(nested)
  const bytes = kvm_nested_state.encode({
    flags: format === KVM_STATE_NESTED_FORMAT_SVM ? KVM_STATE_NESTED_GIF_SET : 0,
    format,
    size: kvm_nested_state.size,
    hdr: { pad: new Uint8Array(120) },
  })
  if (format === KVM_STATE_NESTED_FORMAT_VMX) {
    const none = 2n ** 64n - 1n
    const header = {
      vmxon_pa: none,
      vmcs12_pa: none,
      smm: { flags: 0 },
      pad: 0,
      flags: 0,
      preemption_timer_deadline: 0n,
    }
    kvm_vmx_nested_state_hdr.encode(header, bytes, kvm_nested_state.offsetOf('hdr'))
  }
  return bytes
}

function inGuestMode(nested: Uint8Array): boolean {
  return (kvm_nested_state.decode(nested).flags & KVM_STATE_NESTED_GUEST_MODE) !== 0
}

/** The area is in XSAVE's standard form: a host with more components reads zeros where the saved one had none. */
function fitXsave(saved: Uint8Array, size: number): Uint8Array {
  if (saved.length >= size) return saved
  const bytes = new Uint8Array(size)
  bytes.set(saved)
  return bytes
}

function part(state: Blobs, name: string): Uint8Array {
  const bytes = state[name]
  if (!bytes) throw new RangeError(`the saved state has no ${name}`)
  return bytes
}

/** New bytes that `call` fills. */
export function filled(size: number, call: (bytes: Uint8Array) => unknown): Uint8Array {
  const bytes = new Uint8Array(size)
  call(bytes)
  return bytes
}

export function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function u32(value: number): Uint8Array {
  const bytes = new Uint8Array(4)
  view(bytes).setUint32(0, value, true)
  return bytes
}

function u64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8)
  view(bytes).setBigUint64(0, BigInt.asUintN(64, value), true)
  return bytes
}
