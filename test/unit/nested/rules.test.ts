import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { NestedStateError } from '../../../lib/errors.js'
import * as k from '../../../lib/kvm/structs.js'
import { checkNestedState, type NestedVcpu } from '../../../lib/nested/rules.js'
import { VMCB12_RULES } from '../../../lib/nested/rules-svm.js'
import { VMCS12_RULES } from '../../../lib/nested/rules-vmx.js'
import type { Vmcb12Name } from '../../../lib/nested/vmcb12.js'
import type { Vmcs12Name } from '../../../lib/nested/vmcs12.js'
import {
  NONE,
  svmGuestMode,
  svmState,
  svmVcpu,
  VMCS_PA,
  VMXON_PA,
  vmcb12,
  vmcs12,
  vmxGuestMode,
  vmxState,
  vmxVcpu,
} from './states.js'

const { KVM_STATE_NESTED_GUEST_MODE: GUEST_MODE, KVM_STATE_NESTED_RUN_PENDING: RUN_PENDING } = k
const { KVM_STATE_NESTED_EVMCS: EVMCS, KVM_STATE_NESTED_MTF_PENDING: MTF, KVM_STATE_NESTED_GIF_SET: GIF } = k
const SMM_GUEST_MODE = k.KVM_STATE_NESTED_SMM_GUEST_MODE
const SMM_VMXON = k.KVM_STATE_NESTED_SMM_VMXON

const seen = new Set<string>()

function ruleOf(bytes: Uint8Array, vcpu: NestedVcpu): string | undefined {
  try {
    checkNestedState(bytes, vcpu)
    return undefined
  } catch (error) {
    if (!(error instanceof NestedStateError)) throw error
    seen.add(error.rule)
    expect(error.message).toContain(`nested state: ${error.rule}: ${error.field}: `)
    expect(error.remedy).not.toBe('')
    return error.rule
  }
}

const noNesting: NestedVcpu = { ...vmxVcpu, format: undefined, cr4: 0n }
const smm = { ...vmxVcpu, smm: true }
const vmcsCurrent = {
  vmxonPa: VMXON_PA,
  vmcs12Pa: VMCS_PA,
  data: new Uint8Array([...vmcs12(), ...new Uint8Array(4096)]),
}

/** Guest mode with VMCS shadowing, and a shadow VMCS12 with that first dword. */
function shadowing(id: number, length = 8192): Uint8Array {
  const data = new Uint8Array(8192)
  data.set(
    vmcs12({
      secondaryProcessorBasedVmExecutionControls: 0xa2n | (1n << 14n),
      vmcsLinkPointer: 0x8000n,
      vmreadBitmapAddress: 0x9000n,
      vmwriteBitmapAddress: 0xa000n,
    }),
  )
  new DataView(data.buffer).setUint32(4096, id, true)
  return vmxState({ ...vmcsCurrent, flags: GUEST_MODE, data: data.subarray(0, length) })
}

function resized(bytes: Uint8Array, size: number): Uint8Array {
  const copy = bytes.slice()
  new DataView(copy.buffer).setUint32(4, size, true)
  return copy
}

function reformatted(bytes: Uint8Array, format: number): Uint8Array {
  const copy = bytes.slice()
  new DataView(copy.buffer).setUint16(2, format, true)
  return copy
}

describe('what KVM takes', () => {
  it.each<[string, Uint8Array, NestedVcpu]>([
    ['vmx: not in use', vmxState(), vmxVcpu],
    ['vmx: not in use, no vmx in CPUID', vmxState(), noNesting],
    [
      'vmx: not in use, EVMCS as old user space set it',
      vmxState({ flags: EVMCS }),
      { ...vmxVcpu, enlightenedVmcs: true },
    ],
    ['vmx: VMXON without a VMCS', vmxState({ vmxonPa: VMXON_PA }), vmxVcpu],
    ['vmx: VMXON and a header longer than needed', vmxState({ vmxonPa: VMXON_PA, data: new Uint8Array(997) }), vmxVcpu],
    ['vmx: a current VMCS', vmxState(vmcsCurrent), vmxVcpu],
    [
      'vmx: a current VMCS whose fields nothing could enter with',
      vmxState({ ...vmcsCurrent, data: vmcs12({ hostCr0: 0n }) }),
      vmxVcpu,
    ],
    ['vmx: as much of VMCS12 as KVM reads', vmxState({ ...vmcsCurrent, data: vmcs12().slice(0, 998) }), vmxVcpu],
    ['vmx: guest mode', vmxGuestMode(), vmxVcpu],
    ['vmx: guest mode, entry pending, MTF', vmxGuestMode({}, { flags: GUEST_MODE | RUN_PENDING | MTF }), vmxVcpu],
    ['vmx: guest mode, preemption timer armed', vmxGuestMode({}, { vmxFlags: 1 }), vmxVcpu],
    ['vmx: guest mode, shadow VMCS', shadowing(0x91e57ed0), vmxVcpu],
    [
      'vmx: guest mode on an enlightened VMCS',
      vmxGuestMode({}, { flags: GUEST_MODE | EVMCS, vmcs12Pa: NONE }),
      { ...vmxVcpu, enlightenedVmcs: true },
    ],
    ['vmx: in SMM', vmxState({ ...vmcsCurrent, smmFlags: SMM_VMXON | SMM_GUEST_MODE }), smm],
    [
      'vmx: unrestricted guest in real mode',
      vmxGuestMode({ guestCr0: 0x20n, vmEntryControls: 0x11ffn, guestIa32Efer: 0n }),
      vmxVcpu,
    ],
    ['svm: not in use', svmState(GIF), svmVcpu],
    ['svm: not in use, no svm in CPUID', svmState(GIF), { ...noNesting, efer: 0n }],
    ['svm: GIF 0', svmState(0), svmVcpu],
    ['svm: outside guest mode any address and data', svmState(GIF, 0x1001n, new Uint8Array(10)), svmVcpu],
    ['svm: guest mode', svmGuestMode(), svmVcpu],
    ['svm: guest mode without nested paging', svmGuestMode({ nestedControl: 0n, nCr3: NONE }), svmVcpu],
    ['svm: guest mode, entry pending, GIF 0', svmState(GUEST_MODE | RUN_PENDING, 0x1_0000n, vmcb12()), svmVcpu],
    ['svm: a 32-bit L1', svmGuestMode({ efer: 0x1000n, cr4: 0n, cr3: NONE }), svmVcpu],
  ])('%s', (_, bytes, vcpu) => {
    expect(ruleOf(bytes, vcpu)).toBeUndefined()
  })
})

describe('the header', () => {
  it.each<[string, Uint8Array, NestedVcpu]>([
    ['no-capability', vmxState(), { ...vmxVcpu, maxSize: 0 }],
    ['too-short', vmxState().subarray(0, 127), vmxVcpu],
    ['size', resized(vmxState(), 127), vmxVcpu],
    ['size', resized(vmxState(), 129), vmxVcpu],
    ['unknown-flags', vmxState({ vmxonPa: VMXON_PA, flags: 0x10 }), vmxVcpu],
    ['run-pending-outside-guest-mode', vmxState({ ...vmcsCurrent, flags: RUN_PENDING }), vmxVcpu],
    ['format', reformatted(vmxState(), 2), vmxVcpu],
    ['format', reformatted(svmState(GIF), 65535), svmVcpu],
    ['format', vmxState(), svmVcpu],
    ['format', svmState(GIF), vmxVcpu],
    ['vmx-smm-flags-without-vmxon', vmxState({ smmFlags: SMM_VMXON }), smm],
    ['vmx-vmcs-without-vmxon', vmxState({ vmcs12Pa: VMCS_PA }), vmxVcpu],
    ['vmx-flags-without-vmxon', vmxState({ flags: GUEST_MODE }), vmxVcpu],
    ['vmx-flags-without-vmxon', vmxState({ flags: GIF }), vmxVcpu],
    ['vmx-not-in-cpuid', vmxState({ vmxonPa: VMXON_PA }), noNesting],
    ['vmx-vmxon-address', vmxState({ vmxonPa: 0x1001n }), vmxVcpu],
    ['vmx-vmxon-address', vmxState({ vmxonPa: 1n << 40n }), vmxVcpu],
    ['vmx-guest-mode-twice', vmxGuestMode({}, { smmFlags: SMM_GUEST_MODE | SMM_VMXON }), smm],
    ['vmx-unknown-smm-flags', vmxState({ ...vmcsCurrent, smmFlags: 4 }), smm],
    ['vmx-unknown-header-flags', vmxState({ ...vmcsCurrent, vmxFlags: 2 }), vmxVcpu],
    ['vmx-guest-mode-in-smm', vmxGuestMode(), smm],
    ['vmx-smm-flags-outside-smm', vmxState({ ...vmcsCurrent, smmFlags: SMM_VMXON }), vmxVcpu],
    ['vmx-smm-guest-mode-without-vmxon', vmxState({ ...vmcsCurrent, smmFlags: SMM_GUEST_MODE }), smm],
    ['vmx-evmcs-not-enabled', vmxGuestMode({}, { flags: GUEST_MODE | EVMCS }), vmxVcpu],
    ['vmx-data-length', vmxState({ ...vmcsCurrent, data: new Uint8Array(997) }), vmxVcpu],
    ['vmx-data-length', vmxState({ vmxonPa: VMXON_PA, flags: GUEST_MODE }), vmxVcpu],
    ['vmx-vmcs-is-vmxon', vmxState({ ...vmcsCurrent, vmcs12Pa: VMXON_PA }), vmxVcpu],
    ['vmx-vmcs-address', vmxState({ ...vmcsCurrent, vmcs12Pa: 0x2800n }), vmxVcpu],
    ['vmx-data-without-vmcs', vmxState({ ...vmcsCurrent, vmcs12Pa: NONE }), vmxVcpu],
    ['vmx-revision', vmxState({ ...vmcsCurrent, data: vmcs12({ vmcsRevisionIdentifier: 0x11e57ed1n }) }), vmxVcpu],
    ['vmx-shadow-length', shadowing(0x91e57ed0, 4096 + 997), vmxVcpu],
    ['vmx-shadow-revision', shadowing(0x91e57ed1), vmxVcpu],
    ['vmx-shadow-indicator', shadowing(0x11e57ed0), vmxVcpu],
    ['svm-flags', svmState(GIF | EVMCS), svmVcpu],
    ['svm-svme', svmGuestMode(), { ...svmVcpu, efer: 0xd01n }],
    ['svm-svme', svmState(0), { ...svmVcpu, efer: 0xd01n }],
    ['svm-guest-mode-in-smm', svmGuestMode(), { ...svmVcpu, smm: true }],
    ['svm-vmcb-address', svmState(GUEST_MODE, 0x1_0010n, vmcb12()), svmVcpu],
    ['svm-data-length', svmState(GUEST_MODE, 0x1_0000n, vmcb12().subarray(0, 4095)), svmVcpu],
  ])('%s', (rule, bytes, vcpu) => {
    expect(ruleOf(bytes, vcpu)).toBe(rule)
  })
})

const BEYOND = 1n << 40n
const NONCANONICAL = 1n << 60n
const pin = 0x1fn
const primary = 0x9605_e17an & ~0x1_8000n
const bit = (n: number) => 1n << BigInt(n)
/** The fixture's secondary controls (EPT, VPID, unrestricted guest) and more. */
const secondary = (...bits: number[]) => ({
  secondaryProcessorBasedVmExecutionControls: bits.reduce((sum, n) => sum | bit(n), 0xa2n),
})
const inject = (vector: number, type: number, more = 0n) => ({
  vmEntryInterruptionInformationField: bit(31) | BigInt(vector | (type << 8)) | more,
})
const as32 = { vmExitControls: 0x3_6dffn, vmEntryControls: 0x11ffn, guestIa32Efer: 0n, guestCr0: 0x8005_0033n }
/** APIC virtualization, whole. */
const apicv = {
  ...secondary(8, 9),
  primaryProcessorBasedVmExecutionControls: primary | bit(21) | bit(31) | bit(28),
  virtualApicAddress: 0xc000n,
}
const posted = { ...apicv, pinBasedVmExecutionControls: pin | bit(7), postedInterruptDescriptorAddress: 0xd000n }
const offers = (msr: number, value: bigint): NestedVcpu => ({ ...vmxVcpu, vmxMsrs: new Map([[msr, value]]) })

describe('VMCS12', () => {
  it('with APIC virtualization and posted interrupts is fine', () => {
    expect(ruleOf(vmxGuestMode(posted), vmxVcpu)).toBeUndefined()
  })

  it.each<[string, Partial<Record<Vmcs12Name, bigint>>, NestedVcpu?]>([
    ['vmx-pin-controls', {}, offers(0x48d, 0x7f_0000_0036n)],
    ['vmx-pin-controls', {}, offers(0x48d, 0x17_0000_0016n)],
    ['vmx-primary-controls', {}, offers(0x48e, 0xffff_ffff_0800_0000n)],
    ['vmx-secondary-controls', {}, offers(0x48b, 0x82_0000_0000n)],
    ['vmx-cr3-target-count', { cr3TargetCount: 5n }, offers(0x485, 0x4_0000n)],
    ['vmx-io-bitmap-a', { addressOfIoBitmapA: 0x3008n }],
    ['vmx-io-bitmap-b', { addressOfIoBitmapB: BEYOND }],
    ['vmx-msr-bitmap', { addressOfMsrBitmaps: NONE }],
    ['vmx-virtual-apic', { ...apicv, virtualApicAddress: 1n }],
    ['vmx-apic-access', { ...secondary(0), apicAccessAddress: 1n }],
    ['vmx-x2apic-with-apic-accesses', { ...apicv, ...secondary(0, 4) }],
    ['vmx-interrupt-delivery-without-exiting', { ...apicv, pinBasedVmExecutionControls: 0x16n }],
    ['vmx-posted-without-delivery', { ...posted, ...secondary(8) }],
    ['vmx-posted-without-acknowledge', { ...posted, vmExitControls: 0x3_6dffn | bit(9) }],
    ['vmx-posted-vector', { ...posted, postedInterruptNotificationVector: 0x100n }],
    ['vmx-posted-descriptor', { ...posted, postedInterruptDescriptorAddress: 0xd020n }],
    ['vmx-apicv-without-tpr-shadow', { ...apicv, primaryProcessorBasedVmExecutionControls: bit(31) }],
    ['vmx-virtual-nmis-without-exiting', { pinBasedVmExecutionControls: 0x16n | bit(5) }],
    ['vmx-nmi-window-without-virtual-nmis', { primaryProcessorBasedVmExecutionControls: bit(31) | bit(22) }],
    ['vmx-pml-without-ept', { secondaryProcessorBasedVmExecutionControls: bit(17) }],
    ['vmx-pml-address', { ...secondary(17), pmlAddress: 0x123n }],
    ['vmx-unrestricted-without-ept', { secondaryProcessorBasedVmExecutionControls: bit(7) }],
    ['vmx-mode-based-execute-without-ept', { secondaryProcessorBasedVmExecutionControls: bit(22) }],
    ['vmx-vmread-bitmap', { ...secondary(14), vmreadBitmapAddress: 1n }],
    ['vmx-vmwrite-bitmap', { ...secondary(14), vmwriteBitmapAddress: 1n }],
    ['vmx-vpid', { virtualProcessorIdentifier: 0n }],
    ['vmx-save-timer-without-timer', { vmExitControls: 0x3_6dffn | bit(9) | bit(22) }],
    ['vmx-eptp', { eptPointer: 0x601cn }],
    ['vmx-eptp', { eptPointer: 0x6016n }],
    ['vmx-eptp', { eptPointer: 0x609en }],
    ['vmx-eptp', { eptPointer: BEYOND | 0x1en }],
    ['vmx-eptp', { eptPointer: 0x6026n }, offers(0x48c, bit(6) | bit(14))],
    ['vmx-eptp', { eptPointer: 0x605en }, offers(0x48c, bit(6) | bit(14))],
    ['vmx-eptp', { eptPointer: 0x6018n }, offers(0x48c, bit(6) | bit(14))],
    ['vmx-vm-functions', { ...secondary(13), vmFunctionControls: 2n }, offers(0x491, 1n)],
    ['vmx-eptp-switching-without-ept', { secondaryProcessorBasedVmExecutionControls: bit(13), vmFunctionControls: 1n }],
    ['vmx-eptp-list', { ...secondary(13), vmFunctionControls: 1n, eptpListAddress: 8n }],
    ['vmx-exit-controls', {}, offers(0x48f, 0xffff_ffff_8000_0000n)],
    ['vmx-exit-msr-load', { vmExitMsrLoadCount: 1n, vmExitMsrLoadAddress: 8n }],
    ['vmx-exit-msr-load', { vmExitMsrLoadCount: 2n, vmExitMsrLoadAddress: BEYOND - 16n }],
    ['vmx-exit-msr-store', { vmExitMsrStoreCount: 1n, vmExitMsrStoreAddress: 8n }],
    ['vmx-entry-controls', {}, offers(0x490, 0xffff_ffff_8000_0000n)],
    ['vmx-injection-type', inject(0, 1)],
    ['vmx-injection-vector', inject(3, 2)],
    ['vmx-injection-vector', inject(32, 3)],
    ['vmx-injection-vector', inject(1, 7)],
    ['vmx-injection-error-code', inject(0x20, 0, bit(11))],
    ['vmx-injection-error-code', inject(6, 3, bit(11)), offers(0x480, 0n)],
    ['vmx-injection-error-code', inject(14, 3), offers(0x480, 0n)],
    ['vmx-injection-error-code-value', { ...inject(14, 3, bit(11)), vmEntryExceptionErrorCode: 0x1_0000n }],
    ['vmx-injection-reserved', inject(14, 3, bit(11) | bit(13))],
    ['vmx-injection-length', { ...inject(0x80, 4), vmEntryInstructionLength: 16n }],
    ['vmx-injection-length', { ...inject(3, 6), vmEntryInstructionLength: 0n }, offers(0x485, 0n)],
    ['vmx-entry-msr-load', { vmEntryMsrLoadCount: 1n, vmEntryMsrLoadAddress: 4n }],
    ['vmx-host-cr0', { hostCr0: 0x8005_0013n }],
    ['vmx-host-cr0', { hostCr0: 0x1_8005_0033n }],
    ['vmx-host-cr4', { hostCr4: 0x20n }],
    ['vmx-host-cr4', { hostCr4: 0x2020n | bit(15) }],
    ['vmx-host-cr4', { hostCr4: 0x2020n | bit(16) }, offers(0x489, 0x2fffn)],
    ['vmx-host-cr3', { hostCr3: BEYOND }],
    ['vmx-host-cet-without-wp', { hostCr4: 0x2020n | bit(23), hostCr0: 0x8000_0021n }],
    ['vmx-host-sysenter-esp', { hostIa32SysenterEsp: NONCANONICAL }],
    ['vmx-host-sysenter-esp', { hostIa32SysenterEsp: bit(48) }, { ...vmxVcpu, la57: false }],
    ['vmx-host-sysenter-eip', { hostIa32SysenterEip: NONCANONICAL }],
    ['vmx-host-pat', { hostIa32Pat: 2n }],
    ['vmx-host-64-bit-without-pae', { hostCr4: 0x2000n }],
    ['vmx-host-32-bit-with-64-bit-guest', { vmExitControls: 0x3_6dffn }],
    ['vmx-host-32-bit-with-pcid', { ...as32, hostCr4: 0x2020n | bit(17) }],
    ['vmx-host-32-bit-rip', { ...as32, hostRip: bit(32) }],
    ['vmx-host-selector', { hostTrSelector: 0x1bn }],
    ['vmx-host-selector', { hostGsSelector: 4n }],
    ['vmx-host-cs-null', { hostCsSelector: 0n }],
    ['vmx-host-tr-null', { hostTrSelector: 0n }],
    ['vmx-host-ss-null', { ...as32, hostSsSelector: 0n }],
    ['vmx-host-base', { hostIdtrBase: NONCANONICAL }],
    ['vmx-host-base', { hostFsBase: bit(47) }, { ...vmxVcpu, la57: false }],
    ['vmx-host-rip', { hostRip: NONCANONICAL }],
    ['vmx-host-efer', { hostIa32Efer: 0x901n }],
    ['vmx-host-efer', { hostIa32Efer: 0xd01n | bit(16) }],
    ['vmx-guest-cr0', { guestCr0: 0x8005_0013n }],
    ['vmx-guest-cr0', { guestCr0: 0x20n, secondaryProcessorBasedVmExecutionControls: 0x22n }],
    ['vmx-guest-cr4', { guestCr4: 0x20n }],
    ['vmx-guest-cet-without-wp', { guestCr4: 0x2020n | bit(23), guestCr0: 0x8000_0021n }],
    ['vmx-guest-dr7', { guestDr7: bit(32) }],
    ['vmx-guest-pat', { guestIa32Pat: 0x0300n }],
    ['vmx-link-pointer', { vmcsLinkPointer: 1n }],
    ['vmx-guest-paging-without-protection', { guestCr0: 0x8000_0020n }],
    ['vmx-guest-64-bit-without-pae', { guestCr4: 0x2000n }],
    ['vmx-guest-64-bit-without-paging', { guestCr0: 0x21n }],
    ['vmx-guest-bndcfgs', { vmEntryControls: 0x1_93ffn, guestIa32Bndcfgs: 4n }],
    ['vmx-guest-activity', { guestActivityState: 2n }],
    ['vmx-guest-cr3', { guestCr3: BEYOND }],
  ])('%s', (rule, changes, vcpu = vmxVcpu) => {
    expect(ruleOf(vmxGuestMode(changes), vcpu)).toBe(rule)
  })

  it('vmx-guest-efer counts only while the entry is pending', () => {
    const pending = { flags: GUEST_MODE | RUN_PENDING }
    for (const guestIa32Efer of [0x900n, 0x500n | bit(16)]) {
      expect(ruleOf(vmxGuestMode({ guestIa32Efer }, pending), vmxVcpu)).toBe('vmx-guest-efer')
      expect(ruleOf(vmxGuestMode({ guestIa32Efer }), vmxVcpu)).toBeUndefined()
    }
  })

  it('takes what only some kernels refuse', () => {
    const lenient: Partial<Record<Vmcs12Name, bigint>>[] = [
      inject(6, 3, bit(11)), // IA32_VMX_BASIC bit 56
      { ...inject(3, 6), vmEntryInstructionLength: 0n }, // IA32_VMX_MISC bit 30
      { hostFsBase: bit(55) }, // la57
      { hostCr3: 0x7000n | bit(61) }, // LAM
      { cr3TargetCount: 5n },
    ]
    for (const changes of lenient) expect(ruleOf(vmxGuestMode(changes), vmxVcpu)).toBeUndefined()
  })
})

describe('the VMCB', () => {
  it.each<[string, Partial<Record<Vmcb12Name, bigint>>]>([
    ['svm-vmrun-intercept', { interceptVector4: 2n }],
    ['svm-asid', { guestAsid: 0n }],
    ['svm-n-cr3', { nCr3: BEYOND }],
    ['svm-msrpm', { msrpmBasePa: BEYOND - 0x1000n }],
    ['svm-iopm', { iopmBasePa: BEYOND - 0x2000n }],
    ['svm-save-paging', { cr0: 0x11n }],
    ['svm-save-paging', { cr0: 0x8000_0000n }],
    ['svm-save-virtual-8086', { rflags: bit(17) }],
    ['svm-save-svme', { efer: 0xd01n }],
    ['svm-save-cache', { cr0: 0x8000_0011n | bit(29) }],
    ['svm-save-cr0', { cr0: 0x8000_0011n | bit(32) }],
    ['svm-save-dr6', { dr6: bit(32) }],
    ['svm-save-dr7', { dr7: bit(63) }],
    ['svm-save-pae', { cr4: 0n }],
    ['svm-save-cr3', { cr3: BEYOND }],
    ['svm-save-cs', { csAttrib: 0xe9bn }],
    ['svm-save-cr4', { cr4: 0x20n | bit(63) }],
    ['svm-save-efer', { efer: 0x1d01n | bit(1) }],
  ])('%s', (rule, changes) => {
    expect(ruleOf(svmGuestMode(changes), svmVcpu)).toBe(rule)
  })

  it('takes the last maps that fit, and any address bits 11:0', () => {
    expect(ruleOf(svmGuestMode({ msrpmBasePa: BEYOND - 1n - 0x1000n }), svmVcpu)).toBeUndefined()
    expect(ruleOf(svmGuestMode({ iopmBasePa: BEYOND - 0x3000n + 0xfffn }), svmVcpu)).toBeUndefined()
  })
})

it('says which field has which value, and what to do', () => {
  expect(() => checkNestedState(svmGuestMode(), { ...svmVcpu, efer: 0xd01n })).toThrow(
    'nested state: svm-svme: flags: 0x101: with EFER.SVME off only GIF_SET is possible; restore sregs first',
  )
  expect(() => checkNestedState(vmxState({ vmxonPa: 0x1001n }), vmxVcpu)).toThrow(
    /^nested state: vmx-vmxon-address: hdr.vmx.vmxon_pa: 0x1001: not a page-aligned address of 40 bits; /,
  )
})

it('each rule was seen to refuse, above', () => {
  const source = readFileSync(new URL('../../../lib/nested/rules.ts', import.meta.url), 'utf8')
  const inHeader = [...source.matchAll(/(?:refuse|refuseSmm|page|revision)\(\s*'([a-z0-9-]+)'/g)].map(
    ([, rule]) => rule!,
  )
  expect(inHeader.length).toBeGreaterThan(25)
  expect([...seen].sort()).toEqual([...new Set([...inHeader, ...VMCS12_RULES, ...VMCB12_RULES])].sort())
})
