import {
  KVM_STATE_NESTED_FORMAT_VMX,
  KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE,
  kvm_nested_state,
  kvm_vmx_nested_state_hdr,
} from '../../kvm/structs.js'
import type { Vcpu } from '../../kvm/vcpu.js'
import { MSR } from './msrs.js'

/** Deadlines count in units of 2^5 ticks of L1's TSC (VMX_MISC_EMULATED_PREEMPTION_TIMER_RATE). */
const RATE = 5n
const HDR = kvm_nested_state.offsetOf('hdr')

/**
 * Gives a nested state to a vCPU by `set`, with the deadline of its VMX-preemption timer in the future: KVM takes what is left
 * until then as unsigned (`vmx_calc_preemption_timer_value`), so one that has passed would come an hour later, or never. It is
 * due at once, as on a processor whose timer has counted down (Intel SDM vol. 3, 26.5.1).
 */
export function setWithDeadline(vcpu: Vcpu, nested: Uint8Array, set: (nested: Uint8Array) => void): void {
  const saved = deadlineOf(nested)
  if (saved === undefined) {
    set(nested)
    return
  }
  const now = () => vcpu.getMsrs([MSR.IA32_TIME_STAMP_COUNTER])[0]!.value >> RATE
  // A millisecond is time enough, unless this thread is held up between here and the ioctl. Never 0, however slow a TSC was saved.
  for (let margin = (BigInt(vcpu.getTscKhz()) >> RATE) + 1n; ; margin *= 2n) {
    let deadline = now() + margin
    if (deadline < saved) deadline = saved
    const bytes = nested.slice()
    new DataView(bytes.buffer).setBigUint64(
      HDR + kvm_vmx_nested_state_hdr.offsetOf('preemption_timer_deadline'),
      deadline,
      true,
    )
    set(bytes)
    if (now() < deadline) return
  }
}

function deadlineOf(nested: Uint8Array): bigint | undefined {
  if (kvm_nested_state.decode(nested).format !== KVM_STATE_NESTED_FORMAT_VMX) return undefined
  const { flags, preemption_timer_deadline } = kvm_vmx_nested_state_hdr.decode(nested, HDR)
  return (flags & KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE) === 0 ? undefined : preemption_timer_deadline
}
