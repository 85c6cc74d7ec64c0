/**
 * VMCS12, as KVM keeps it: `struct vmcs12` of the kernel's arch/x86/kvm/vmx/vmcs12.h, whose offsets are frozen because nested
 * states are migrated. The names and encodings of the fields are those of the Intel SDM (vol. 3, appendix B).
 */
import { type Block, decodeBlock, encodeBlock, type Field } from './block.js'

/** KVM's VMCS revision identifier: what IA32_VMX_BASIC reports, and dword 0 of each VMCS12 starts with. */
export const VMCS12_REVISION = 0x11e57ed0n
/** Bit 31 of dword 0: a shadow VMCS (Intel SDM vol. 3, section 25.2). */
export const SHADOW_VMCS_INDICATOR = 1n << 31n
/** As much of the page as KVM reads: a nested state with less of it counts as one without a VMCS12. */
export const VMCS12_USED_SIZE = 998

/** The VMCS data that is no field (Intel SDM vol. 3, table 25-1); KVM's launch state follows it. */
const header = [
  [0, 'vmcsRevisionIdentifier', 'VMCS revision identifier'],
  [4, 'vmxAbortIndicator', 'VMX-abort indicator'],
  [8, 'launchState', 'Launch state'],
] as const

// Offset 336 has been given to different fields by different patches: it stays among the bytes that belong to none.
const encoded = [
  [0x2000, 40, 'addressOfIoBitmapA', 'Address of I/O bitmap A'],
  [0x2002, 48, 'addressOfIoBitmapB', 'Address of I/O bitmap B'],
  [0x2004, 56, 'addressOfMsrBitmaps', 'Address of MSR bitmaps'],
  [0x2006, 64, 'vmExitMsrStoreAddress', 'VM-exit MSR-store address'],
  [0x2008, 72, 'vmExitMsrLoadAddress', 'VM-exit MSR-load address'],
  [0x200a, 80, 'vmEntryMsrLoadAddress', 'VM-entry MSR-load address'],
  [0x2010, 88, 'tscOffset', 'TSC offset'],
  [0x2012, 96, 'virtualApicAddress', 'Virtual-APIC address'],
  [0x2014, 104, 'apicAccessAddress', 'APIC-access address'],
  [0x2016, 112, 'postedInterruptDescriptorAddress', 'Posted-interrupt descriptor address'],
  [0x201a, 120, 'eptPointer', 'EPT pointer'],
  [0x201c, 128, 'eoiExitBitmap0', 'EOI-exit bitmap 0'],
  [0x201e, 136, 'eoiExitBitmap1', 'EOI-exit bitmap 1'],
  [0x2020, 144, 'eoiExitBitmap2', 'EOI-exit bitmap 2'],
  [0x2022, 152, 'eoiExitBitmap3', 'EOI-exit bitmap 3'],
  [0x202c, 160, 'xssExitingBitmap', 'XSS-exiting bitmap'],
  [0x2400, 168, 'guestPhysicalAddress', 'Guest-physical address'],
  [0x2800, 176, 'vmcsLinkPointer', 'VMCS link pointer'],
  [0x2802, 184, 'guestIa32Debugctl', 'Guest IA32_DEBUGCTL'],
  [0x2804, 192, 'guestIa32Pat', 'Guest IA32_PAT'],
  [0x2806, 200, 'guestIa32Efer', 'Guest IA32_EFER'],
  [0x2808, 208, 'guestIa32PerfGlobalCtrl', 'Guest IA32_PERF_GLOBAL_CTRL'],
  [0x280a, 216, 'guestPdpte0', 'Guest PDPTE0'],
  [0x280c, 224, 'guestPdpte1', 'Guest PDPTE1'],
  [0x280e, 232, 'guestPdpte2', 'Guest PDPTE2'],
  [0x2810, 240, 'guestPdpte3', 'Guest PDPTE3'],
  [0x2812, 248, 'guestIa32Bndcfgs', 'Guest IA32_BNDCFGS'],
  [0x2c00, 256, 'hostIa32Pat', 'Host IA32_PAT'],
  [0x2c02, 264, 'hostIa32Efer', 'Host IA32_EFER'],
  [0x2c04, 272, 'hostIa32PerfGlobalCtrl', 'Host IA32_PERF_GLOBAL_CTRL'],
  [0x2026, 280, 'vmreadBitmapAddress', 'VMREAD-bitmap address'],
  [0x2028, 288, 'vmwriteBitmapAddress', 'VMWRITE-bitmap address'],
  [0x2018, 296, 'vmFunctionControls', 'VM-function controls'],
  [0x2024, 304, 'eptpListAddress', 'EPTP-list address'],
  [0x200e, 312, 'pmlAddress', 'PML address'],
  [0x202e, 320, 'enclsExitingBitmap', 'ENCLS-exiting bitmap'],
  [0x2032, 328, 'tscMultiplier', 'TSC multiplier'],
  [0x6000, 344, 'cr0GuestHostMask', 'CR0 guest/host mask'],
  [0x6002, 352, 'cr4GuestHostMask', 'CR4 guest/host mask'],
  [0x6004, 360, 'cr0ReadShadow', 'CR0 read shadow'],
  [0x6006, 368, 'cr4ReadShadow', 'CR4 read shadow'],
  [0x6008, 376, 'cr3TargetValue0', 'CR3-target value 0'],
  [0x600a, 384, 'cr3TargetValue1', 'CR3-target value 1'],
  [0x600c, 392, 'cr3TargetValue2', 'CR3-target value 2'],
  [0x600e, 400, 'cr3TargetValue3', 'CR3-target value 3'],
  [0x6400, 408, 'exitQualification', 'Exit qualification'],
  [0x640a, 416, 'guestLinearAddress', 'Guest-linear address'],
  [0x6800, 424, 'guestCr0', 'Guest CR0'],
  [0x6802, 432, 'guestCr3', 'Guest CR3'],
  [0x6804, 440, 'guestCr4', 'Guest CR4'],
  [0x6806, 448, 'guestEsBase', 'Guest ES base'],
  [0x6808, 456, 'guestCsBase', 'Guest CS base'],
  [0x680a, 464, 'guestSsBase', 'Guest SS base'],
  [0x680c, 472, 'guestDsBase', 'Guest DS base'],
  [0x680e, 480, 'guestFsBase', 'Guest FS base'],
  [0x6810, 488, 'guestGsBase', 'Guest GS base'],
  [0x6812, 496, 'guestLdtrBase', 'Guest LDTR base'],
  [0x6814, 504, 'guestTrBase', 'Guest TR base'],
  [0x6816, 512, 'guestGdtrBase', 'Guest GDTR base'],
  [0x6818, 520, 'guestIdtrBase', 'Guest IDTR base'],
  [0x681a, 528, 'guestDr7', 'Guest DR7'],
  [0x681c, 536, 'guestRsp', 'Guest RSP'],
  [0x681e, 544, 'guestRip', 'Guest RIP'],
  [0x6820, 552, 'guestRflags', 'Guest RFLAGS'],
  [0x6822, 560, 'guestPendingDebugExceptions', 'Guest pending debug exceptions'],
  [0x6824, 568, 'guestIa32SysenterEsp', 'Guest IA32_SYSENTER_ESP'],
  [0x6826, 576, 'guestIa32SysenterEip', 'Guest IA32_SYSENTER_EIP'],
  [0x6c00, 584, 'hostCr0', 'Host CR0'],
  [0x6c02, 592, 'hostCr3', 'Host CR3'],
  [0x6c04, 600, 'hostCr4', 'Host CR4'],
  [0x6c06, 608, 'hostFsBase', 'Host FS base'],
  [0x6c08, 616, 'hostGsBase', 'Host GS base'],
  [0x6c0a, 624, 'hostTrBase', 'Host TR base'],
  [0x6c0c, 632, 'hostGdtrBase', 'Host GDTR base'],
  [0x6c0e, 640, 'hostIdtrBase', 'Host IDTR base'],
  [0x6c10, 648, 'hostIa32SysenterEsp', 'Host IA32_SYSENTER_ESP'],
  [0x6c12, 656, 'hostIa32SysenterEip', 'Host IA32_SYSENTER_EIP'],
  [0x6c14, 664, 'hostRsp', 'Host RSP'],
  [0x6c16, 672, 'hostRip', 'Host RIP'],
  [0x6c18, 680, 'hostIa32SCet', 'Host IA32_S_CET'],
  [0x6c1a, 688, 'hostSsp', 'Host SSP'],
  [0x6c1c, 696, 'hostIa32InterruptSspTableAddr', 'Host IA32_INTERRUPT_SSP_TABLE_ADDR'],
  [0x6828, 704, 'guestIa32SCet', 'Guest IA32_S_CET'],
  [0x682a, 712, 'guestSsp', 'Guest SSP'],
  [0x682c, 720, 'guestIa32InterruptSspTableAddr', 'Guest IA32_INTERRUPT_SSP_TABLE_ADDR'],
  [0x4000, 744, 'pinBasedVmExecutionControls', 'Pin-based VM-execution controls'],
  [0x4002, 748, 'primaryProcessorBasedVmExecutionControls', 'Primary processor-based VM-execution controls'],
  [0x4004, 752, 'exceptionBitmap', 'Exception bitmap'],
  [0x4006, 756, 'pageFaultErrorCodeMask', 'Page-fault error-code mask'],
  [0x4008, 760, 'pageFaultErrorCodeMatch', 'Page-fault error-code match'],
  [0x400a, 764, 'cr3TargetCount', 'CR3-target count'],
  [0x400c, 768, 'vmExitControls', 'VM-exit controls'],
  [0x400e, 772, 'vmExitMsrStoreCount', 'VM-exit MSR-store count'],
  [0x4010, 776, 'vmExitMsrLoadCount', 'VM-exit MSR-load count'],
  [0x4012, 780, 'vmEntryControls', 'VM-entry controls'],
  [0x4014, 784, 'vmEntryMsrLoadCount', 'VM-entry MSR-load count'],
  [0x4016, 788, 'vmEntryInterruptionInformationField', 'VM-entry interruption-information field'],
  [0x4018, 792, 'vmEntryExceptionErrorCode', 'VM-entry exception error code'],
  [0x401a, 796, 'vmEntryInstructionLength', 'VM-entry instruction length'],
  [0x401c, 800, 'tprThreshold', 'TPR threshold'],
  [0x401e, 804, 'secondaryProcessorBasedVmExecutionControls', 'Secondary processor-based VM-execution controls'],
  [0x4400, 808, 'vmInstructionError', 'VM-instruction error'],
  [0x4402, 812, 'exitReason', 'Exit reason'],
  [0x4404, 816, 'vmExitInterruptionInformation', 'VM-exit interruption information'],
  [0x4406, 820, 'vmExitInterruptionErrorCode', 'VM-exit interruption error code'],
  [0x4408, 824, 'idtVectoringInformationField', 'IDT-vectoring information field'],
  [0x440a, 828, 'idtVectoringErrorCode', 'IDT-vectoring error code'],
  [0x440c, 832, 'vmExitInstructionLength', 'VM-exit instruction length'],
  [0x440e, 836, 'vmExitInstructionInformation', 'VM-exit instruction information'],
  [0x4800, 840, 'guestEsLimit', 'Guest ES limit'],
  [0x4802, 844, 'guestCsLimit', 'Guest CS limit'],
  [0x4804, 848, 'guestSsLimit', 'Guest SS limit'],
  [0x4806, 852, 'guestDsLimit', 'Guest DS limit'],
  [0x4808, 856, 'guestFsLimit', 'Guest FS limit'],
  [0x480a, 860, 'guestGsLimit', 'Guest GS limit'],
  [0x480c, 864, 'guestLdtrLimit', 'Guest LDTR limit'],
  [0x480e, 868, 'guestTrLimit', 'Guest TR limit'],
  [0x4810, 872, 'guestGdtrLimit', 'Guest GDTR limit'],
  [0x4812, 876, 'guestIdtrLimit', 'Guest IDTR limit'],
  [0x4814, 880, 'guestEsAccessRights', 'Guest ES access rights'],
  [0x4816, 884, 'guestCsAccessRights', 'Guest CS access rights'],
  [0x4818, 888, 'guestSsAccessRights', 'Guest SS access rights'],
  [0x481a, 892, 'guestDsAccessRights', 'Guest DS access rights'],
  [0x481c, 896, 'guestFsAccessRights', 'Guest FS access rights'],
  [0x481e, 900, 'guestGsAccessRights', 'Guest GS access rights'],
  [0x4820, 904, 'guestLdtrAccessRights', 'Guest LDTR access rights'],
  [0x4822, 908, 'guestTrAccessRights', 'Guest TR access rights'],
  [0x4824, 912, 'guestInterruptibilityState', 'Guest interruptibility state'],
  [0x4826, 916, 'guestActivityState', 'Guest activity state'],
  [0x482a, 920, 'guestIa32SysenterCs', 'Guest IA32_SYSENTER_CS'],
  [0x4c00, 924, 'hostIa32SysenterCs', 'Host IA32_SYSENTER_CS'],
  [0x482e, 928, 'vmxPreemptionTimerValue', 'VMX-preemption timer value'],
  [0x0000, 960, 'virtualProcessorIdentifier', 'Virtual-processor identifier (VPID)'],
  [0x0002, 962, 'postedInterruptNotificationVector', 'Posted-interrupt notification vector'],
  [0x0800, 964, 'guestEsSelector', 'Guest ES selector'],
  [0x0802, 966, 'guestCsSelector', 'Guest CS selector'],
  [0x0804, 968, 'guestSsSelector', 'Guest SS selector'],
  [0x0806, 970, 'guestDsSelector', 'Guest DS selector'],
  [0x0808, 972, 'guestFsSelector', 'Guest FS selector'],
  [0x080a, 974, 'guestGsSelector', 'Guest GS selector'],
  [0x080c, 976, 'guestLdtrSelector', 'Guest LDTR selector'],
  [0x080e, 978, 'guestTrSelector', 'Guest TR selector'],
  [0x0810, 980, 'guestInterruptStatus', 'Guest interrupt status'],
  [0x0c00, 982, 'hostEsSelector', 'Host ES selector'],
  [0x0c02, 984, 'hostCsSelector', 'Host CS selector'],
  [0x0c04, 986, 'hostSsSelector', 'Host SS selector'],
  [0x0c06, 988, 'hostDsSelector', 'Host DS selector'],
  [0x0c08, 990, 'hostFsSelector', 'Host FS selector'],
  [0x0c0a, 992, 'hostGsSelector', 'Host GS selector'],
  [0x0c0c, 994, 'hostTrSelector', 'Host TR selector'],
  [0x0812, 996, 'pmlIndex', 'PML index'],
] as const

export type Vmcs12Name = (typeof header)[number][1] | (typeof encoded)[number][2]

export interface Vmcs12Field extends Field<Vmcs12Name> {
  /** What VMREAD and VMWRITE call it; undefined for the three dwords that they cannot reach. */
  readonly encoding?: number
}

/** Bits 14:13 of an encoding tell the width; KVM keeps natural-width fields as 64-bit (Intel SDM vol. 3, section 25.11.2). */
const widths = [2, 8, 4, 8] as const

export const VMCS12_FIELDS: readonly Vmcs12Field[] = [
  ...header.map(([offset, name, label]) => ({ name, label, offset, width: 4 })),
  ...encoded.map(([encoding, offset, name, label]) => ({
    name,
    label,
    offset,
    width: widths[((encoding >> 13) & 3) as 0 | 1 | 2 | 3],
    encoding,
  })),
]

export type Vmcs12 = Block<Vmcs12Name>

/** @throws {RangeError} not 4096 bytes */
export function decodeVmcs12(bytes: Uint8Array): Vmcs12 {
  return decodeBlock('vmcs12', VMCS12_FIELDS, bytes)
}

/**
 * The exact inverse of `decodeVmcs12`.
 * @throws {RangeError} a value does not fit into its field
 */
export function encodeVmcs12(vmcs12: Vmcs12): Uint8Array {
  return encodeBlock('vmcs12', VMCS12_FIELDS, vmcs12)
}
