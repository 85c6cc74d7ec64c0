/** VMCB12's control area and L1's save area as sections of fields with their meaning. */
import { bitNames } from './bits.js'
import * as c from './controls-svm.js'
import type { DescribedField, Section } from './describe.js'
import { describeRest } from './describe-rest.js'
import { eventInjText } from './events.js'
import { exitCodeText, exitInfoText } from './exits-svm.js'
import { attributesText, cr0Text, cr4Text, eferText, exceptionBitmapText, rflagsText, words } from './register-words.js'
import { SAVE_AREA, VMCB12_FIELDS, type Vmcb12, type Vmcb12Field } from './vmcb12.js'

export function svmSections(vmcb12: Vmcb12): Section[] {
  const of = (wanted: (field: Vmcb12Field) => boolean) =>
    VMCB12_FIELDS.filter(wanted).map(field => describeField(vmcb12, field))
  return [
    { title: "VMCB12's control area", fields: of(({ offset }) => offset < SAVE_AREA) },
    { title: "Save area (L1's state)", fields: of(({ offset }) => offset >= SAVE_AREA) },
    ...describeRest(vmcb12),
  ]
}

function describeField(vmcb12: Vmcb12, { name, label, offset }: Vmcb12Field): DescribedField {
  const value = vmcb12.fields[name]
  const meaning = meaningOf(vmcb12, name, value)
  return { name, label, value, offset, ...(meaning !== undefined && { meaning }) }
}

function meaningOf(vmcb12: Vmcb12, name: Vmcb12Field['name'], value: bigint): string | undefined {
  if (name.endsWith('Attrib')) return attributesText(value)
  switch (name) {
    case 'interceptCrReads':
    case 'interceptCrWrites':
    case 'interceptDrReads':
    case 'interceptDrWrites':
      return words(bitNames({}, value).map(bit => bit.replace('bit ', name.includes('Cr') ? 'CR' : 'DR')))
    case 'interceptExceptions':
      return exceptionBitmapText(value)
    case 'interceptVector3':
    case 'interceptVector4':
    case 'interceptVector5':
      return words(bitNames(c.INTERCEPTS[name], value))
    case 'tscOffset':
      return `${BigInt.asIntN(64, value)}`
    case 'tlbControl':
      return c.tlbControlText(value)
    case 'virtualInterruptControl':
      return words(c.virtualInterruptNames(value))
    case 'interruptShadow':
      return words(bitNames(c.INTERRUPT_SHADOW, value))
    case 'nestedControl':
      return words(bitNames(c.NESTED_CONTROL, value))
    case 'virtualizationExtensions':
      return words(bitNames(c.VIRTUALIZATION_EXTENSIONS, value))
    case 'vmcbCleanBits':
      return words(bitNames(c.CLEAN_BITS, value))
    case 'exitCode':
      return exitCodeText(value)
    case 'exitInfo1':
      return exitInfoText(vmcb12)
    case 'exitIntInfo':
    case 'eventInj':
      return eventInjText(value)
    case 'cr0':
      return cr0Text(value)
    case 'cr4':
      return cr4Text(value)
    case 'efer':
      return eferText(value)
    case 'rflags':
      return rflagsText(value)
    default:
      return undefined
  }
}
