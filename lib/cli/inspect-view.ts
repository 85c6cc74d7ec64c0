/** What `inspect` shows, in the order in which it is shown: the same for the terminal and for the page. */
import {
  type ChangedField,
  type DescribedField,
  forL2Section,
  type Inspection,
  type InspectionDifference,
  type L2Walk,
  type MemoryDifference,
  type Section,
  stateSection,
  type VcpuInspection,
} from '../index.js'
import { describeSize } from './progress.js'

export interface Row extends DescribedField {
  /** Set where the two sides of a comparison differ. */
  readonly change?: 'changed' | 'added' | 'removed'
  readonly before?: DescribedField['value']
  readonly beforeMeaning?: string
}

export interface Block {
  readonly title: string
  readonly rows: readonly Row[]
  /** Of use to few: folded away at first. */
  readonly aside?: boolean
  /** Tells of a comparison, but has no values before and after. */
  readonly plain?: boolean
}

export interface Group {
  readonly title: string
  readonly blocks: readonly Block[]
}

export interface View {
  readonly title: string
  readonly facts: readonly (readonly [name: string, value: string])[]
  readonly groups: readonly Group[]
  readonly comparison: boolean
}

const ASIDE = ['MSRs', 'Local APIC', 'CPUID', 'Configuration', 'Devices', 'Other state', 'Bytes without a field']
/** Runs of pages that are named. */
const RUNS = 16

export function viewOf(inspection: Inspection, walk?: L2Walk): View {
  return {
    title: `Snapshot ${inspection.directory}`,
    facts: facts(inspection),
    groups: [
      ...(walk ? [walkGroup(walk)] : []),
      ...inspection.vcpus.map(vcpu => ({
        title: vcpuTitle(vcpu),
        blocks: vcpuSections(vcpu).map(section => blockOf(section)),
      })),
      { title: 'Machine', blocks: inspection.sections.map(section => blockOf(section)) },
    ],
    comparison: false,
  }
}

/** Snapshot `b`, with what `a` has differently. */
export function viewOfDifference(
  a: Inspection,
  b: Inspection,
  { vcpus, changed }: InspectionDifference,
  memory: MemoryDifference | undefined,
): View {
  return {
    title: 'What changed between two snapshots',
    facts: [
      ['before', `${a.directory}, saved ${a.created}, ${a.id}`],
      ['after', `${b.directory}, saved ${b.created}, ${b.id}`],
    ],
    groups: [
      ...vcpus.map(({ id, before, after, changed }) => {
        const title = after ? vcpuTitle(after) : `vCPU ${id}: only in the first snapshot`
        return { title, blocks: marked(vcpuSections((after ?? before)!), changed) }
      }),
      { title: 'Machine', blocks: marked(b.sections, changed) },
      { title: 'Memory', blocks: [memoryBlock(memory)] },
    ],
    comparison: true,
  }
}

export function vcpuTitle({ id, doing }: VcpuInspection): string {
  return `vCPU ${id}: ${doing}`
}

/** A value as it is shown; a text may hold anything. */
export function showValue(value: DescribedField['value']): string {
  if (typeof value === 'string') return printable(value)
  return value < 0n ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`
}

/** Text of a snapshot, with nothing in it that a terminal would obey or that reorders what is read. */
export function printable(text: string): string {
  const unseen = /[\p{Cc}\p{Cs}\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/gu
  return text.replace(unseen, character => `\\u{${character.codePointAt(0)!.toString(16)}}`)
}

function facts({ id, created, chain, memory, vcpus }: Inspection): [string, string][] {
  return [
    ['saved', created],
    ['id', id],
    ['memory', describeSize(memory)],
    ['vCPUs', String(vcpus.length)],
    ...(chain.length > 1 ? [['based on', chain.slice(1).join(', ')] as [string, string]] : []),
  ]
}

/** Its state and nested state first, its registers after them. */
function vcpuSections(vcpu: VcpuInspection): Section[] {
  const { nested, sections } = vcpu
  const ofNested = nested ? [{ title: 'Header', fields: nested.header }, forL2Section(nested), ...nested.sections] : []
  return [stateSection(vcpu), ...ofNested.filter(({ fields }) => fields.length > 0), ...sections]
}

function blockOf({ title, fields }: Section): Block {
  return { title, rows: fields, aside: ASIDE.includes(title) }
}

/** The sections with their changed fields marked, and those that are gone. */
function marked(sections: readonly Section[], changed: readonly ChangedField[]): Block[] {
  const changes = new Map(changed.map(change => [`${change.section}\n${change.name}`, change]))
  const take = (section: string, name: string) => {
    const key = `${section}\n${name}`
    const change = changes.get(key)
    changes.delete(key)
    return change
  }
  const blocks = sections.map(section => ({
    ...blockOf(section),
    rows: section.fields.map((field): Row => mark(field, take(section.title, field.name))),
  }))
  // What is left has no place in the second snapshot any more.
  for (const change of changes.values()) {
    const row = mark({ name: change.name, label: change.label, value: change.after ?? '' }, change)
    const block = blocks.find(({ title }) => title === change.section)
    if (block) block.rows.push(row)
    else blocks.push({ title: change.section, rows: [row], aside: false })
  }
  return blocks
}

function mark(field: DescribedField, change: ChangedField | undefined): Row {
  if (!change) return field
  const { before, after, beforeMeaning } = change
  return {
    ...field,
    change: before === undefined ? 'added' : after === undefined ? 'removed' : 'changed',
    ...(before !== undefined && { before }),
    ...(beforeMeaning !== undefined && { beforeMeaning }),
  }
}

function memoryBlock(memory: MemoryDifference | undefined): Block {
  const title = 'Guest memory'
  if (!memory) return { title, rows: [{ name: 'layout', label: 'Layout', value: 'not the same: it is not compared' }] }
  const { pages, runs, first } = memory
  const change = pages > 0 ? { change: 'changed' as const } : {}
  const rows: Row[] = [
    { name: 'pages', label: 'Pages that differ', value: `${pages}`, meaning: describeSize(pages * 4096), ...change },
  ]
  for (const { address, pages } of first.slice(0, RUNS)) {
    const range = `0x${address.toString(16)}-0x${(address + pages * 4096 - 1).toString(16)}`
    rows.push({ name: range, label: range, value: `${pages} ${pages === 1 ? 'page' : 'pages'}`, ...change })
  }
  if (runs > RUNS) rows.push({ name: 'more', label: 'More', value: `${runs - RUNS} further runs of pages`, ...change })
  return { title, rows, plain: true }
}

function walkGroup(walk: L2Walk): Group {
  const { address, kind, vcpu, steps, content } = walk
  const rows: Row[] = steps.map(({ level, entryAddress, entry, meaning }) => ({
    name: `level${level}`,
    label: `Level ${level} entry at 0x${entryAddress.toString(16)}`,
    value: entry,
    meaning,
  }))
  if (walk.outcome === 'mapped') {
    const { physical, pageSize, readable, writable, executable, memoryType } = walk
    const rights = [readable && 'read', writable && 'write', executable && 'execute', memoryType].filter(Boolean)
    const meaning = `${describeSize(pageSize)} page: ${rights.join(', ') || 'no access'}`
    rows.push({ name: 'physical', label: "L1's physical address", value: physical, meaning })
    const bytes = content
      ? Buffer.from(content)
          .toString('hex')
          .replace(/..(?=.)/g, '$& ')
      : 'not memory'
    rows.push({ name: 'content', label: 'What is there', value: bytes })
  } else rows.push({ name: 'outcome', label: 'Leads nowhere', value: walk.outcome, meaning: walk.reason })
  const title = `L2's physical address 0x${address.toString(16)} through ${kind}, vCPU ${vcpu}`
  return { title: 'Walk', blocks: [{ title, rows }] }
}
