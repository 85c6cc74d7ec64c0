/**
 * Constants of the KVM interface that x86 uses, named and valued as in `<linux/kvm.h>` and `<asm/kvm.h>`.
 */

// Exit reasons (KVM API, section 5).
export const KVM_EXIT_UNKNOWN = 0
export const KVM_EXIT_EXCEPTION = 1
export const KVM_EXIT_IO = 2
export const KVM_EXIT_HYPERCALL = 3
export const KVM_EXIT_DEBUG = 4
export const KVM_EXIT_HLT = 5
export const KVM_EXIT_MMIO = 6
export const KVM_EXIT_IRQ_WINDOW_OPEN = 7
export const KVM_EXIT_SHUTDOWN = 8
export const KVM_EXIT_FAIL_ENTRY = 9
export const KVM_EXIT_INTR = 10
export const KVM_EXIT_SET_TPR = 11
export const KVM_EXIT_TPR_ACCESS = 12
export const KVM_EXIT_NMI = 16
export const KVM_EXIT_INTERNAL_ERROR = 17
export const KVM_EXIT_SYSTEM_EVENT = 24
export const KVM_EXIT_IOAPIC_EOI = 26
export const KVM_EXIT_HYPERV = 27
export const KVM_EXIT_X86_RDMSR = 29
export const KVM_EXIT_X86_WRMSR = 30
export const KVM_EXIT_DIRTY_RING_FULL = 31
export const KVM_EXIT_AP_RESET_HOLD = 32
export const KVM_EXIT_X86_BUS_LOCK = 33
export const KVM_EXIT_XEN = 34
export const KVM_EXIT_NOTIFY = 37
// Newer than Linux 6.1.
export const KVM_EXIT_MEMORY_FAULT = 39

// What the members of kvm_run hold.
export const KVM_EXIT_HYPERV_SYNIC = 1
export const KVM_EXIT_HYPERV_HCALL = 2
export const KVM_EXIT_HYPERV_SYNDBG = 3
export const KVM_EXIT_XEN_HCALL = 1
export const KVM_INTERNAL_ERROR_EMULATION = 1
export const KVM_INTERNAL_ERROR_SIMUL_EX = 2
export const KVM_INTERNAL_ERROR_DELIVERY_EV = 3
export const KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
export const KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1
export const KVM_EXIT_IO_IN = 0
export const KVM_EXIT_IO_OUT = 1
export const KVM_SYSTEM_EVENT_SHUTDOWN = 1
export const KVM_SYSTEM_EVENT_RESET = 2
export const KVM_SYSTEM_EVENT_CRASH = 3
export const KVM_SYSTEM_EVENT_WAKEUP = 4
export const KVM_SYSTEM_EVENT_SUSPEND = 5
export const KVM_SYSTEM_EVENT_SEV_TERM = 6
export const KVM_MSR_EXIT_REASON_INVAL = 1
export const KVM_MSR_EXIT_REASON_UNKNOWN = 2
export const KVM_MSR_EXIT_REASON_FILTER = 4
export const KVM_NOTIFY_CONTEXT_INVALID = 1
export const KVM_RUN_X86_SMM = 1
export const KVM_RUN_X86_BUS_LOCK = 2
// Newer than Linux 6.1.
export const KVM_RUN_X86_GUEST_MODE = 4
export const KVM_MEMORY_EXIT_FLAG_PRIVATE = 8

// Memory slots and the dirty log.
export const KVM_MEM_LOG_DIRTY_PAGES = 1
export const KVM_MEM_READONLY = 2
export const KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1
export const KVM_DIRTY_LOG_INITIALLY_SET = 2

// Interrupt controllers, their routing, event file descriptors.
export const KVM_IOEVENTFD_FLAG_DATAMATCH = 1
export const KVM_IOEVENTFD_FLAG_PIO = 2
export const KVM_IOEVENTFD_FLAG_DEASSIGN = 4
export const KVM_IRQ_ROUTING_IRQCHIP = 1
export const KVM_IRQ_ROUTING_MSI = 2
export const KVM_IRQ_ROUTING_HV_SINT = 4
export const KVM_IRQ_ROUTING_XEN_EVTCHN = 5
export const KVM_IRQFD_FLAG_DEASSIGN = 1
export const KVM_IRQFD_FLAG_RESAMPLE = 2
export const KVM_MSI_VALID_DEVID = 1
export const KVM_IOAPIC_NUM_PINS = 24
export const KVM_IRQCHIP_PIC_MASTER = 0
export const KVM_IRQCHIP_PIC_SLAVE = 1
export const KVM_IRQCHIP_IOAPIC = 2
export const KVM_NR_IRQCHIPS = 3

// Timers and clocks.
export const KVM_PIT_SPEAKER_DUMMY = 1
export const KVM_CLOCK_TSC_STABLE = 2
export const KVM_CLOCK_REALTIME = 4
export const KVM_CLOCK_HOST_TSC = 8
export const KVM_PIT_FLAGS_HPET_LEGACY = 1
export const KVM_PIT_FLAGS_SPEAKER_DATA_ON = 2
export const KVM_VCPU_TSC_CTRL = 0
export const KVM_VCPU_TSC_OFFSET = 0

// vCPU state.
export const KVM_MP_STATE_RUNNABLE = 0
export const KVM_MP_STATE_UNINITIALIZED = 1
export const KVM_MP_STATE_INIT_RECEIVED = 2
export const KVM_MP_STATE_HALTED = 3
export const KVM_MP_STATE_SIPI_RECEIVED = 4
export const KVM_MP_STATE_AP_RESET_HOLD = 9
export const KVM_GUESTDBG_ENABLE = 1
export const KVM_GUESTDBG_SINGLESTEP = 2
export const KVM_APIC_REG_SIZE = 0x400
export const KVM_SREGS2_FLAGS_PDPTRS_VALID = 1
export const KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1
export const KVM_CPUID_FLAG_STATEFUL_FUNC = 2
export const KVM_CPUID_FLAG_STATE_READ_NEXT = 4
export const KVM_GUESTDBG_USE_SW_BP = 0x10000
export const KVM_GUESTDBG_USE_HW_BP = 0x20000
export const KVM_GUESTDBG_INJECT_DB = 0x40000
export const KVM_GUESTDBG_INJECT_BP = 0x80000
export const KVM_GUESTDBG_BLOCKIRQ = 0x100000
export const KVM_VCPUEVENT_VALID_NMI_PENDING = 1
export const KVM_VCPUEVENT_VALID_SIPI_VECTOR = 2
export const KVM_VCPUEVENT_VALID_SHADOW = 4
export const KVM_VCPUEVENT_VALID_SMM = 8
export const KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 0x20
export const KVM_X86_SHADOW_INT_MOV_SS = 1
export const KVM_X86_SHADOW_INT_STI = 2
export const KVM_MAX_XCRS = 16
export const KVM_SYNC_X86_REGS = 1
export const KVM_SYNC_X86_SREGS = 2
export const KVM_SYNC_X86_EVENTS = 4

// Nested state.
export const KVM_STATE_NESTED_FORMAT_VMX = 0
export const KVM_STATE_NESTED_FORMAT_SVM = 1
export const KVM_STATE_NESTED_GUEST_MODE = 1
export const KVM_STATE_NESTED_RUN_PENDING = 2
export const KVM_STATE_NESTED_EVMCS = 4
export const KVM_STATE_NESTED_MTF_PENDING = 8
export const KVM_STATE_NESTED_GIF_SET = 0x100
export const KVM_STATE_NESTED_SMM_GUEST_MODE = 1
export const KVM_STATE_NESTED_SMM_VMXON = 2
export const KVM_STATE_NESTED_VMX_VMCS_SIZE = 0x1000
export const KVM_STATE_NESTED_SVM_VMCB_SIZE = 0x1000
export const KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE = 1

// Arguments of KVM_ENABLE_CAP.
export const KVM_X86_DISABLE_EXITS_MWAIT = 1
export const KVM_X86_DISABLE_EXITS_HLT = 2
export const KVM_X86_DISABLE_EXITS_PAUSE = 4
export const KVM_X86_DISABLE_EXITS_CSTATE = 8
export const KVM_X2APIC_API_USE_32BIT_IDS = 1
export const KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK = 2
export const KVM_BUS_LOCK_DETECTION_OFF = 1
export const KVM_BUS_LOCK_DETECTION_EXIT = 2
export const KVM_X86_NOTIFY_VMEXIT_ENABLED = 1
export const KVM_X86_NOTIFY_VMEXIT_USER = 2
export const KVM_X86_QUIRK_LINT0_REENABLED = 1
export const KVM_X86_QUIRK_CD_NW_CLEARED = 2
export const KVM_X86_QUIRK_LAPIC_MMIO_HOLE = 4
export const KVM_X86_QUIRK_OUT_7E_INC_RIP = 8
export const KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT = 0x10
export const KVM_X86_QUIRK_FIX_HYPERCALL_INSN = 0x20
export const KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS = 0x40

// Pages of the vCPU mapping beyond the first, and the API version.
export const KVM_API_VERSION = 12
export const KVM_PIO_PAGE_OFFSET = 1
export const KVM_COALESCED_MMIO_PAGE_OFFSET = 2
