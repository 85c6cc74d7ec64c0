/** VMCS12 as sections of fields with their meaning. */
import { bitNames } from './bits.js'
import { controlNames, type VmxControl } from './controls-vmx.js'
import type { DescribedField, Section } from './describe.js'
import { describeRest } from './describe-rest.js'
import { interruptionText } from './events.js'
import { exitQualificationText, exitReasonText } from './exits-vmx.js'
import { decodeEptp } from './pointers.js'
import {
  accessRightsText,
  cr0Text,
  cr4Text,
  eferText,
  exceptionBitmapText,
  rflagsText,
  words,
} from './register-words.js'
import { ALL_ONES } from './registers.js'
import { SHADOW_VMCS_INDICATOR, VMCS12_FIELDS, VMCS12_REVISION, type Vmcs12, type Vmcs12Field } from './vmcs12.js'

/** Bits 11:10 of an encoding tell the kind of field (Intel SDM vol. 3, table 25-21). */
const titles = ['Controls', 'VM-exit information', 'Guest-state area (L2)', 'Host-state area (L1)'] as const

export function vmxSections(vmcs12: Vmcs12): Section[] {
  const of = (wanted: (field: Vmcs12Field) => boolean) =>
    VMCS12_FIELDS.filter(wanted).map(field => describeField(vmcs12, field))
  return [
    { title: 'VMCS12', fields: of(({ encoding }) => encoding === undefined) },
    ...titles.map((title, kind) => ({
      title,
      fields: of(({ encoding }) => encoding !== undefined && ((encoding >> 10) & 3) === kind),
    })),
    ...describeRest(vmcs12),
  ]
}

function describeField(vmcs12: Vmcs12, { name, label, offset }: Vmcs12Field): DescribedField {
  const value = vmcs12.fields[name]
  const meaning = meaningOf(vmcs12, name, value)
  return { name, label, value, offset, ...(meaning !== undefined && { meaning }) }
}

const controlFields: Readonly<Record<string, VmxControl>> = {
  pinBasedVmExecutionControls: 'pin',
  primaryProcessorBasedVmExecutionControls: 'primary',
  secondaryProcessorBasedVmExecutionControls: 'secondary',
  vmExitControls: 'exit',
  vmEntryControls: 'entry',
}

function meaningOf(vmcs12: Vmcs12, name: Vmcs12Field['name'], value: bigint): string | undefined {
  const { fields: f } = vmcs12
  const control = controlFields[name]
  if (control) return words(controlNames(vmcs12, control))
  if (name.endsWith('AccessRights')) return accessRightsText(value)
  switch (name) {
    case 'vmcsRevisionIdentifier': {
      const kind = value & SHADOW_VMCS_INDICATOR ? 'shadow VMCS' : 'ordinary VMCS'
      return `${(value & ~SHADOW_VMCS_INDICATOR) === VMCS12_REVISION ? "KVM's" : 'not KVM’s'}, ${kind}`
    }
    case 'launchState':
      return value === 0n ? 'clear' : value === 1n ? 'launched' : undefined
    case 'guestCr0':
    case 'hostCr0':
    case 'cr0GuestHostMask':
    case 'cr0ReadShadow':
      return cr0Text(value)
    case 'guestCr4':
    case 'hostCr4':
    case 'cr4GuestHostMask':
    case 'cr4ReadShadow':
      return cr4Text(value)
    case 'guestIa32Efer':
    case 'hostIa32Efer':
      return eferText(value)
    case 'guestRflags':
      return rflagsText(value)
    case 'exceptionBitmap':
      return exceptionBitmapText(value)
    case 'eptPointer':
      return eptpText(value)
    case 'tscOffset':
      return `${BigInt.asIntN(64, value)}`
    case 'vmcsLinkPointer':
      return value === ALL_ONES ? 'none' : undefined
    case 'vmInstructionError':
      return instructionErrors[Number(value)]
    case 'exitReason':
      return exitReasonText(value)
    case 'exitQualification':
      return exitQualificationText(vmcs12)
    case 'vmExitInterruptionInformation':
      return interruptionText(value, f.vmExitInterruptionErrorCode)
    case 'idtVectoringInformationField':
      return interruptionText(value, f.idtVectoringErrorCode)
    case 'vmEntryInterruptionInformationField':
      return interruptionText(value, f.vmEntryExceptionErrorCode)
    case 'guestActivityState':
      return ['active', 'HLT', 'shutdown', 'wait-for-SIPI'][Number(value)] ?? 'reserved'
    case 'guestInterruptibilityState':
      return words(bitNames(interruptibility, value))
    default:
      return undefined
  }
}

/** Intel SDM vol. 3, table 25-3 */
const interruptibility = {
  'blocking by STI': 0,
  'blocking by MOV SS': 1,
  'blocking by SMI': 2,
  'blocking by NMI': 3,
  'enclave interruption': 4,
} as const

export function eptpText(eptp: bigint): string {
  const { memoryType, levels, accessedDirty, supervisorShadowStack, root } = decodeEptp(eptp)
  const more = [...(accessedDirty ? ['accessed and dirty flags'] : []), ...(supervisorShadowStack ? ['SSS'] : [])]
  return [`${levels} levels at 0x${root.toString(16)}`, memoryType, ...more].join(', ')
}

/** Intel SDM vol. 3, section 31.4 */
const instructionErrors: Readonly<Record<number, string>> = {
  0: 'none',
  1: 'VMCALL executed in VMX root operation',
  2: 'VMCLEAR with invalid physical address',
  3: 'VMCLEAR with VMXON pointer',
  4: 'VMLAUNCH with non-clear VMCS',
  5: 'VMRESUME with non-launched VMCS',
  6: 'VMRESUME after VMXOFF',
  7: 'VM entry with invalid control field(s)',
  8: 'VM entry with invalid host-state field(s)',
  9: 'VMPTRLD with invalid physical address',
  10: 'VMPTRLD with VMXON pointer',
  11: 'VMPTRLD with incorrect VMCS revision identifier',
  12: 'VMREAD/VMWRITE from/to unsupported VMCS component',
  13: 'VMWRITE to read-only VMCS component',
  15: 'VMXON executed in VMX root operation',
  16: 'VM entry with invalid executive-VMCS pointer',
  17: 'VM entry with non-launched executive VMCS',
  18: 'VM entry with executive-VMCS pointer not VMXON pointer',
  19: 'VMCALL with non-clear VMCS',
  20: 'VMCALL with invalid VM-exit control fields',
  22: 'VMCALL with incorrect MSEG revision identifier',
  23: 'VMXOFF under dual-monitor treatment of SMIs and SMM',
  24: 'VMCALL with invalid SMM-monitor features',
  25: 'VM entry with invalid VM-execution control fields in executive VMCS',
  26: 'VM entry with events blocked by MOV SS',
  28: 'invalid operand to INVEPT/INVVPID',
}
