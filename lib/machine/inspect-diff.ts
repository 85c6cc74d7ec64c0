import type { DescribedField, Section } from '../nested/describe.js'
import { type ChangedField, diffNested } from '../nested/diff.js'
import { type Inspection, stateSection, type VcpuInspection } from './inspect.js'

export interface VcpuDifference {
  readonly id: number
  /** Undefined on the side that has no such vCPU. */
  readonly before?: VcpuInspection
  readonly after?: VcpuInspection
  /** Nested state first, then registers. */
  readonly changed: readonly ChangedField[]
}

export interface InspectionDifference {
  readonly vcpus: readonly VcpuDifference[]
  /** Of the VM: clock, interrupt controllers, devices, configuration. */
  readonly changed: readonly ChangedField[]
}

/** What two snapshots have differently, but for their memory (`compareMemory`). */
export function diffInspections(a: Inspection, b: Inspection): InspectionDifference {
  const ids = [...new Set([...a.vcpus, ...b.vcpus].map(({ id }) => id))]
  const vcpus = ids.map(id => {
    const [before, after] = [a, b].map(({ vcpus }) => vcpus.find(vcpu => vcpu.id === id))
    return { id, ...(before && { before }), ...(after && { after }), changed: changedFields(before, after) }
  })
  return { vcpus, changed: diffSections(a.sections, b.sections) }
}

function changedFields(before: VcpuInspection | undefined, after: VcpuInspection | undefined): ChangedField[] {
  const state = (vcpu: VcpuInspection | undefined) => (vcpu ? [stateSection(vcpu)] : [])
  const nested =
    before?.nested && after?.nested
      ? // The levels are in the section of the state already.
        diffNested(before.nested, after.nested).filter(({ section }) => !['State', 'L1', 'L2'].includes(section))
      : diffSections(before?.nested?.sections ?? [], after?.nested?.sections ?? [])
  return [
    ...diffSections(state(before), state(after)),
    ...nested,
    ...diffSections(before?.sections ?? [], after?.sections ?? []),
  ]
}

/** The fields whose values differ, in the order in which they stand. */
export function diffSections(a: readonly Section[], b: readonly Section[]): ChangedField[] {
  const [before, after] = [flat(a), flat(b)]
  return [...new Set([...before.keys(), ...after.keys()])].flatMap(key => {
    const [x, y] = [before.get(key), after.get(key)]
    if (x?.field.value === y?.field.value && x?.field.meaning === y?.field.meaning) return []
    const { section, field } = (y ?? x)!
    return [
      {
        section,
        name: field.name,
        label: field.label,
        ...(x && { before: x.field.value }),
        ...(y && { after: y.field.value }),
        ...(x?.field.meaning !== undefined && { beforeMeaning: x.field.meaning }),
        ...(y?.field.meaning !== undefined && { afterMeaning: y.field.meaning }),
      },
    ]
  })
}

/** By section and name; the nth of those that have the same. */
function flat(sections: readonly Section[]): Map<string, { section: string; field: DescribedField }> {
  const fields = new Map<string, { section: string; field: DescribedField }>()
  for (const { title, fields: list } of sections) {
    for (const field of list) fields.set(`${title}\n${field.name}`, { section: title, field })
  }
  return fields
}
