/** `struct kvm_nested_state` read: what a vCPU is doing with its virtualization extension (KVM API 4.114). */
import * as k from '../kvm/structs.js'
import { ALL_ONES } from './registers.js'

const HEADER = k.kvm_nested_state.size

interface Common {
  /** L2 is the one that runs: the vCPU is between VMRUN or VMLAUNCH and the next VM exit to L1. */
  guestMode: boolean
  /** L1 has asked to enter L2 and that entry has not happened yet. */
  runPending: boolean
  /** VMCB12 or VMCS12, as KVM keeps it; empty where KVM gave a header only. */
  data: Uint8Array
  /** The 128 bytes of the header: what is not decoded here (newer kernels use more of it) is encoded from them. */
  header: Uint8Array
}

export interface VmxNestedState extends Common {
  format: 'vmx'
  /** Guest-physical address of the VMXON region; undefined outside VMX operation. */
  vmxonPa?: bigint
  /** Guest-physical address of the current VMCS; undefined where there is none. */
  vmcs12Pa?: bigint
  enlightenedVmcs: boolean
  mtfPending: boolean
  smmGuestMode: boolean
  smmVmxon: boolean
  /** Guest TSC at which the VMX-preemption timer fires; undefined where it is not armed. */
  preemptionTimerDeadline?: bigint
}

export interface SvmNestedState extends Common {
  format: 'svm'
  /** Guest-physical address of the VMCB12 that L2 runs on; undefined outside guest mode. */
  vmcbPa?: bigint
  /** The global interrupt flag (AMD APM vol. 2, 15.17). */
  gif: boolean
}

export type NestedState = VmxNestedState | SvmNestedState

/**
 * Reads what `vcpu.getNestedState()` gave.
 * @throws {RangeError} the bytes are too short, their `size` is wrong, or the format is not known
 */
export function decodeNestedState(bytes: Uint8Array): NestedState {
  const { flags, format, size, hdr } = k.kvm_nested_state.decode(bytes)
  if (size < HEADER || size > bytes.length) {
    throw new RangeError(`kvm_nested_state.size: ${size} does not lie between 128 and the ${bytes.length} bytes given`)
  }
  const has = (flag: number) => (flags & flag) !== 0
  const common = {
    guestMode: has(k.KVM_STATE_NESTED_GUEST_MODE),
    runPending: has(k.KVM_STATE_NESTED_RUN_PENDING),
    data: bytes.slice(HEADER, size),
    header: bytes.slice(0, HEADER),
  }
  if (format === k.KVM_STATE_NESTED_FORMAT_SVM) {
    const { vmcb_pa } = k.kvm_svm_nested_state_hdr.decode(hdr.pad)
    return {
      format: 'svm',
      ...common,
      gif: has(k.KVM_STATE_NESTED_GIF_SET),
      ...(common.guestMode && { vmcbPa: vmcb_pa }),
    }
  }
  if (format === k.KVM_STATE_NESTED_FORMAT_VMX) {
    const header = k.kvm_vmx_nested_state_hdr.decode(hdr.pad)
    const timer = (header.flags & k.KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE) !== 0
    return {
      format: 'vmx',
      ...common,
      ...(header.vmxon_pa !== ALL_ONES && { vmxonPa: header.vmxon_pa }),
      ...(header.vmcs12_pa !== ALL_ONES && { vmcs12Pa: header.vmcs12_pa }),
      enlightenedVmcs: has(k.KVM_STATE_NESTED_EVMCS),
      mtfPending: has(k.KVM_STATE_NESTED_MTF_PENDING),
      smmGuestMode: (header.smm.flags & k.KVM_STATE_NESTED_SMM_GUEST_MODE) !== 0,
      smmVmxon: (header.smm.flags & k.KVM_STATE_NESTED_SMM_VMXON) !== 0,
      ...(timer && { preemptionTimerDeadline: header.preemption_timer_deadline }),
    }
  }
  throw new RangeError(`kvm_nested_state.format: ${format} is neither 0 (VMX) nor 1 (SVM)`)
}

/**
 * The exact inverse of `decodeNestedState`: the bytes that `vcpu.setNestedState()` takes.
 * @throws {RangeError} `header` is not 128 bytes long
 * @throws {TypeError} an address or a deadline is not an unsigned 64-bit value
 */
export function encodeNestedState(state: NestedState): Uint8Array {
  if (state.header.length !== HEADER) throw new RangeError(`header: ${state.header.length} bytes, not ${HEADER}`)
  const { flags, hdr } = k.kvm_nested_state.decode(state.header)
  const common: Flags = [
    [k.KVM_STATE_NESTED_GUEST_MODE, state.guestMode],
    [k.KVM_STATE_NESTED_RUN_PENDING, state.runPending],
  ]
  const bytes = new Uint8Array(HEADER + state.data.length)
  const finish = (format: number, more: Flags) => {
    const all = withFlags(flags, [...common, ...more])
    k.kvm_nested_state.encode({ flags: all, format, size: bytes.length, hdr }, bytes)
    bytes.set(state.data, HEADER)
    return bytes
  }
  if (state.format === 'svm') {
    const header = k.kvm_svm_nested_state_hdr.decode(hdr.pad)
    k.kvm_svm_nested_state_hdr.encode({ ...header, vmcb_pa: state.vmcbPa ?? header.vmcb_pa }, hdr.pad)
    return finish(k.KVM_STATE_NESTED_FORMAT_SVM, [[k.KVM_STATE_NESTED_GIF_SET, state.gif]])
  }
  const header = k.kvm_vmx_nested_state_hdr.decode(hdr.pad)
  const deadline = state.preemptionTimerDeadline
  k.kvm_vmx_nested_state_hdr.encode(
    {
      ...header,
      vmxon_pa: state.vmxonPa ?? ALL_ONES,
      vmcs12_pa: state.vmcs12Pa ?? ALL_ONES,
      smm: {
        flags: withFlags(header.smm.flags, [
          [k.KVM_STATE_NESTED_SMM_GUEST_MODE, state.smmGuestMode],
          [k.KVM_STATE_NESTED_SMM_VMXON, state.smmVmxon],
        ]),
      },
      flags: withFlags(header.flags, [[k.KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE, deadline !== undefined]]),
      preemption_timer_deadline: deadline ?? header.preemption_timer_deadline,
    },
    hdr.pad,
  )
  return finish(k.KVM_STATE_NESTED_FORMAT_VMX, [
    [k.KVM_STATE_NESTED_EVMCS, state.enlightenedVmcs],
    [k.KVM_STATE_NESTED_MTF_PENDING, state.mtfPending],
  ])
}

type Flags = readonly (readonly [mask: number, set: boolean])[]

/** `value` with these flags as given and all others as they were. */
function withFlags(value: number, flags: Flags): number {
  return flags.reduce((sum, [mask, set]) => (set ? sum | mask : sum & ~mask), value) >>> 0
}
