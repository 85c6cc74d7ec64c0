/**
 * The VMCB (AMD APM vol. 2, appendix B, tables B-1 and B-2): control area in its first 1024 bytes, save area after them.
 *
 * In a nested state the control area is VMCB12's, but the save area holds **L1's** state, for the next exit to L1: L2's is in
 * the vCPU's ordinary registers. Fields that KVM does not carry in a nested state are there as well, and read 0.
 */
import { type Block, decodeBlock, encodeBlock, type Field } from './block.js'

export const SAVE_AREA = 0x400

const control = [
  [0x000, 2, 'interceptCrReads', 'Intercept reads of CR0-15'],
  [0x002, 2, 'interceptCrWrites', 'Intercept writes of CR0-15'],
  [0x004, 2, 'interceptDrReads', 'Intercept reads of DR0-15'],
  [0x006, 2, 'interceptDrWrites', 'Intercept writes of DR0-15'],
  [0x008, 4, 'interceptExceptions', 'Intercept exception vectors 0-31'],
  [0x00c, 4, 'interceptVector3', 'Intercept vector 3'],
  [0x010, 4, 'interceptVector4', 'Intercept vector 4'],
  [0x014, 4, 'interceptVector5', 'Intercept vector 5'],
  [0x03c, 2, 'pauseFilterThreshold', 'PAUSE Filter Threshold'],
  [0x03e, 2, 'pauseFilterCount', 'PAUSE Filter Count'],
  [0x040, 8, 'iopmBasePa', 'IOPM_BASE_PA'],
  [0x048, 8, 'msrpmBasePa', 'MSRPM_BASE_PA'],
  [0x050, 8, 'tscOffset', 'TSC_OFFSET'],
  [0x058, 4, 'guestAsid', 'Guest ASID'],
  [0x05c, 1, 'tlbControl', 'TLB_CONTROL'],
  [0x05d, 1, 'erapControl', 'ERAP_CONTROL'],
  [0x060, 4, 'virtualInterruptControl', 'Virtual interrupt control'],
  [0x064, 4, 'virtualInterruptVector', 'V_INTR_VECTOR'],
  [0x068, 8, 'interruptShadow', 'INTERRUPT_SHADOW, GUEST_INTERRUPT_MASK'],
  [0x070, 8, 'exitCode', 'EXITCODE'],
  [0x078, 8, 'exitInfo1', 'EXITINFO1'],
  [0x080, 8, 'exitInfo2', 'EXITINFO2'],
  [0x088, 8, 'exitIntInfo', 'EXITINTINFO'],
  [0x090, 8, 'nestedControl', 'NP_ENABLE and others'],
  [0x098, 8, 'avicApicBar', 'AVIC APIC_BAR'],
  [0x0a0, 8, 'ghcbPa', 'Guest physical address of GHCB'],
  [0x0a8, 8, 'eventInj', 'EVENTINJ'],
  [0x0b0, 8, 'nCr3', 'N_CR3'],
  [0x0b8, 8, 'virtualizationExtensions', 'LBR_VIRTUALIZATION_ENABLE and others'],
  [0x0c0, 4, 'vmcbCleanBits', 'VMCB Clean Bits'],
  [0x0c8, 8, 'nRip', 'nRIP'],
  [0x0d0, 1, 'bytesFetched', 'Number of bytes fetched'],
  [0x0d1, 15, 'guestInstructionBytes', 'Guest instruction bytes'],
  [0x0e0, 8, 'avicApicBackingPage', 'AVIC APIC_BACKING_PAGE Pointer'],
  [0x0f0, 8, 'avicLogicalTable', 'AVIC LOGICAL_TABLE Pointer'],
  [0x0f8, 8, 'avicPhysicalTable', 'AVIC PHYSICAL_TABLE Pointer'],
  [0x108, 8, 'vmsaPa', 'VMSA Pointer'],
  [0x120, 2, 'busLockThresholdCounter', 'Bus Lock Threshold Counter'],
] as const

/** Where the save area has its segments, each a selector, attributes, a limit and a base. */
const segments = ['es', 'cs', 'ss', 'ds', 'fs', 'gs', 'gdtr', 'ldtr', 'idtr', 'tr'] as const

/** Offsets from the start of the save area, as the APM gives them. */
const save = [
  [0x0cb, 1, 'cpl', 'CPL'],
  [0x0d0, 8, 'efer', 'EFER'],
  [0x148, 8, 'cr4', 'CR4'],
  [0x150, 8, 'cr3', 'CR3'],
  [0x158, 8, 'cr0', 'CR0'],
  [0x160, 8, 'dr7', 'DR7'],
  [0x168, 8, 'dr6', 'DR6'],
  [0x170, 8, 'rflags', 'RFLAGS'],
  [0x178, 8, 'rip', 'RIP'],
  [0x1d8, 8, 'rsp', 'RSP'],
  [0x1e0, 8, 'sCet', 'S_CET'],
  [0x1e8, 8, 'ssp', 'SSP'],
  [0x1f0, 8, 'isstAddr', 'ISST_ADDR'],
  [0x1f8, 8, 'rax', 'RAX'],
  [0x200, 8, 'star', 'STAR'],
  [0x208, 8, 'lstar', 'LSTAR'],
  [0x210, 8, 'cstar', 'CSTAR'],
  [0x218, 8, 'sfmask', 'SFMASK'],
  [0x220, 8, 'kernelGsBase', 'KernelGsBase'],
  [0x228, 8, 'sysenterCs', 'SYSENTER_CS'],
  [0x230, 8, 'sysenterEsp', 'SYSENTER_ESP'],
  [0x238, 8, 'sysenterEip', 'SYSENTER_EIP'],
  [0x240, 8, 'cr2', 'CR2'],
  [0x268, 8, 'gPat', 'G_PAT'],
  [0x270, 8, 'dbgctl', 'DBGCTL'],
  [0x278, 8, 'brFrom', 'BR_FROM'],
  [0x280, 8, 'brTo', 'BR_TO'],
  [0x288, 8, 'lastExcpFrom', 'LASTEXCPFROM'],
  [0x290, 8, 'lastExcpTo', 'LASTEXCPTO'],
  [0x2e0, 8, 'specCtrl', 'SPEC_CTRL'],
] as const

type SegmentPart = 'Selector' | 'Attrib' | 'Limit' | 'Base'

export type Vmcb12Name =
  | (typeof control)[number][2]
  | `${(typeof segments)[number]}${SegmentPart}`
  | (typeof save)[number][2]

export type Vmcb12Field = Field<Vmcb12Name>

/** A segment's parts: [offset, width, name, label] */
const parts = [
  [0, 2, 'Selector', 'selector'],
  [2, 2, 'Attrib', 'attrib'],
  [4, 4, 'Limit', 'limit'],
  [8, 8, 'Base', 'base'],
] as const

export const VMCB12_FIELDS: readonly Vmcb12Field[] = [
  ...control.map(([offset, width, name, label]) => ({ name, label, offset, width })),
  ...segments.flatMap((segment, i) =>
    parts.map(([at, width, part, label]) => ({
      name: `${segment}${part}` as const,
      label: `${segment.toUpperCase()} ${label}`,
      offset: SAVE_AREA + i * 16 + at,
      width,
    })),
  ),
  ...save.map(([offset, width, name, label]) => ({ name, label, offset: SAVE_AREA + offset, width })),
]

export type Vmcb12 = Block<Vmcb12Name>

/** @throws {RangeError} not 4096 bytes */
export function decodeVmcb12(bytes: Uint8Array): Vmcb12 {
  return decodeBlock('vmcb', VMCB12_FIELDS, bytes)
}

/**
 * The exact inverse of `decodeVmcb12`.
 * @throws {RangeError} a value does not fit into its field
 */
export function encodeVmcb12(vmcb12: Vmcb12): Uint8Array {
  return encodeBlock('vmcb', VMCB12_FIELDS, vmcb12)
}
