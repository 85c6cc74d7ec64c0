/** Does a CPUID table contradict itself? Guests trust that it does not, and fail far from the cause where it does. */
import type { CpuidEntry } from '../../kvm/structs.js'
import { SVM_LEAF } from '../../nested/svm-capabilities.js'
import { CPU_FLAG_DEPENDENTS } from './cpu-flags.js'
import {
  AMD_ALIASES,
  findEntry,
  flagsOf,
  isAmd,
  LEAF_EXTENDED_FEATURES,
  LEAF_FEATURES,
  LEAF_SIZES,
  LEAF_XSAVE,
  LEAST_XSAVE_AREA,
  vendorOf,
  XSAVE_COMPONENTS,
  xsaveAreaSize,
} from './cpuid.js'
import { cacheProblems, topologyProblems } from './cpuid-check-topology.js'

/** A rule that a table breaks. */
export interface CpuidProblem {
  readonly invariant: Invariant
  /** Which leaf has what, and what it would have to have. */
  readonly problem: string
}

export type Invariant = keyof typeof CHECKS

/** A table with what most rules ask of it. */
export interface CheckedTable {
  readonly entries: readonly CpuidEntry[]
  readonly flags: ReadonlySet<string>
  readonly amd: boolean
  at(leaf: number, index?: number): CpuidEntry
}

/** The rules, each giving what breaks it. */
const CHECKS = {
  /** Registers have 32 bits, and a leaf stands once. */
  entries: entryProblems,
  /** The highest leaves are at least those that tell of something (Intel SDM vol. 2A, CPUID, leaves 0 and 0x80000000). */
  levels: levelProblems,
  /** Leaf 7 counts its sub-leaves. */
  subleaves: subleafProblems,
  /** AMD repeats the maker, the signature and many flags (AMD APM vol. 3, appendix E.4). */
  copies: copyProblems,
  /** A flag stands with what it means nothing without, and where its maker's processors have it. */
  flags: flagProblems,
  /** The components of leaf 0xd are those of the flags, do not overlap, and fit (Intel SDM vol. 1, sections 13.2 and 13.4). */
  xsave: xsaveProblems,
  /** Leaf 0x8000000a is there with svm, and empty without. */
  svm: svmProblems,
  /** Addresses have widths that page tables can have, and 57 linear bits where there are five levels. */
  widths: widthProblems,
  /** CLFLUSH has a line to flush. */
  clflush: clflushProblems,
  /** The brand string is text that ends. */
  brand: brandProblems,
  /** The hypervisor's leaves are announced by its bit, and reach as far as they say. */
  hypervisor: hypervisorProblems,
  /** All leaves agree on this vCPU's number and how many there are; where leaf 0xb is filled in. */
  topology: topologyProblems,
  /** Caches are listed without gaps, shared by no more than there are, and of one size wherever they are told of. */
  caches: cacheProblems,
} as const

/** The invariants that a CPUID table breaks, each with leaf and value: none where it is consistent. */
export function checkCpuid(entries: readonly CpuidEntry[]): CpuidProblem[] {
  const none = { eax: 0, ebx: 0, ecx: 0, edx: 0 }
  const table: CheckedTable = {
    entries,
    flags: new Set(flagsOf(entries)),
    amd: isAmd(entries),
    at: (leaf, index = 0) => findEntry(entries, leaf, index) ?? { function: leaf, index, flags: 0, ...none },
  }
  return (Object.keys(CHECKS) as Invariant[]).flatMap(invariant =>
    CHECKS[invariant](table).map(problem => ({ invariant, problem })),
  )
}

export function hex(value: number): string {
  return `0x${value.toString(16)}`
}

function entryProblems({ entries }: CheckedTable): string[] {
  const seen = new Set<string>()
  return entries.flatMap(entry => {
    const name = `leaf ${hex(entry.function)}.${entry.index}`
    const twice = seen.has(name) ? [`${name} stands twice`] : []
    seen.add(name)
    const bad = (['eax', 'ebx', 'ecx', 'edx'] as const).filter(register => entry[register] >>> 0 !== entry[register])
    return [...twice, ...bad.map(register => `${name} ${register} is ${entry[register]}, which is no 32-bit number`)]
  })
}

const RANGES = [0, 0x40000000, 0x80000000] as const

function levelProblems({ entries, at }: CheckedTable): string[] {
  return RANGES.flatMap(base => {
    const told = entries.filter(e => e.function >>> 16 === base >>> 16 && (e.eax | e.ebx | e.ecx | e.edx) !== 0)
    const highest = told.reduce((max, e) => Math.max(max, e.function), 0)
    const level = at(base).eax
    return highest > level && highest !== base
      ? [`leaf ${hex(highest)} tells of something, and leaf ${hex(base)} eax says that ${hex(level)} is the highest`]
      : []
  })
}

function subleafProblems({ entries, at }: CheckedTable): string[] {
  const told = entries.filter(e => e.function === 7 && (e.ebx | e.ecx | e.edx | (e.index > 0 ? e.eax : 0)) !== 0)
  const highest = Math.max(0, ...told.map(({ index }) => index))
  return highest > at(7).eax ? [`leaf 0x7.${highest} tells of something, and 0x7.0 eax says ${at(7).eax}`] : []
}

function copyProblems({ at, amd }: CheckedTable): string[] {
  if (!amd) return []
  const [basic, extended] = [at(0), at(0x80000000)]
  const [features, more] = [at(LEAF_FEATURES), at(LEAF_EXTENDED_FEATURES)]
  const sameMaker = basic.ebx === extended.ebx && basic.ecx === extended.ecx && basic.edx === extended.edx
  const differing = ((features.edx ^ more.edx) & AMD_ALIASES) >>> 0
  return [
    ...(sameMaker ? [] : ['leaf 0x80000000 has another maker than leaf 0x0']),
    ...(features.eax === more.eax
      ? []
      : [`leaf 0x80000001 eax is ${hex(more.eax)}, leaf 0x1 eax ${hex(features.eax)}`]),
    ...(differing === 0 ? [] : [`leaf 0x80000001 edx differs from leaf 0x1 edx in the bits ${hex(differing)}`]),
  ]
}

function flagProblems({ entries, flags, amd }: CheckedTable): string[] {
  const alone = [...CPU_FLAG_DEPENDENTS].flatMap(([base, dependents]) =>
    flags.has(base) ? [] : dependents.filter(flag => flags.has(flag)).map(flag => `${flag} is set without ${base}`),
  )
  const foreign = amd ? 'vmx' : 'svm'
  return [...alone, ...(flags.has(foreign) ? [`${foreign} is set on a processor of ${vendorOf(entries)}`] : [])]
}

function xsaveProblems(table: CheckedTable): string[] {
  const { entries, flags, at } = table
  const leaves = entries.filter(entry => entry.function === LEAF_XSAVE)
  if (!flags.has('xsave')) {
    const filled = leaves.find(e => (e.eax | e.ebx | e.ecx | e.edx) !== 0)
    return filled ? [`leaf 0xd.${filled.index} is filled in without xsave`] : []
  }
  const { eax: bits, ebx: enabled, ecx: size } = at(LEAF_XSAVE)
  const has = (component: number) => ((bits >>> component) & 1) === 1
  const needed = xsaveAreaSize(entries)
  return [
    ...((bits & 3) === 3 ? [] : ['leaf 0xd.0 eax lacks x87 or SSE state']),
    ...Object.entries(XSAVE_COMPONENTS).flatMap(([flag, components]) =>
      components.flatMap(component => {
        if (has(component) === flags.has(flag)) return []
        return [
          `leaf 0xd.0 eax ${has(component) ? 'has' : 'lacks'} component ${component}, and ${flag} is ${flags.has(flag) ? 'set' : 'not set'}`,
        ]
      }),
    ),
    ...(size === needed ? [] : [`leaf 0xd.0 ecx is ${size}, and the components need ${needed}`]),
    ...(enabled >= LEAST_XSAVE_AREA && enabled <= size
      ? []
      : [`leaf 0xd.0 ebx is ${enabled}, outside ${LEAST_XSAVE_AREA} to ecx`]),
    ...placeProblems(table, has),
  ]
}

function placeProblems({ entries, flags, at }: CheckedTable, has: (component: number) => boolean): string[] {
  const placed = [...Array(32).keys()].filter(component => component >= 2 && has(component)).map(i => at(LEAF_XSAVE, i))
  placed.sort((a, b) => a.ebx - b.ebx)
  const empty = placed
    .filter(({ eax }) => eax === 0)
    .map(({ index }) => `component ${index} has no size in leaf 0xd.${index}`)
  const overlaps = placed.flatMap((entry, i) => {
    const before = i === 0 ? LEAST_XSAVE_AREA : placed[i - 1]!.ebx + placed[i - 1]!.eax
    return entry.eax !== 0 && entry.ebx < before
      ? [`component ${entry.index} at ${entry.ebx} begins before ${before}`]
      : []
  })
  const stray = entries
    .filter(
      e =>
        e.function === LEAF_XSAVE && e.index >= 2 && e.index < 32 && e.eax !== 0 && (e.ecx & 1) === 0 && !has(e.index),
    )
    .map(({ index }) => `leaf 0xd.${index} is filled in, and 0xd.0 eax lacks the component`)
  const supervisor = at(LEAF_XSAVE, 1)
  const unannounced = !flags.has('xsaves') && (supervisor.ecx | supervisor.edx) !== 0
  return [...empty, ...overlaps, ...stray, ...(unannounced ? ['leaf 0xd.1 has supervisor state without xsaves'] : [])]
}

function svmProblems({ flags, at }: CheckedTable): string[] {
  const { eax, ebx, edx } = at(SVM_LEAF)
  const filled = (eax | ebx | edx) !== 0
  if (flags.has('svm')) return (eax & 0xff) === 0 ? ['leaf 0x8000000a has no revision, and svm is set'] : []
  return filled ? ['leaf 0x8000000a is filled in without svm'] : []
}

function widthProblems({ entries, flags, at }: CheckedTable): string[] {
  if (!findEntry(entries, LEAF_SIZES)) return []
  const [physical, linear] = [at(LEAF_SIZES).eax & 0xff, (at(LEAF_SIZES).eax >>> 8) & 0xff]
  const wanted = flags.has('la57') ? 57 : 48
  return [
    ...(physical >= 32 && physical <= 52 ? [] : [`leaf 0x80000008 says ${physical} physical bits, outside 32 to 52`]),
    ...(linear === wanted
      ? []
      : [`leaf 0x80000008 says ${linear} linear bits, and la57 is ${flags.has('la57') ? 'set' : 'not set'}`]),
  ]
}

function clflushProblems({ flags, at }: CheckedTable): string[] {
  const line = (at(LEAF_FEATURES).ebx >>> 8) & 0xff
  return flags.has('clflush') && line === 0 ? ['leaf 0x1 ebx gives CLFLUSH a line of no size'] : []
}

function brandProblems({ at }: CheckedTable): string[] {
  const words = [2, 3, 4].map(i => at(0x80000000 + i)).flatMap(({ eax, ebx, ecx, edx }) => [eax, ebx, ecx, edx])
  const bytes = Buffer.from(Uint32Array.from(words).buffer)
  const end = bytes.indexOf(0)
  if (end < 0) return ['the brand string of leaves 0x80000002 to 0x80000004 does not end']
  const isText = bytes.subarray(0, end).every(byte => byte >= 0x20 && byte < 0x7f)
  return isText ? [] : ['the brand string of leaves 0x80000002 to 0x80000004 is no text']
}

function hypervisorProblems({ flags, at }: CheckedTable): string[] {
  const { ebx, ecx, edx } = at(0x40000000)
  const own = at(0x40000001).eax
  return [
    ...((ebx | ecx | edx) !== 0 && !flags.has('hypervisor')
      ? ['leaf 0x40000000 has a signature without the hypervisor bit']
      : []),
    ...(own !== 0 && (ebx | ecx | edx) === 0 ? ['leaf 0x40000001 has features without a signature in 0x40000000'] : []),
  ]
}
