import type { CpuidEntry } from '../../kvm/structs.js'
import { SVM_LEAF } from '../../nested/svm-capabilities.js'
import type { CpuModel, ModelCache } from './cpu-models/cpu-model.js'
import {
  AMD_ALIASES,
  findEntry,
  isAmdVendor,
  LEAF_EXTENDED_FEATURES,
  LEAF_FEATURES,
  LEAF_SIZES,
  LEAF_XSAVE,
  placesOf,
  sizeXsaveArea,
  XSAVE_COMPONENTS,
} from './cpuid.js'
import { CpuidTable } from './cpuid-table.js'

const LEAF_TOPOEXT_CACHES = 0x8000001d
const LEAF_TOPOEXT = 0x8000001e
const LINE = 64
/** QEMU's number of address-space identifiers. */
const ASIDS = 16

/** What a model's table is made of. */
export interface ModelParts {
  readonly model: CpuModel
  /** All that the guest is to have; KVM offers each. */
  readonly flags: ReadonlySet<string>
  /** As leaf 0 spells it. */
  readonly vendor: string
  readonly physBits: number
  readonly brand: string
  /** `KVM_GET_SUPPORTED_CPUID`: the places of the state components are the processor's, and KVM's leaves are KVM's. */
  readonly supported: readonly CpuidEntry[]
}

/** A model's CPUID table (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E). Counts of vCPUs are `vcpuCpuid`'s. */
export function modelCpuid({ model, flags, vendor, physBits, brand, supported }: ModelParts): CpuidEntry[] {
  const table = new CpuidTable()
  const amd = isAmdVendor(vendor)
  for (const flag of flags) for (const at of placesOf(flag, amd)) table.setBit(at)
  const features = table.entry(LEAF_FEATURES)
  const extended = table.entry(LEAF_EXTENDED_FEATURES)
  if (amd) extended.edx = (extended.edx | (features.edx & AMD_ALIASES)) >>> 0
  features.eax = signature(model)
  if (amd) extended.eax = features.eax
  // CLFLUSH flushes a line: in units of 8 bytes.
  if (flags.has('clflush')) features.ebx = (LINE / 8) << 8
  const sizes = table.entry(LEAF_SIZES)
  sizes.eax = physBits | ((flags.has('la57') ? 57 : 48) << 8)
  table.entry(0x7).eax = Math.max(...table.entries.filter(e => e.function === 0x7).map(e => e.index))
  addCaches(table, model.caches, { amd, topoext: flags.has('topoext') })
  if (flags.has('xsave')) addXsave(table, flags, supported)
  if (flags.has('amx_tile')) for (const leaf of [0x1d, 0x1e]) copy(table, supported, leaf)
  if (flags.has('svm')) {
    const svm = table.entry(SVM_LEAF)
    svm.eax = 1
    svm.ebx = Math.min(findEntry(supported, SVM_LEAF)?.ebx ?? 0, ASIDS)
  }
  copy(table, supported, 0x40000000)
  addBrand(table, brand)
  addLevels(table, model, vendor)
  return [...table.entries]
}

function copy(table: CpuidTable, from: readonly CpuidEntry[], leaf: number): void {
  for (const { index, ...entry } of from.filter(e => e.function === leaf))
    Object.assign(table.entry(leaf, index), entry)
}

/** Leaf 1 EAX: a family above 15 and a model above 15 overflow into the extended fields. */
function signature({ family, model, stepping }: CpuModel): number {
  const base = Math.min(family, 0xf)
  return stepping | ((model & 0xf) << 4) | (base << 8) | ((model >> 4) << 16) | ((family - base) << 20)
}

function addCaches(
  table: CpuidTable,
  caches: readonly ModelCache[],
  { amd, topoext }: { amd: boolean; topoext: boolean },
) {
  const [data, instruction, second, third] = caches
  const leaf = amd ? LEAF_TOPOEXT_CACHES : 0x4
  if (!amd || topoext) {
    for (const [index, cache] of caches.entries()) {
      const entry = table.entry(leaf, index)
      // Self-initializing; who shares it is told by each vCPU's table.
      entry.eax = CACHE_TYPES[cache.type] | (cache.level << 5) | (1 << 8)
      entry.ebx = ((LINE - 1) | ((cache.ways - 1) << 22)) >>> 0
      entry.ecx = (cache.size * 1024) / (LINE * cache.ways) - 1
    }
    table.entry(leaf, caches.length)
  }
  // "Descriptor 0xff: leaf 4 tells of caches"; AL is always 1.
  if (!amd) table.entry(0x2).eax = 0xff01
  if (amd && topoext) table.entry(LEAF_TOPOEXT)
  const first = table.entry(0x80000005)
  if (amd) {
    first.ecx = ((data!.size << 24) | (data!.ways << 16) | (1 << 8) | LINE) >>> 0
    first.edx = ((instruction!.size << 24) | (instruction!.ways << 16) | (1 << 8) | LINE) >>> 0
  }
  const others = table.entry(0x80000006)
  const lines = amd ? 1 << 8 : 0
  others.ecx = ((second!.size << 16) | (WAYS[second!.ways]! << 12) | lines | LINE) >>> 0
  if (amd) others.edx = (((third!.size / 512) << 18) | (WAYS[third!.ways]! << 12) | lines | LINE) >>> 0
}

const CACHE_TYPES = { data: 1, instruction: 2, unified: 3 } as const

/** Associativity as leaf 0x80000006 codes it. */
const WAYS: Readonly<Record<number, number>> = {
  1: 1,
  2: 2,
  4: 4,
  8: 6,
  16: 8,
  32: 0xa,
  48: 0xb,
  64: 0xc,
  96: 0xd,
  128: 0xe,
}

/** x87 and SSE state, and what the flags have, at the places where the processor puts it. */
function addXsave(table: CpuidTable, flags: ReadonlySet<string>, supported: readonly CpuidEntry[]): void {
  const components = Object.entries(XSAVE_COMPONENTS).flatMap(([flag, bits]) => (flags.has(flag) ? bits : []))
  const main = table.entry(LEAF_XSAVE)
  main.eax = components.reduce((bits, component) => bits | (1 << component), 0b11)
  table.entry(LEAF_XSAVE, 1)
  for (const component of components) {
    const place = findEntry(supported, LEAF_XSAVE, component)
    if (place) Object.assign(table.entry(LEAF_XSAVE, component), place)
  }
  sizeXsaveArea(table.entries)
}

function addBrand(table: CpuidTable, brand: string): void {
  const bytes = Buffer.alloc(48)
  bytes.write(brand, 'latin1')
  for (const i of [0, 1, 2]) {
    const entry = table.entry(0x80000002 + i)
    for (const [j, register] of (['eax', 'ebx', 'ecx', 'edx'] as const).entries()) {
      entry[register] = bytes.readUInt32LE(16 * i + 4 * j)
    }
  }
}

/** The highest leaves: the model's, or those that flags beyond it need. */
function addLevels(table: CpuidTable, model: CpuModel, vendor: string): void {
  const highest = (from: number, to: number) =>
    Math.max(0, ...table.entries.filter(e => e.function >= from && e.function < to && hasBits(e)).map(e => e.function))
  const name = Buffer.from(vendor.padEnd(12, '\0'), 'latin1')
  const basic = table.entry(0)
  const extended = table.entry(0x80000000)
  basic.eax = Math.max(model.level, highest(0, 0x40000000))
  extended.eax = Math.max(model.extendedLevel, highest(0x80000000, 0x80010000))
  for (const entry of isAmdVendor(vendor) ? [basic, extended] : [basic]) {
    entry.ebx = name.readUInt32LE(0)
    entry.edx = name.readUInt32LE(4)
    entry.ecx = name.readUInt32LE(8)
  }
}

function hasBits({ eax, ebx, ecx, edx }: CpuidEntry): boolean {
  return (eax | ebx | ecx | edx) !== 0
}
