import { FEATURE_CONTROL_LOCK, FEATURE_CONTROL_VMX_OUTSIDE_SMX, MSR } from '../../arch/x86_64/msrs.js'
import type { Vcpu } from '../../kvm/vcpu.js'
import { PIN_BASED, PRIMARY, SECONDARY, VM_ENTRY, VM_EXIT } from '../../nested/controls-vmx.js'
import { VMCS12_FIELDS, type Vmcs12Name } from '../../nested/vmcs12.js'
import { VMX_MSRS } from '../../nested/vmx-capabilities.js'
import { CR0, CR4_PAE, type DeepExtension, EFER_LONG, STACK, selector } from './extension.js'
import { at, EPT_LEAF, VMX_EXITED, vmxL1, vmxL2, writeTables } from './guests.js'

const CR4_VMXE = 1n << 13n
/** IA32_VMX_BASIC bit 55: the "true" capability MSRs are there, and are the ones to use (Intel SDM vol. 3, A.2). */
const TRUE_CONTROLS = 55n
/** Write-back, a walk of four levels (Intel SDM vol. 3, 25.6.11). */
const EPT_POINTER = BigInt(at.nestedTables) | 6n | (3n << 3n)

export const vmxDeep: DeepExtension = {
  // VMCALL (Intel SDM vol. 3, appendix C)
  hypercall: 18,
  prepare(vcpu, memory) {
    vcpu.setMsrs([{ index: MSR.IA32_FEATURE_CONTROL, value: FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX }])
    const controls = controlsOf(vcpu)
    memory.set(vmxL1.code, at.l1)
    memory.set(vmxL2.code, at.l2)
    writeTables(memory, at.nestedTables, EPT_LEAF)
    const view = new DataView(memory.buffer, memory.byteOffset)
    const revision = Number(readMsr(vcpu, VMX_MSRS.IA32_VMX_BASIC) & 0x7fff_ffffn)
    view.setUint32(at.hostArea, revision, true)
    view.setUint32(at.controlBlock, revision, true)
    view.setBigUint64(at.parameters, BigInt(at.hostArea), true)
    view.setBigUint64(at.parameters + 8, BigInt(at.controlBlock), true)
    const table = at.parameters + 16
    for (const [i, [name, value]] of Object.entries({ ...fields, ...controls }).entries()) {
      const { encoding } = VMCS12_FIELDS.find(field => field.name === name)!
      view.setBigUint64(table + i * 16, BigInt(encoding!), true)
      view.setBigUint64(table + i * 16 + 8, value, true)
    }
    return {
      cr4,
      efer: EFER_LONG,
      registers: { rdi: BigInt(at.parameters), rsi: BigInt(at.parameters + 8), rbx: BigInt(table) },
      nestedPaging: 'eptPointer' in controls,
    }
  },
}

type Fields = Partial<Record<Vmcs12Name, bigint>>

const cr4 = CR4_PAE | CR4_VMXE
const { code, data, task } = selector

/** The fields whose values do not depend on the processor; those that are left out stay 0. */
const fields: Fields = {
  addressOfMsrBitmaps: BigInt(at.msrBitmap),
  vmcsLinkPointer: 2n ** 64n - 1n,
  ...segments(['Es', 'Ss', 'Ds', 'Fs', 'Gs'], data, 0xffff_ffff, 0xc093),
  ...segments(['Cs'], code, 0xffff_ffff, 0xa09b),
  ...segments(['Tr'], task, 0x67, 0x8b),
  // Unusable
  guestLdtrAccessRights: 0x1_0000n,
  guestCr0: CR0,
  guestCr3: BigInt(at.pageTables),
  guestCr4: cr4,
  guestDr7: 0x400n,
  guestRflags: 2n,
  guestRip: BigInt(at.l2),
  guestRsp: BigInt(at.l2 + STACK),
  hostCsSelector: BigInt(code),
  hostSsSelector: BigInt(data),
  hostDsSelector: BigInt(data),
  hostEsSelector: BigInt(data),
  hostTrSelector: BigInt(task),
  hostCr0: CR0,
  hostCr3: BigInt(at.pageTables),
  hostCr4: cr4,
  hostRip: BigInt(at.l1 + VMX_EXITED),
  hostRsp: BigInt(at.l1 + STACK),
}

type Segment = 'Es' | 'Cs' | 'Ss' | 'Ds' | 'Fs' | 'Gs' | 'Tr'

function segments(names: readonly Segment[], selector: number, limit: number, rights: number): Fields {
  const part = (name: Segment): Fields => ({
    [`guest${name}Selector`]: BigInt(selector),
    [`guest${name}Limit`]: BigInt(limit),
    [`guest${name}AccessRights`]: BigInt(rights),
  })
  return Object.assign({}, ...names.map(part))
}

/** Each word of controls as wanted, with the bits that must be 1 or 0 as the capability MSRs tell (Intel SDM vol. 3, A.3 to A.5). */
function controlsOf(vcpu: Vcpu): Fields {
  const hasTrue = ((readMsr(vcpu, VMX_MSRS.IA32_VMX_BASIC) >> TRUE_CONTROLS) & 1n) === 1n
  const adjust = (name: Words, wanted: bigint) => {
    const allowed = readMsr(vcpu, VMX_MSRS[`IA32_VMX_${hasTrue ? 'TRUE_' : ''}${name}_CTLS`])
    return (wanted | (allowed & 0xffff_ffffn)) & (allowed >> 32n)
  }
  const bit = (number: number) => 1n << BigInt(number)
  const secondaryControls = bit(PRIMARY['activate secondary controls'])
  const primary = bit(PRIMARY['HLT exiting']) | bit(PRIMARY['use MSR bitmaps']) | secondaryControls
  const processor = adjust('PROCBASED', primary)
  const secondary =
    (processor & secondaryControls) === 0n ? 0n : readMsr(vcpu, VMX_MSRS.IA32_VMX_PROCBASED_CTLS2) >> 32n
  const hasEpt = (secondary & bit(SECONDARY['enable EPT'])) !== 0n
  return {
    pinBasedVmExecutionControls: adjust('PINBASED', bit(PIN_BASED['external-interrupt exiting'])),
    primaryProcessorBasedVmExecutionControls: hasEpt ? processor : processor & ~secondaryControls,
    vmExitControls: adjust('EXIT', bit(VM_EXIT['host address-space size'])),
    vmEntryControls: adjust('ENTRY', bit(VM_ENTRY['IA-32e mode guest'])),
    ...(hasEpt && {
      secondaryProcessorBasedVmExecutionControls: bit(SECONDARY['enable EPT']),
      eptPointer: EPT_POINTER,
    }),
  }
}

type Words = 'PINBASED' | 'PROCBASED' | 'EXIT' | 'ENTRY'

function readMsr(vcpu: Vcpu, index: number): bigint {
  return vcpu.getMsrs([index])[0]!.value
}
