/** `struct kvm_nested_state` read: what a vCPU is doing with its virtualization extension (KVM API 4.114). */
import * as k from '../kvm/structs.js'

const NO_ADDRESS = 2n ** 64n - 1n

interface Common {
  /** L2 is the one that runs: the vCPU is between VMRUN or VMLAUNCH and the next VM exit to L1. */
  guestMode: boolean
  /** L1 has asked to enter L2 and that entry has not happened yet. */
  runPending: boolean
  /** VMCB12 or VMCS12, as KVM keeps it; empty where KVM gave a header only. */
  data: Uint8Array
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
  if (size < k.kvm_nested_state.size || size > bytes.length) {
    throw new RangeError(`kvm_nested_state.size: ${size} does not lie between 128 and the ${bytes.length} bytes given`)
  }
  const has = (flag: number) => (flags & flag) !== 0
  const common = {
    guestMode: has(k.KVM_STATE_NESTED_GUEST_MODE),
    runPending: has(k.KVM_STATE_NESTED_RUN_PENDING),
    data: bytes.slice(k.kvm_nested_state.size, size),
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
      ...(header.vmxon_pa !== NO_ADDRESS && { vmxonPa: header.vmxon_pa }),
      ...(header.vmcs12_pa !== NO_ADDRESS && { vmcs12Pa: header.vmcs12_pa }),
      enlightenedVmcs: has(k.KVM_STATE_NESTED_EVMCS),
      mtfPending: has(k.KVM_STATE_NESTED_MTF_PENDING),
      smmGuestMode: (header.smm.flags & k.KVM_STATE_NESTED_SMM_GUEST_MODE) !== 0,
      smmVmxon: (header.smm.flags & k.KVM_STATE_NESTED_SMM_VMXON) !== 0,
      ...(timer && { preemptionTimerDeadline: header.preemption_timer_deadline }),
    }
  }
  throw new RangeError(`kvm_nested_state.format: ${format} is neither 0 (VMX) nor 1 (SVM)`)
}
