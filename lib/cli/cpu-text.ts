import type { CpuBaseline, CpuDifference, CpuFacts } from '../index.js'

interface ListedModel {
  readonly name: string
  readonly vendor: string
  readonly brand: string
  /** Null: there is no KVM to ask. */
  readonly missing: readonly string[] | null
}

interface ShownModel extends CpuFacts {
  readonly cpu: string
  /** The flags of it that are svm's. */
  readonly svm: readonly string[]
  readonly source?: string
  readonly archCapabilities?: readonly string[]
  /** Flags of the model that a guest has only if asked for, or that were withheld. */
  readonly onRequest?: readonly string[]
  readonly missing: readonly string[] | null
}

/** The models as a table. */
export function formatModels(models: readonly ListedModel[]): string {
  const rows = models.map(({ name, vendor, brand, missing }) => [name, vendor, here(missing), brand])
  const all = [['MODEL', 'VENDOR', 'HERE', 'BRAND'], ...rows]
  const widths = [0, 1, 2].map(column => Math.max(...all.map(row => row[column]!.length)))
  return all
    .map(
      row =>
        `${row
          .map((cell, i) => cell.padEnd(widths[i] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('')
}

function here(missing: readonly string[] | null): string {
  if (missing === null) return '?'
  return missing.length === 0 ? 'yes' : `lacks ${missing.length}`
}

export function formatModel(model: ShownModel, columns?: number): string {
  const {
    cpu,
    vendor,
    family,
    stepping,
    brand,
    vmx,
    svm,
    source,
    archCapabilities = [],
    onRequest = [],
    missing,
  } = model
  const flags = model.flags.filter(flag => !svm.includes(flag))
  const lines = [
    cpu,
    `  vendor    ${vendor}`,
    `  family    ${family}, model ${model.model}, stepping ${stepping}`,
    `  brand     ${brand || 'none'}`,
    ...(source ? [`  source    ${source}`] : []),
    ...block(`${flags.length} flags`, flags, columns),
    ...(svm.length > 0 ? block(`svm offers ${svm.length} features`, svm, columns) : []),
    ...(vmx && vmx.length > 0 ? block(`vmx offers ${vmx.length} features`, vmx, columns) : []),
    ...(vmx === null ? ["  what vmx offers is up to the host's KVM, and there is none here"] : []),
    ...(onRequest.length > 0 ? block('only if asked for (those of nesting by +svm)', onRequest, columns) : []),
    ...(archCapabilities.length > 0 ? block('IA32_ARCH_CAPABILITIES', archCapabilities, columns) : []),
    ...(missing === null ? ['  no KVM here: whether this host can give it is not known'] : []),
    ...(missing?.length === 0 ? ['  this host can give it'] : []),
    ...(missing && missing.length > 0 ? block('this host lacks', missing, columns) : []),
  ]
  return `${lines.join('\n')}\n`
}

export function formatDifference(a: string, b: string, difference: CpuDifference, columns?: number): string {
  const { onlyA, onlyB, fields } = difference
  const lines = [
    ...fields.map(({ field, a, b }) => `  ${field.padEnd(9)} ${a || 'none'} | ${b || 'none'}`),
    ...(onlyA.length > 0 ? block(`only ${a}`, onlyA, columns) : []),
    ...(onlyB.length > 0 ? block(`only ${b}`, onlyB, columns) : []),
  ]
  return lines.length === 0 ? `${a} and ${b} do not differ\n` : `${[`${a} | ${b}`, ...lines].join('\n')}\n`
}

export function formatBaseline(
  hosts: readonly string[],
  { model, cpu, nested, flags, vmx, missing }: CpuBaseline,
  columns?: number,
): string {
  const all = hosts.length === 1 ? hosts[0]! : `all ${hosts.length} hosts`
  const fewest = Object.entries(missing).sort(([, a], [, b]) => a.length - b.length)[0]
  const lines = [
    model === null ? `no model runs as it is on ${all}` : `${model} is the largest model that runs on ${all}`,
    ...(cpu !== null && cpu !== model ? [`with flags withheld, this one has more: ${cpu}`] : []),
    ...(nested !== null ? [`for a guest with guests of its own: ${nested}`] : []),
    ...(model === null && fewest ? block(`${fewest[0]} lacks the least`, fewest[1], columns) : []),
    ...block(`${flags.length} flags in common`, flags, columns),
    ...(vmx.length > 0 ? block(`${vmx.length} features of vmx in common`, vmx, columns) : []),
  ]
  return `${lines.join('\n')}\n`
}

/** A heading with names below it, broken into lines. */
function block(heading: string, words: readonly string[], columns = 100): string[] {
  const lines: string[] = []
  for (const word of words) {
    const last = lines.at(-1)
    if (last === undefined || last.length + 1 + word.length > Math.max(columns, 40)) lines.push(`    ${word}`)
    else lines[lines.length - 1] = `${last} ${word}`
  }
  return [`  ${heading}:`, ...lines]
}
