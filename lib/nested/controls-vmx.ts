/** The control fields of a VMCS as named bits (Intel SDM vol. 3, sections 25.6 to 25.8). */
import { type BitTable, bitNames, hasBit, mask } from './bits.js'
import type { Vmcs12, Vmcs12Name } from './vmcs12.js'

/** Table 25-5 */
export const PIN_BASED = {
  'external-interrupt exiting': 0,
  'NMI exiting': 3,
  'virtual NMIs': 5,
  'activate VMX-preemption timer': 6,
  'process posted interrupts': 7,
} as const

/** Table 25-6 */
export const PRIMARY = {
  'interrupt-window exiting': 2,
  'use TSC offsetting': 3,
  'HLT exiting': 7,
  'INVLPG exiting': 9,
  'MWAIT exiting': 10,
  'RDPMC exiting': 11,
  'RDTSC exiting': 12,
  'CR3-load exiting': 15,
  'CR3-store exiting': 16,
  'activate tertiary controls': 17,
  'CR8-load exiting': 19,
  'CR8-store exiting': 20,
  'use TPR shadow': 21,
  'NMI-window exiting': 22,
  'MOV-DR exiting': 23,
  'unconditional I/O exiting': 24,
  'use I/O bitmaps': 25,
  'monitor trap flag': 27,
  'use MSR bitmaps': 28,
  'MONITOR exiting': 29,
  'PAUSE exiting': 30,
  'activate secondary controls': 31,
} as const

/** Table 25-7 */
export const SECONDARY = {
  'virtualize APIC accesses': 0,
  'enable EPT': 1,
  'descriptor-table exiting': 2,
  'enable RDTSCP': 3,
  'virtualize x2APIC mode': 4,
  'enable VPID': 5,
  'WBINVD exiting': 6,
  'unrestricted guest': 7,
  'APIC-register virtualization': 8,
  'virtual-interrupt delivery': 9,
  'PAUSE-loop exiting': 10,
  'RDRAND exiting': 11,
  'enable INVPCID': 12,
  'enable VM functions': 13,
  'VMCS shadowing': 14,
  'enable ENCLS exiting': 15,
  'RDSEED exiting': 16,
  'enable PML': 17,
  'EPT-violation #VE': 18,
  'conceal VMX from PT': 19,
  'enable XSAVES/XRSTORS': 20,
  'PASID translation': 21,
  'mode-based execute control for EPT': 22,
  'sub-page write permissions for EPT': 23,
  'Intel PT uses guest physical addresses': 24,
  'use TSC scaling': 25,
  'enable user wait and pause': 26,
  'enable PCONFIG': 27,
  'enable ENCLV exiting': 28,
  'VMM bus-lock detection': 30,
  'instruction timeout': 31,
} as const

/** Table 25-8. KVM's VMCS12 has no such field yet. */
export const TERTIARY = {
  'LOADIWKEY exiting': 0,
  'enable HLAT': 1,
  'EPT paging-write control': 2,
  'guest-paging verification': 3,
  'IPI virtualization': 4,
  'enable MSR-list instructions': 6,
  'virtualize IA32_SPEC_CTRL': 7,
} as const

/** Table 25-13 */
export const VM_EXIT = {
  'save debug controls': 2,
  'host address-space size': 9,
  'load IA32_PERF_GLOBAL_CTRL': 12,
  'acknowledge interrupt on exit': 15,
  'save IA32_PAT': 18,
  'load IA32_PAT': 19,
  'save IA32_EFER': 20,
  'load IA32_EFER': 21,
  'save VMX-preemption timer value': 22,
  'clear IA32_BNDCFGS': 23,
  'conceal VMX from PT': 24,
  'clear IA32_RTIT_CTL': 25,
  'clear IA32_LBR_CTL': 26,
  'clear UINV': 27,
  'load CET state': 28,
  'load PKRS': 29,
  'save IA32_PERF_GLOBAL_CTRL': 30,
  'activate secondary controls': 31,
} as const

/** Table 25-15 */
export const VM_ENTRY = {
  'load debug controls': 2,
  'IA-32e mode guest': 9,
  'entry to SMM': 10,
  'deactivate dual-monitor treatment': 11,
  'load IA32_PERF_GLOBAL_CTRL': 13,
  'load IA32_PAT': 14,
  'load IA32_EFER': 15,
  'load IA32_BNDCFGS': 16,
  'conceal VMX from PT': 17,
  'load IA32_RTIT_CTL': 18,
  'load UINV': 19,
  'load CET state': 20,
  'load guest IA32_LBR_CTL': 21,
  'load PKRS': 22,
} as const

/** Section 25.6.14 */
export const VM_FUNCTIONS = { 'EPTP switching': 0 } as const

interface ControlWord {
  readonly field: Vmcs12Name
  readonly table: BitTable
  /** Reserved bits that every processor wants as 1: they carry no meaning (Intel SDM vol. 3, appendix A.2). */
  readonly ones: bigint
}

export const VMX_CONTROLS = {
  pin: { field: 'pinBasedVmExecutionControls', table: PIN_BASED, ones: mask(1, 2, 4) },
  primary: {
    field: 'primaryProcessorBasedVmExecutionControls',
    table: PRIMARY,
    ones: mask(1, 4, 5, 6, 8, 13, 14, 26),
  },
  secondary: { field: 'secondaryProcessorBasedVmExecutionControls', table: SECONDARY, ones: 0n },
  exit: { field: 'vmExitControls', table: VM_EXIT, ones: mask(0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14, 16, 17) },
  entry: { field: 'vmEntryControls', table: VM_ENTRY, ones: mask(0, 1, 3, 4, 5, 6, 7, 8, 12) },
} as const satisfies Record<string, ControlWord>

export type VmxControl = keyof typeof VMX_CONTROLS

const words: Readonly<Record<VmxControl, ControlWord>> = VMX_CONTROLS

/** True where that control is 1; the secondary controls count as 0 while they are not activated. */
export function hasControl<W extends VmxControl>(
  { fields }: Vmcs12,
  word: W,
  name: keyof (typeof VMX_CONTROLS)[W]['table'] & string,
): boolean {
  const active =
    word !== 'secondary' || hasBit(PRIMARY, fields[VMX_CONTROLS.primary.field], 'activate secondary controls')
  const { field, table } = words[word]
  return active && hasBit(table, fields[field], name)
}

/** The controls that are 1, by name. */
export function controlNames({ fields }: Vmcs12, word: VmxControl): string[] {
  const { field, table, ones } = words[word]
  return bitNames(table, fields[field], ones)
}
