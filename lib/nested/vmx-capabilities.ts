/** The VMX capability MSRs by their names (Intel SDM vol. 3, appendix A). */
export const VMX_MSRS = {
  IA32_VMX_BASIC: 0x480,
  IA32_VMX_PINBASED_CTLS: 0x481,
  IA32_VMX_PROCBASED_CTLS: 0x482,
  IA32_VMX_EXIT_CTLS: 0x483,
  IA32_VMX_ENTRY_CTLS: 0x484,
  IA32_VMX_MISC: 0x485,
  IA32_VMX_CR0_FIXED0: 0x486,
  IA32_VMX_CR0_FIXED1: 0x487,
  IA32_VMX_CR4_FIXED0: 0x488,
  IA32_VMX_CR4_FIXED1: 0x489,
  IA32_VMX_VMCS_ENUM: 0x48a,
  IA32_VMX_PROCBASED_CTLS2: 0x48b,
  IA32_VMX_EPT_VPID_CAP: 0x48c,
  IA32_VMX_TRUE_PINBASED_CTLS: 0x48d,
  IA32_VMX_TRUE_PROCBASED_CTLS: 0x48e,
  IA32_VMX_TRUE_EXIT_CTLS: 0x48f,
  IA32_VMX_TRUE_ENTRY_CTLS: 0x490,
  IA32_VMX_VMFUNC: 0x491,
} as const

/** KVM derives these from the others or from CPUID, and refuses to have them written (arch/x86/kvm/vmx/nested.c). */
const derived: ReadonlySet<number> = new Set([
  VMX_MSRS.IA32_VMX_PINBASED_CTLS,
  VMX_MSRS.IA32_VMX_PROCBASED_CTLS,
  VMX_MSRS.IA32_VMX_EXIT_CTLS,
  VMX_MSRS.IA32_VMX_ENTRY_CTLS,
  VMX_MSRS.IA32_VMX_CR0_FIXED1,
  VMX_MSRS.IA32_VMX_CR4_FIXED1,
])

/** The VMX capability MSRs that `KVM_SET_MSRS` takes, in ascending order. */
export const WRITABLE_VMX_MSRS: readonly number[] = Object.values(VMX_MSRS).filter(index => !derived.has(index))
