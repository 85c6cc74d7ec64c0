import type { Block } from './block.js'
import type { DescribedField, Section } from './describe.js'

/** What lies in a block beside its fields: each 8 bytes that are not 0, by offset. Nothing where all are. */
export function describeRest({ rest }: Block): Section[] {
  const view = new DataView(rest.buffer, rest.byteOffset, rest.length)
  const fields: DescribedField[] = []
  for (let offset = 0; offset < rest.length; offset += 8) {
    const value = view.getBigUint64(offset, true)
    if (value !== 0n) fields.push({ name: `offset${offset}`, label: `Offset ${offset}`, value, offset })
  }
  return fields.length ? [{ title: 'Bytes without a field', fields }] : []
}
