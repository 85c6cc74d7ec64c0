/** Where everything of the small hypervisors lies in L1's memory, and the ports at which L1 and L2 report. */

/** Bytes of L1's memory. */
export const L1_MEMORY = 0x80000

/** The control block: VMCB12, or VMCS12. */
export const CONTROL_BLOCK = 0x10000
/** The host save area (svm), or the VMXON region (vmx). */
export const HOST_AREA = 0x11000
/** Empty: no MSR is intercepted (vmx only; svm does not intercept MSRs at all). */
export const MSR_BITMAP = 0x12000
/** L1's variables. */
export const L1_DATA = 0x15000
export const L1_IDT = 0x16000
/** Segment descriptors, of L1 and of L2. */
export const L1_GDT = 0x17000
export const L1_ORIGIN = 0x20000
/** Nested paging: four levels, a page each. */
export const NESTED_TABLES = 0x30000

/** L2's memory, as L2 addresses it. */
export const L2_ORIGIN = 0x40000
export const L2_SIZE = 0x10000
/** With nested paging L2's memory lies this much higher in L1's: nothing works by chance with the wrong tables. */
export const NESTED_OFFSET = 0x20000
export const L2_TABLE_A = L2_ORIGIN + 0x4000
export const L2_TABLE_B = L2_ORIGIN + 0x5000
export const L2_IDT = L2_ORIGIN + 0x6000
export const L2_GDT = L2_ORIGIN + 0x7000
/** Counts the interrupts that L2 took. */
export const L2_TAKEN = L2_ORIGIN + 0x8000
export const L2_STACK = L2_ORIGIN + 0x9ff0
export const L2_PAGE_TABLES = L2_ORIGIN + 0xa000

/** Selectors in both GDTs. */
export const CODE = 0x8
export const DATA = 0x10
export const TASK = 0x18

/** The interrupts that L2 takes, and that L1 takes for itself. */
export const L2_VECTOR = 0x41
export const L1_VECTOR = 0x51

/**
 * Stations: ports to which L1 and L2 write 32 bits at a moment of interest. None is a port of a PC's chips, which KVM may
 * emulate itself.
 */
export const station = {
  /** L1, the extension is off. */
  start: 0x510,
  /** L1: EFER.SVME is on; VMXON done, no VMCS. */
  enabled: 0x511,
  /** L1, vmx: the VMCS is clear, none is current. */
  cleared: 0x512,
  /** L1, vmx: the VMCS is current, and empty. */
  loaded: 0x513,
  /** L1 is about to enter L2 for the first time. svm: GIF is 0. */
  ready: 0x514,
  /** L1 after L2's exit, with the exit reason. svm: GIF is 0. */
  exit: 0x515,
  /** L1, vmx: the VMCS that L2 ran on is cleared, none is current. */
  clearedAgain: 0x516,
  /** L1, L2 has ended and the extension is off again. */
  end: 0x517,
  /** L1's interrupt handler. */
  l1Interrupt: 0x518,
  /** L2 with its counter, once every period; it then reads the answer there (io-in). */
  l2: 0x520,
  /** L2 with interrupts off, and one pending for it. */
  pending: 0x521,
  /** L2's interrupt handler. */
  l2Interrupt: 0x522,
  /** L2 is about to halt, interrupts on; L1 does not intercept that. */
  halt: 0x523,
  /** L2's hash, low half, then high half. */
  l2Hash: 0x52f,
  /** L1's hash, the same way: the last station. */
  l1Hash: 0x51f,
  /** Something went wrong: the exit reason or error. */
  failed: 0x51e,
} as const

/** Why L2 makes a hypercall, in RAX. */
export const call = { mix: 1, interrupt: 2, done: 3 } as const

/** Multiplier of the FNV-1a hash; odd, so that no step loses anything. */
export const PRIME = '0x100000001b3'
export const BASIS = '0xcbf29ce484222325'

/** Writes to a station in assembly, what EAX has; keeps all registers. */
export const reporting = `
.macro report port
  push rdx
  mov dx, \\port
  out dx, eax
  pop rdx
.endm
`
