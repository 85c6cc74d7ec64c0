/**
 * The structs of the vCPU ioctls, as `<asm/kvm.h>` and `<linux/kvm.h>` lay them out for x86-64.
 * What each means: the kernel's "KVM API" document, section 4, under the ioctl that the comment names.
 */
import { array, bytes, flexible, type Infer, struct, u8, u16, u32, u64 } from './layout.js'

/** KVM_GET_REGS, KVM_SET_REGS */
export const kvm_regs = struct('kvm_regs', {
  rax: u64,
  rbx: u64,
  rcx: u64,
  rdx: u64,
  rsi: u64,
  rdi: u64,
  rsp: u64,
  rbp: u64,
  r8: u64,
  r9: u64,
  r10: u64,
  r11: u64,
  r12: u64,
  r13: u64,
  r14: u64,
  r15: u64,
  rip: u64,
  rflags: u64,
})
export type KvmRegs = Infer<typeof kvm_regs>

export const kvm_segment = struct('kvm_segment', {
  base: u64,
  limit: u32,
  selector: u16,
  type: u8,
  present: u8,
  dpl: u8,
  db: u8,
  s: u8,
  l: u8,
  g: u8,
  avl: u8,
  unusable: u8,
  padding: u8,
})
export type KvmSegment = Infer<typeof kvm_segment>

export const kvm_dtable = struct('kvm_dtable', { base: u64, limit: u16, padding: array(u16, 3) })
export type KvmDtable = Infer<typeof kvm_dtable>

const systemRegisters = {
  cs: kvm_segment,
  ds: kvm_segment,
  es: kvm_segment,
  fs: kvm_segment,
  gs: kvm_segment,
  ss: kvm_segment,
  tr: kvm_segment,
  ldt: kvm_segment,
  gdt: kvm_dtable,
  idt: kvm_dtable,
  cr0: u64,
  cr2: u64,
  cr3: u64,
  cr4: u64,
  cr8: u64,
  efer: u64,
  apic_base: u64,
} as const

/** KVM_GET_SREGS, KVM_SET_SREGS */
export const kvm_sregs = struct('kvm_sregs', { ...systemRegisters, interrupt_bitmap: array(u64, 4) })
export type KvmSregs = Infer<typeof kvm_sregs>

/** KVM_GET_SREGS2, KVM_SET_SREGS2 */
export const kvm_sregs2 = struct('kvm_sregs2', { ...systemRegisters, flags: u64, pdptrs: array(u64, 4) })
export type KvmSregs2 = Infer<typeof kvm_sregs2>

/** KVM_GET_FPU, KVM_SET_FPU */
export const kvm_fpu = struct('kvm_fpu', {
  fpr: array(bytes(16), 8),
  fcw: u16,
  fsw: u16,
  ftwx: u8,
  pad1: u8,
  last_opcode: u16,
  last_ip: u64,
  last_dp: u64,
  xmm: array(bytes(16), 16),
  mxcsr: u32,
  pad2: u32,
})
export type KvmFpu = Infer<typeof kvm_fpu>

/** KVM_GET_XSAVE, KVM_SET_XSAVE; KVM_GET_XSAVE2 may give more than this, as KVM_CAP_XSAVE2 says */
export const kvm_xsave = struct('kvm_xsave', { region: array(u32, 1024) })
export type KvmXsave = Infer<typeof kvm_xsave>

export const kvm_xcr = struct('kvm_xcr', { xcr: u32, reserved: u32, value: u64 })
export type KvmXcr = Infer<typeof kvm_xcr>

/** KVM_GET_XCRS, KVM_SET_XCRS */
export const kvm_xcrs = struct('kvm_xcrs', {
  nr_xcrs: u32,
  flags: u32,
  xcrs: array(kvm_xcr, 16),
  padding: array(u64, 16),
})
export type KvmXcrs = Infer<typeof kvm_xcrs>

export const kvm_cpuid_entry2 = struct('kvm_cpuid_entry2', {
  function: u32,
  index: u32,
  flags: u32,
  eax: u32,
  ebx: u32,
  ecx: u32,
  edx: u32,
  padding: array(u32, 3),
})

/** One CPUID leaf: a `kvm_cpuid_entry2` without its padding; all members are unsigned 32-bit. */
export type CpuidEntry = Omit<Infer<typeof kvm_cpuid_entry2>, 'padding'>

/** KVM_SET_CPUID2, KVM_GET_CPUID2, KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID */
export const kvm_cpuid2 = struct('kvm_cpuid2', {
  nent: u32,
  padding: u32,
  entries: flexible(kvm_cpuid_entry2, 'nent'),
})

export const kvm_msr_entry = struct('kvm_msr_entry', { index: u32, reserved: u32, data: u64 })

/** One model-specific register: a `kvm_msr_entry`, whose `data` is called `value` here. */
export interface Msr {
  index: number
  value: bigint
}

/** KVM_GET_MSRS, KVM_SET_MSRS */
export const kvm_msrs = struct('kvm_msrs', { nmsrs: u32, pad: u32, entries: flexible(kvm_msr_entry, 'nmsrs') })

/** KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST */
export const kvm_msr_list = struct('kvm_msr_list', { nmsrs: u32, indices: flexible(u32, 'nmsrs') })

/** KVM_GET_LAPIC, KVM_SET_LAPIC: the registers at the offsets of the APIC page (Intel SDM vol. 3, table 12-1) */
export const kvm_lapic_state = struct('kvm_lapic_state', { regs: bytes(0x400) })
export type KvmLapicState = Infer<typeof kvm_lapic_state>

/** KVM_GET_MP_STATE, KVM_SET_MP_STATE */
export const kvm_mp_state = struct('kvm_mp_state', { mp_state: u32 })
export type KvmMpState = Infer<typeof kvm_mp_state>

/** KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS */
export const kvm_vcpu_events = struct('kvm_vcpu_events', {
  exception: struct('exception', { injected: u8, nr: u8, has_error_code: u8, pending: u8, error_code: u32 }),
  interrupt: struct('interrupt', { injected: u8, nr: u8, soft: u8, shadow: u8 }),
  nmi: struct('nmi', { injected: u8, pending: u8, masked: u8, pad: u8 }),
  sipi_vector: u32,
  flags: u32,
  smi: struct('smi', { smm: u8, pending: u8, smm_inside_nmi: u8, latched_init: u8 }),
  triple_fault: struct('triple_fault', { pending: u8 }),
  reserved: bytes(26),
  exception_has_payload: u8,
  exception_payload: u64,
})
export type KvmVcpuEvents = Infer<typeof kvm_vcpu_events>

/** KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS */
export const kvm_debugregs = struct('kvm_debugregs', {
  db: array(u64, 4),
  dr6: u64,
  dr7: u64,
  flags: u64,
  reserved: array(u64, 9),
})
export type KvmDebugregs = Infer<typeof kvm_debugregs>

/** The part of the nested state's header that is Intel's (`KVM_STATE_NESTED_FORMAT_VMX`) */
export const kvm_vmx_nested_state_hdr = struct('kvm_vmx_nested_state_hdr', {
  vmxon_pa: u64,
  vmcs12_pa: u64,
  smm: struct('smm', { flags: u16 }),
  pad: u16,
  flags: u32,
  preemption_timer_deadline: u64,
})
export type KvmVmxNestedStateHdr = Infer<typeof kvm_vmx_nested_state_hdr>

/** The part of the nested state's header that is AMD's (`KVM_STATE_NESTED_FORMAT_SVM`); kernels before `gpat` give 0 for it */
export const kvm_svm_nested_state_hdr = struct('kvm_svm_nested_state_hdr', { vmcb_pa: u64, gpat: u64 })
export type KvmSvmNestedStateHdr = Infer<typeof kvm_svm_nested_state_hdr>

/**
 * KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE: the 128 bytes before the data. `hdr` stays raw: newer kernels use more of
 * it than any one header file knows, and all of it must come back unchanged.
 */
export const kvm_nested_state = struct('kvm_nested_state', {
  flags: u16,
  format: u16,
  size: u32,
  hdr: struct('hdr', { pad: bytes(120) }),
})
export type KvmNestedState = Infer<typeof kvm_nested_state>

export const kvm_guest_debug_arch = struct('kvm_guest_debug_arch', { debugreg: array(u64, 8) })

/** KVM_SET_GUEST_DEBUG */
export const kvm_guest_debug = struct('kvm_guest_debug', { control: u32, pad: u32, arch: kvm_guest_debug_arch })
export type KvmGuestDebug = Infer<typeof kvm_guest_debug>

/** KVM_TRANSLATE */
export const kvm_translation = struct('kvm_translation', {
  linear_address: u64,
  physical_address: u64,
  valid: u8,
  writeable: u8,
  usermode: u8,
  pad: bytes(5),
})
export type KvmTranslation = Infer<typeof kvm_translation>

/** KVM_INTERRUPT */
export const kvm_interrupt = struct('kvm_interrupt', { irq: u32 })

/** KVM_SET_SIGNAL_MASK: `sigset` is the kernel's set, 8 bytes, not the C library's */
export const kvm_signal_mask = struct('kvm_signal_mask', { len: u32, sigset: flexible(u8, 'len') })

/** KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR */
export const kvm_device_attr = struct('kvm_device_attr', { flags: u32, group: u32, attr: u64, addr: u64 })
