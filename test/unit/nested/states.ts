/** Nested states of each kind that KVM takes, to start from. */
import * as k from '../../../lib/kvm/structs.js'
import type { NestedVcpu } from '../../../lib/nested/rules.js'
import { decodeVmcb12, encodeVmcb12, type Vmcb12Name } from '../../../lib/nested/vmcb12.js'
import { decodeVmcs12, encodeVmcs12, VMCS12_REVISION, type Vmcs12Name } from '../../../lib/nested/vmcs12.js'

export const NONE = 2n ** 64n - 1n
export const VMXON_PA = 0x1000n
export const VMCS_PA = 0x2000n

export const vmxVcpu: NestedVcpu = {
  format: 'vmx',
  efer: 0xd01n,
  cr4: 0x2020n,
  smm: false,
  maxSize: 8320,
  enlightenedVmcs: false,
  maxPhyAddr: 40,
}

export const svmVcpu: NestedVcpu = { ...vmxVcpu, format: 'svm', efer: 0x1d01n, cr4: 0x20n, maxSize: 4224 }

export interface HeaderParts {
  flags: number
  vmxonPa: bigint
  vmcs12Pa: bigint
  smmFlags: number
  vmxFlags: number
  data: Uint8Array
}

export function state(
  flags: number,
  format: number,
  header: Uint8Array,
  data: Uint8Array = new Uint8Array(),
): Uint8Array {
  const bytes = new Uint8Array(128 + data.length)
  const pad = new Uint8Array(120)
  pad.set(header)
  k.kvm_nested_state.encode({ flags, format, size: bytes.length, hdr: { pad } }, bytes)
  bytes.set(data, 128)
  return bytes
}

export function vmxState(parts: Partial<HeaderParts> = {}): Uint8Array {
  const header = k.kvm_vmx_nested_state_hdr.encode({
    vmxon_pa: parts.vmxonPa ?? NONE,
    vmcs12_pa: parts.vmcs12Pa ?? NONE,
    smm: { flags: parts.smmFlags ?? 0 },
    pad: 0,
    flags: parts.vmxFlags ?? 0,
    preemption_timer_deadline: 0n,
  })
  return state(parts.flags ?? 0, 0, header, parts.data)
}

/** What a small 64-bit L1 with a 64-bit L2 has in its VMCS12: EPT, bitmaps, a TSC offset. */
const vmcs12Fields: Partial<Record<Vmcs12Name, bigint>> = {
  vmcsRevisionIdentifier: VMCS12_REVISION,
  launchState: 1n,
  vmcsLinkPointer: NONE,
  pinBasedVmExecutionControls: 0x16n | 0x1n | 0x8n,
  primaryProcessorBasedVmExecutionControls: 0x0401_e172n | (1n << 31n) | (1n << 28n) | (1n << 25n) | (1n << 3n),
  secondaryProcessorBasedVmExecutionControls: 0xa2n,
  vmExitControls: 0x3_6dffn | (1n << 9n) | (1n << 15n) | (1n << 19n) | (1n << 21n),
  vmEntryControls: 0x11ffn | (1n << 2n) | (1n << 9n) | (1n << 14n) | (1n << 15n),
  addressOfIoBitmapA: 0x3000n,
  addressOfIoBitmapB: 0x4000n,
  addressOfMsrBitmaps: 0x5000n,
  tscOffset: 0xffff_ffff_0000_0000n,
  eptPointer: 0x6000n | 6n | (3n << 3n),
  virtualProcessorIdentifier: 1n,
  hostCr0: 0x8005_0033n,
  hostCr3: 0x7000n,
  hostCr4: 0x2020n,
  hostRip: 0x10_0000n,
  hostRsp: 0x9000n,
  hostIa32Pat: 0x0007_0406_0007_0406n,
  hostIa32Efer: 0xd01n,
  hostCsSelector: 0x8n,
  hostSsSelector: 0x10n,
  hostDsSelector: 0x10n,
  hostEsSelector: 0x10n,
  hostTrSelector: 0x18n,
  guestCr0: 0x8005_0033n,
  guestCr3: 0xa000n,
  guestCr4: 0x2020n,
  guestDr7: 0x400n,
  guestRip: 0x20_0000n,
  guestRsp: 0xb000n,
  guestRflags: 2n,
  guestIa32Pat: 0x0007_0406_0007_0406n,
  guestIa32Efer: 0xd00n,
  guestCsSelector: 0x8n,
  guestCsAccessRights: 0xa09bn,
}

export function vmcs12(changes: Partial<Record<Vmcs12Name, bigint>> = {}): Uint8Array {
  const empty = decodeVmcs12(new Uint8Array(4096))
  return encodeVmcs12({ ...empty, fields: { ...empty.fields, ...vmcs12Fields, ...changes } })
}

export function vmxGuestMode(
  changes: Partial<Record<Vmcs12Name, bigint>> = {},
  parts: Partial<HeaderParts> = {},
): Uint8Array {
  const data = new Uint8Array(8192)
  data.set(vmcs12(changes))
  return vmxState({ flags: k.KVM_STATE_NESTED_GUEST_MODE, vmxonPa: VMXON_PA, vmcs12Pa: VMCS_PA, data, ...parts })
}

export function svmState(flags: number, vmcbPa = 0n, data?: Uint8Array): Uint8Array {
  return state(flags, 1, k.kvm_svm_nested_state_hdr.encode({ vmcb_pa: vmcbPa, gpat: 0n }), data)
}

/** VMCB12's controls with nested paging, and a 64-bit L1 in the save area. */
const vmcb12Fields: Partial<Record<Vmcb12Name, bigint>> = {
  interceptVector3: (1n << 24n) | (1n << 27n) | (1n << 28n),
  interceptVector4: 1n,
  iopmBasePa: 0x10_0000n,
  msrpmBasePa: 0x11_0000n,
  tscOffset: 0x1234n,
  guestAsid: 1n,
  virtualInterruptControl: 1n << 24n,
  nestedControl: 1n,
  nCr3: 0x6000n,
  csSelector: 0x8n,
  csAttrib: 0xa9bn,
  efer: 0x1d01n,
  cr0: 0x8005_0033n,
  cr3: 0x7000n,
  cr4: 0x20n,
  dr6: 0xffff_0ff0n,
  dr7: 0x400n,
  rflags: 2n,
  rip: 0x10_0000n,
  rsp: 0x9000n,
  gPat: 0x0007_0406_0007_0406n,
}

export function vmcb12(changes: Partial<Record<Vmcb12Name, bigint>> = {}): Uint8Array {
  const empty = decodeVmcb12(new Uint8Array(4096))
  return encodeVmcb12({ ...empty, fields: { ...empty.fields, ...vmcb12Fields, ...changes } })
}

export function svmGuestMode(changes: Partial<Record<Vmcb12Name, bigint>> = {}): Uint8Array {
  return svmState(k.KVM_STATE_NESTED_GUEST_MODE | k.KVM_STATE_NESTED_GIF_SET, 0x1_0000n, vmcb12(changes))
}
