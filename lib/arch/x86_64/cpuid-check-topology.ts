/** What a CPUID table says about vCPUs and caches, held against itself. */
import type { CpuidEntry } from '../../kvm/structs.js'
import type { CheckedTable } from './cpuid-check.js'

const LEVEL_CORE = 2

/** Only of a vCPU's table: in KVM's, and in that which vCPUs have in common, leaf 0xb is empty. */
export function topologyProblems({ entries, flags, amd, at }: CheckedTable): string[] {
  const rows = entries.filter(entry => entry.function === 0xb).sort((a, b) => a.index - b.index)
  const core = rows.find(row => ((row.ecx >>> 8) & 0xff) === LEVEL_CORE)
  if (!core) return []
  const [id, count, bits] = [core.edx, core.ebx & 0xffff, core.eax & 0x1f]
  const { ebx } = at(1)
  const problem = (wrong: boolean, text: string) => (wrong ? [text] : [])
  return [
    ...problem(
      rows.some(row => row.edx !== id),
      'the rows of leaf 0xb have different APIC ids',
    ),
    ...problem(
      rows.some((row, i) => i > 0 && row.ebx !== 0 && row.eax < rows[i - 1]!.eax),
      'the shifts of leaf 0xb do not grow',
    ),
    ...problem(2 ** bits < count || id >= 2 ** bits, `leaf 0xb has ${bits} bits for APIC id ${id} of ${count}`),
    ...problem(ebx >>> 24 !== (id & 0xff), `leaf 0x1 has the APIC id ${ebx >>> 24}, leaf 0xb ${id}`),
    ...problem(
      ((ebx >>> 16) & 0xff) !== Math.min(2 ** bits, 0xff),
      `leaf 0x1 has room for ${(ebx >>> 16) & 0xff} vCPUs, leaf 0xb for ${2 ** bits}`,
    ),
    ...problem(flags.has('ht') !== count > 1, `ht is ${flags.has('ht') ? 'set' : 'not set'} with ${count} vCPUs`),
    ...problem(!same(rows, entries), 'leaf 0x1f is not what leaf 0xb is'),
    ...(amd ? amdProblems({ flags, at }, id, count, bits) : []),
  ]
}

function same(rows: readonly CpuidEntry[], entries: readonly CpuidEntry[]): boolean {
  const others = entries.filter(entry => entry.function === 0x1f)
  if (others.length === 0 || others.every(({ ecx }) => ecx >>> 8 === 0)) return true
  const key = ({ index, eax, ebx, ecx, edx }: CpuidEntry) => [index, eax, ebx, ecx, edx].join(' ')
  const known = new Set(rows.map(key))
  return others.length === rows.length && others.every(other => known.has(key(other)))
}

function amdProblems(
  { flags, at }: Pick<CheckedTable, 'flags' | 'at'>,
  id: number,
  count: number,
  bits: number,
): string[] {
  const { ecx } = at(0x80000008)
  const [threads, size] = [(ecx & 0xff) + 1, (ecx >>> 12) & 0xf]
  return [
    ...(threads === Math.min(count, 0x100) ? [] : [`leaf 0x80000008 counts ${threads} vCPUs, leaf 0xb ${count}`]),
    ...(size === bits ? [] : [`leaf 0x80000008 has ${size} bits of APIC id, leaf 0xb ${bits}`]),
    ...(flags.has('cmp_legacy') === count > 1 ? [] : [`cmp_legacy does not fit ${count} vCPUs`]),
    ...(flags.has('topoext') && at(0x8000001e).eax !== id
      ? [`leaf 0x8000001e has the APIC id ${at(0x8000001e).eax}, leaf 0xb ${id}`]
      : []),
  ]
}

export function cacheProblems({ entries, amd, at }: CheckedTable): string[] {
  const leaf = amd ? 0x8000001d : 0x4
  const listed = entries.filter(e => e.function === leaf && (e.eax & 0x1f) !== 0).sort((a, b) => a.index - b.index)
  const name = `leaf 0x${leaf.toString(16)}`
  const core = entries.find(e => e.function === 0xb && ((e.ecx >>> 8) & 0xff) === LEVEL_CORE)
  const most = core ? 2 ** (core.eax & 0x1f) : Number.POSITIVE_INFINITY
  const gaps = listed.filter((entry, i) => entry.index !== i).slice(0, 1)
  const sizeOf = (level: number) => kib(listed.find(e => ((e.eax >>> 5) & 7) === level && (e.eax & 0x1f) !== 2))
  const told = [
    ...(amd ? [['0x80000005 ecx', at(0x80000005).ecx >>> 24, sizeOf(1)] as const] : []),
    ['0x80000006 ecx', at(0x80000006).ecx >>> 16, sizeOf(2)] as const,
  ]
  return [
    ...gaps.map(({ index }) => `${name}.${index} is filled in, and one before it is not`),
    ...listed
      .filter((entry, i) => i > 0 && level(entry) < level(listed[i - 1]!))
      .map(({ index }) => `${name}.${index} is nearer to the core than the one before it`),
    ...listed
      .filter(({ eax }) => ((eax >>> 14) & 0xfff) + 1 > most)
      .map(({ eax, index }) => `${name}.${index} is shared by ${((eax >>> 14) & 0xfff) + 1} APIC ids of ${most}`),
    ...told
      .filter(([, size, other]) => size !== 0 && other !== undefined && size !== other)
      .map(([place, size, other]) => `leaf ${place} tells of ${size} KiB, ${name} of ${other}`),
  ]
}

function level({ eax }: CpuidEntry): number {
  return (eax >>> 5) & 7
}

/** Ways, partitions, line and sets, each minus one (Intel SDM vol. 2A, CPUID leaf 4). */
function kib(entry: CpuidEntry | undefined): number | undefined {
  if (!entry) return undefined
  const [ways, partitions, line] = [(entry.ebx >>> 22) + 1, ((entry.ebx >>> 12) & 0x3ff) + 1, (entry.ebx & 0xfff) + 1]
  return (ways * partitions * line * (entry.ecx + 1)) / 1024
}
