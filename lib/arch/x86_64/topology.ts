import type { CpuidEntry } from '../../kvm/structs.js'
import { type CpuidDraft, findEntry, isAmd } from './cpuid.js'

/** `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the entry counts for this value of ECX only. */
const SIGNIFICANT_INDEX = 1

const LEAF_FEATURES = 0x1
const LEAF_CACHES = 0x4
const LEAF_TOPOLOGY = 0xb
const LEAF_TOPOLOGY_V2 = 0x1f
const LEAF_AMD_FEATURES = 0x80000001
const LEAF_AMD_SIZES = 0x80000008
const LEAF_AMD_CACHES = 0x8000001d
const LEAF_AMD_TOPOLOGY = 0x8000001e

const HTT = 1 << 28
const CMP_LEGACY = 1 << 1

// Level types of leaves 0xb and 0x1f
const LEVEL_SMT = 1
const LEVEL_CORE = 2

/**
 * The CPUID table of one vCPU, made of the machine's: one package of `count` cores with one thread each, whose APIC ids are the vCPU
 * ids (Intel SDM vol. 2A, CPUID, and vol. 3, section 9.9; AMD APM vol. 3, appendix E.5).
 */
export function vcpuCpuid(machine: readonly CpuidEntry[], id: number, count: number): CpuidEntry[] {
  const entries: CpuidDraft[] = machine.map(entry => ({ ...entry }))
  const coreBits = bitsFor(count)
  const amd = isAmd(entries)

  for (const entry of entries) {
    switch (entry.function) {
      case LEAF_FEATURES: {
        const logical = Math.min(2 ** coreBits, 0xff)
        entry.ebx = ((entry.ebx & 0xffff) | ((id & 0xff) << 24) | (logical << 16)) >>> 0
        entry.edx = (count > 1 ? entry.edx | HTT : entry.edx & ~HTT) >>> 0
        break
      }
      case LEAF_CACHES:
        setSharing(entry, count, 2 ** coreBits)
        break
      case LEAF_AMD_FEATURES:
        if (amd) entry.ecx = (count > 1 ? entry.ecx | CMP_LEGACY : entry.ecx & ~CMP_LEGACY) >>> 0
        break
      case LEAF_AMD_SIZES:
        if (amd) entry.ecx = ((entry.ecx & ~0xf0ff) | (coreBits << 12) | Math.min(count - 1, 0xff)) >>> 0
        break
      case LEAF_AMD_CACHES:
        setSharing(entry, count, 1)
        break
      case LEAF_AMD_TOPOLOGY:
        entry.eax = id
        entry.ebx = id & 0xff
        entry.ecx = 0
        break
    }
  }
  return withTopologyLeaves(entries, id, count)
}

/** Leaf 0xb is added where KVM did not report it: it is the one place for an APIC id above 254. */
function withTopologyLeaves(entries: CpuidDraft[], id: number, count: number): CpuidEntry[] {
  const leaves = findEntry(entries, LEAF_TOPOLOGY_V2) ? [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] : [LEAF_TOPOLOGY]
  const kept = entries.filter(entry => !leaves.includes(entry.function))
  const basic = findEntry(kept, 0)
  if (basic) basic.eax = Math.max(basic.eax, LEAF_TOPOLOGY)
  return [...kept, ...leaves.flatMap(leaf => topologyLeaf(leaf, id, count))]
}

function topologyLeaf(leaf: number, id: number, count: number): CpuidEntry[] {
  const level = (index: number, shift: number, processors: number, type: number): CpuidEntry => ({
    function: leaf,
    index,
    flags: SIGNIFICANT_INDEX,
    eax: shift,
    ebx: processors,
    ecx: index | (type << 8),
    edx: id,
  })
  return [level(0, 0, 1, LEVEL_SMT), level(1, bitsFor(count), count, LEVEL_CORE), level(2, 0, 0, 0)]
}

/** First- and second-level caches belong to one core, what comes after to the package. */
function setSharing(entry: CpuidDraft, count: number, coreIds: number): void {
  const type = entry.eax & 0x1f
  if (type === 0) return
  const level = (entry.eax >>> 5) & 7
  const sharing = level >= 3 ? Math.min(2 ** bitsFor(count), 0x1000) : 1
  const cores = Math.min(coreIds, 64)
  entry.eax = ((entry.eax & 0x3fff) | ((sharing - 1) << 14) | ((cores - 1) << 26)) >>> 0
}

/** How many bits it takes to number `count` things. */
function bitsFor(count: number): number {
  return Math.ceil(Math.log2(count))
}
