/**
 * The rules that a nested state must keep for `KVM_SET_NESTED_STATE` to take it, checked before the ioctl: KVM itself answers
 * each with a bare EINVAL, some only after it has left the state that the vCPU was in (KVM API 4.115; kvm_arch_vcpu_ioctl,
 * vmx_set_nested_state and svm_set_nested_state of the kernel). In KVM's order, so that the first rule named is the one that KVM
 * would stop at.
 */
import { NestedStateError } from '../errors.js'
import * as k from '../kvm/structs.js'
import { BLOCK_SIZE, blockAt } from './block.js'
import { hasControl } from './controls-vmx.js'
import { ALL_ONES, EFER_SVME, legalAddress } from './registers.js'
import { checkVmcb12 } from './rules-svm.js'
import { checkVmcs12 } from './rules-vmx.js'
import { decodeVmcb12 } from './vmcb12.js'
import { decodeVmcs12, SHADOW_VMCS_INDICATOR, VMCS12_REVISION, VMCS12_USED_SIZE } from './vmcs12.js'

/** The vCPU that is to take a nested state. */
export interface NestedVcpu {
  /** Which extension its CPUID has; undefined for neither. */
  readonly format: 'vmx' | 'svm' | undefined
  readonly efer: bigint
  readonly cr4: bigint
  /** In system-management mode. */
  readonly smm: boolean
  /** What `KVM_CHECK_EXTENSION(KVM_CAP_NESTED_STATE)` gives; 0 where this KVM does not nest. */
  readonly maxSize: number
  /** KVM_CAP_HYPERV_ENLIGHTENED_VMCS is enabled. */
  readonly enlightenedVmcs: boolean
  /** Physical address bits, of CPUID leaf 0x80000008. */
  readonly maxPhyAddr: number
  /** Whether its CPUID has la57. Undefined: not known, so that either is taken. */
  readonly la57?: boolean | undefined
  /** Its VMX capability MSRs by index, where they are at hand: VMCS12's controls are then checked against them. */
  readonly vmxMsrs?: ReadonlyMap<number, bigint> | undefined
}

type Header = ReturnType<typeof k.kvm_nested_state.decode>
type VmxHeader = ReturnType<typeof k.kvm_vmx_nested_state_hdr.decode>

const HEADER = k.kvm_nested_state.size
const FLAGS =
  k.KVM_STATE_NESTED_GUEST_MODE |
  k.KVM_STATE_NESTED_RUN_PENDING |
  k.KVM_STATE_NESTED_EVMCS |
  k.KVM_STATE_NESTED_MTF_PENDING |
  k.KVM_STATE_NESTED_GIF_SET
const SVM_FLAGS = k.KVM_STATE_NESTED_GUEST_MODE | k.KVM_STATE_NESTED_RUN_PENDING | k.KVM_STATE_NESTED_GIF_SET
const SMM_FLAGS = k.KVM_STATE_NESTED_SMM_GUEST_MODE | k.KVM_STATE_NESTED_SMM_VMXON

const DAMAGED = 'the state is damaged: take it again'
const OTHER_VENDOR = "restore it on a host of the same vendor, with that extension in the vCPU's CPUID"

/**
 * @throws {NestedStateError} KVM would refuse this state on that vCPU; `rule` names the reason
 */
export function checkNestedState(bytes: Uint8Array, vcpu: NestedVcpu): void {
  if (vcpu.maxSize === 0) {
    refuse('no-capability', 'KVM_CAP_NESTED_STATE', 0, 'this KVM does not nest', 'load its module with nested=1')
  }
  if (bytes.length < HEADER) refuse('too-short', 'length', bytes.length, 'the header alone is 128 bytes', DAMAGED)
  const header = k.kvm_nested_state.decode(bytes)
  const { flags, format, size } = header
  if (size < HEADER || size > bytes.length) {
    refuse('size', 'size', size, `not between 128 and the ${bytes.length} bytes given`, DAMAGED)
  }
  if ((flags & ~FLAGS) !== 0) {
    refuse('unknown-flags', 'flags', BigInt(flags), 'has bits without a meaning', 'restore it with a newer kernel')
  }
  if (flags & k.KVM_STATE_NESTED_RUN_PENDING && !(flags & k.KVM_STATE_NESTED_GUEST_MODE)) {
    refuse('run-pending-outside-guest-mode', 'flags', BigInt(flags), 'RUN_PENDING needs GUEST_MODE', DAMAGED)
  }
  const data = bytes.subarray(HEADER, size)
  if (format === k.KVM_STATE_NESTED_FORMAT_VMX && vcpu.format !== 'svm') checkVmx(header, data, vcpu)
  else if (format === k.KVM_STATE_NESTED_FORMAT_SVM && vcpu.format !== 'vmx') checkSvm(header, data, vcpu)
  else if (format > k.KVM_STATE_NESTED_FORMAT_SVM)
    refuse('format', 'format', format, 'neither VMX (0) nor SVM (1)', DAMAGED)
  else refuse('format', 'format', format, `not the format of a vCPU with ${vcpu.format}`, OTHER_VENDOR)
}

function checkVmx({ flags, hdr }: Header, data: Uint8Array, vcpu: NestedVcpu): void {
  const header = k.kvm_vmx_nested_state_hdr.decode(hdr.pad)
  checkVmxHeader(flags, header, vcpu)
  // Outside VMX operation KVM does not look at the data.
  if (header.vmxon_pa === ALL_ONES) return
  const guestMode = (flags & k.KVM_STATE_NESTED_GUEST_MODE) !== 0
  const enlightened = (flags & k.KVM_STATE_NESTED_EVMCS) !== 0
  const { vmcs12_pa, vmxon_pa } = header
  if (data.length < VMCS12_USED_SIZE) {
    // No current VMCS: the header is all there is.
    if (!guestMode && !enlightened && vmcs12_pa === ALL_ONES) return
    refuse('vmx-data-length', 'size', HEADER + data.length, 'there is a current VMCS, but no whole VMCS12', DAMAGED)
  }
  if (vmcs12_pa !== ALL_ONES) {
    if (vmcs12_pa === vmxon_pa) {
      refuse('vmx-vmcs-is-vmxon', 'hdr.vmx.vmcs12_pa', vmcs12_pa, 'the VMXON region cannot be a VMCS', DAMAGED)
    }
    page('vmx-vmcs-address', 'hdr.vmx.vmcs12_pa', vmcs12_pa, vcpu)
  } else if (!enlightened) {
    refuse('vmx-data-without-vmcs', 'hdr.vmx.vmcs12_pa', vmcs12_pa, 'there is a VMCS12, but no current VMCS', DAMAGED)
  }
  const vmcs12 = decodeVmcs12(blockAt(data, 0))
  revision('vmx-revision', 'vmcs12', vmcs12.fields.vmcsRevisionIdentifier & ~SHADOW_VMCS_INDICATOR)
  if (!guestMode) return
  checkShadow(vmcs12, data)
  checkVmcs12(vmcs12, {
    maxPhyAddr: vcpu.maxPhyAddr,
    la57: vcpu.la57,
    capabilities: vcpu.vmxMsrs,
    runPending: (flags & k.KVM_STATE_NESTED_RUN_PENDING) !== 0,
  })
}

function checkVmxHeader(flags: number, header: VmxHeader, vcpu: NestedVcpu): void {
  const { vmxon_pa, vmcs12_pa, smm } = header
  const inVmx = vmxon_pa !== ALL_ONES
  if (!inVmx) {
    const outside = 'there is no VMXON region'
    if (smm.flags) refuse('vmx-smm-flags-without-vmxon', 'hdr.vmx.smm.flags', BigInt(smm.flags), outside, DAMAGED)
    if (vmcs12_pa !== ALL_ONES) refuse('vmx-vmcs-without-vmxon', 'hdr.vmx.vmcs12_pa', vmcs12_pa, outside, DAMAGED)
    // Old user space set EVMCS to switch the capability on: KVM still takes it.
    if (flags & ~k.KVM_STATE_NESTED_EVMCS) refuse('vmx-flags-without-vmxon', 'flags', BigInt(flags), outside, DAMAGED)
  } else {
    if (vcpu.format !== 'vmx') {
      refuse(
        'vmx-not-in-cpuid',
        'hdr.vmx.vmxon_pa',
        vmxon_pa,
        'the vCPU has no vmx in its CPUID',
        'set CPUID with vmx first',
      )
    }
    page('vmx-vmxon-address', 'hdr.vmx.vmxon_pa', vmxon_pa, vcpu)
  }
  const guestMode = (flags & k.KVM_STATE_NESTED_GUEST_MODE) !== 0
  const smmGuestMode = (smm.flags & k.KVM_STATE_NESTED_SMM_GUEST_MODE) !== 0
  const refuseSmm = (rule: string, problem: string, remedy = DAMAGED) =>
    refuse(rule, 'hdr.vmx.smm.flags', BigInt(smm.flags), problem, remedy)
  if (smmGuestMode && guestMode) refuseSmm('vmx-guest-mode-twice', 'GUEST_MODE both inside and outside of SMM')
  if (smm.flags & ~SMM_FLAGS)
    refuseSmm('vmx-unknown-smm-flags', 'has bits without a meaning', 'restore it with a newer kernel')
  if (header.flags & ~k.KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE) {
    refuse(
      'vmx-unknown-header-flags',
      'hdr.vmx.flags',
      BigInt(header.flags),
      'has bits without a meaning',
      'restore it with a newer kernel',
    )
  }
  // SMM takes the processor out of VMX operation for as long as it lasts (Intel SDM vol. 3, section 32.14).
  if (vcpu.smm && guestMode) {
    refuse('vmx-guest-mode-in-smm', 'flags', BigInt(flags), 'the vCPU is in SMM', 'set the vCPU events first')
  }
  if (!vcpu.smm && smm.flags) {
    refuseSmm('vmx-smm-flags-outside-smm', 'the vCPU is not in SMM', 'set the vCPU events first')
  }
  if (smmGuestMode && !(smm.flags & k.KVM_STATE_NESTED_SMM_VMXON)) {
    refuseSmm('vmx-smm-guest-mode-without-vmxon', 'GUEST_MODE needs VMXON')
  }
  if (flags & k.KVM_STATE_NESTED_EVMCS && (vcpu.format !== 'vmx' || !vcpu.enlightenedVmcs)) {
    refuse(
      'vmx-evmcs-not-enabled',
      'flags',
      BigInt(flags),
      'the vCPU has no enlightened VMCS',
      'enable KVM_CAP_HYPERV_ENLIGHTENED_VMCS first',
    )
  }
}

/** L2's own VMCS, where L1 has given it one to write to without exits (Intel SDM vol. 3, section 25.10). */
function checkShadow(vmcs12: ReturnType<typeof decodeVmcs12>, data: Uint8Array): void {
  if (!shadowing(vmcs12) || vmcs12.fields.vmcsLinkPointer === ALL_ONES) return
  if (data.length < BLOCK_SIZE + VMCS12_USED_SIZE) {
    refuse('vmx-shadow-length', 'size', HEADER + data.length, 'VMCS shadowing, but no whole shadow VMCS12', DAMAGED)
  }
  const id = decodeVmcs12(blockAt(data, BLOCK_SIZE)).fields.vmcsRevisionIdentifier
  revision('vmx-shadow-revision', 'shadow vmcs12', id & ~SHADOW_VMCS_INDICATOR)
  if ((id & SHADOW_VMCS_INDICATOR) === 0n) {
    refuse('vmx-shadow-indicator', 'shadow vmcs12.vmcsRevisionIdentifier', id, 'bit 31 of a shadow VMCS is 1', DAMAGED)
  }
}

function checkSvm({ flags, size, hdr }: Header, data: Uint8Array, vcpu: NestedVcpu): void {
  const { vmcb_pa } = k.kvm_svm_nested_state_hdr.decode(hdr.pad)
  if (flags & ~SVM_FLAGS) refuse('svm-flags', 'flags', BigInt(flags), 'has flags of VMX', DAMAGED)
  // Inside guest mode EFER is L2's, but VMRUN does not go without its SVME either.
  if ((vcpu.efer & EFER_SVME) === 0n && flags !== k.KVM_STATE_NESTED_GIF_SET) {
    refuse('svm-svme', 'flags', BigInt(flags), 'with EFER.SVME off only GIF_SET is possible', 'restore sregs first')
  }
  const guestMode = (flags & k.KVM_STATE_NESTED_GUEST_MODE) !== 0
  if (vcpu.smm && guestMode) {
    refuse('svm-guest-mode-in-smm', 'flags', BigInt(flags), 'the vCPU is in SMM', 'set the vCPU events first')
  }
  // Outside guest mode KVM looks at no more than GIF.
  if (!guestMode) return
  page('svm-vmcb-address', 'hdr.svm.vmcb_pa', vmcb_pa, vcpu)
  if (data.length < BLOCK_SIZE) refuse('svm-data-length', 'size', size, 'guest mode, but no whole VMCB', DAMAGED)
  checkVmcb12(decodeVmcb12(blockAt(data, 0)), vcpu.maxPhyAddr)
}

function shadowing(vmcs12: ReturnType<typeof decodeVmcs12>): boolean {
  return hasControl(vmcs12, 'secondary', 'VMCS shadowing')
}

function revision(rule: string, block: string, id: bigint): void {
  if (id === VMCS12_REVISION) return
  const problem = `KVM's VMCS12 has revision 0x${VMCS12_REVISION.toString(16)}`
  refuse(rule, `${block}.vmcsRevisionIdentifier`, id, problem, 'restore it with the kernel that it is from')
}

function page(rule: string, field: string, address: bigint, { maxPhyAddr }: NestedVcpu): void {
  if (legalAddress(address, maxPhyAddr, 4096n)) return
  const problem = `not a page-aligned address of ${maxPhyAddr} bits`
  refuse(rule, field, address, problem, `${DAMAGED}, or give the vCPU as many address bits as it had`)
}

function refuse(rule: string, field: string, value: unknown, problem: string, remedy: string): never {
  throw new NestedStateError(rule, field, value, problem, remedy)
}
