/** Descriptions of nested states compared, and as JSON. */
import type { DescribedField, NestedDescription } from './describe.js'

export interface ChangedField {
  readonly section: string
  readonly name: string
  readonly label: string
  /** Undefined on the side that has no such field. */
  readonly before?: DescribedField['value']
  readonly after?: DescribedField['value']
  readonly beforeMeaning?: string
  readonly afterMeaning?: string
}

export type NestedJson =
  | null
  | boolean
  | number
  | string
  | readonly NestedJson[]
  | { readonly [key: string]: NestedJson }

/** The fields whose values differ, in the order in which they stand. */
export function diffNested(a: NestedDescription, b: NestedDescription): ChangedField[] {
  const before = flat(a)
  const after = flat(b)
  const keys = new Set([...before.keys(), ...after.keys()])
  return [...keys].flatMap(key => {
    const [x, y] = [before.get(key), after.get(key)]
    if (x?.field.value === y?.field.value && x?.field.meaning === y?.field.meaning) return []
    const { section, field } = (x ?? y)!
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

interface Placed {
  readonly section: string
  readonly field: DescribedField
}

/** Every value of a description as a field, by its section and name. */
function flat(description: NestedDescription): Map<string, Placed> {
  const { format, mode, header, sections, l1, l2, nestedPaging, msrs, ports, tscOffset } = description
  const field = (name: string, value: bigint | string | undefined): DescribedField[] =>
    value === undefined ? [] : [{ name, label: name, value }]
  const all = [
    { title: 'State', fields: [...field('format', format), ...field('mode', mode)] },
    { title: 'Header', fields: header },
    ...(l1 ? [{ title: 'L1', fields: Object.entries(l1).flatMap(([name, value]) => field(name, value)) }] : []),
    ...(l2 ? [{ title: 'L2', fields: Object.entries(l2).flatMap(([name, value]) => field(name, value)) }] : []),
    ...sections,
    {
      title: 'For L2',
      fields: [
        ...field('nestedPaging', nestedPaging && `${nestedPaging.kind}: ${nestedPaging.meaning}`),
        ...field('tscOffset', tscOffset),
        ...field('msrReads', msrs?.reads.join(' ')),
        ...field('msrWrites', msrs?.writes.join(' ')),
        ...field('ports', ports?.join(' ')),
      ],
    },
  ]
  return new Map(
    all.flatMap(({ title, fields }) =>
      fields.map(one => [`${title}\n${one.name}`, { section: title, field: one }] as const),
    ),
  )
}

/** The same as JSON takes it: bigints as `0x` and hexadecimal digits, negative ones with their sign. */
export function toJson(value: unknown): NestedJson {
  if (typeof value === 'bigint') return value < 0n ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`
  if (value === null || typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean')
    return value
  if (Array.isArray(value)) return value.map(toJson)
  if (typeof value !== 'object') throw new TypeError(`no JSON for ${typeof value}`)
  const entries = Object.entries(value as object).filter(([, member]) => member !== undefined)
  return Object.fromEntries(entries.map(([key, member]) => [key, toJson(member)]))
}
