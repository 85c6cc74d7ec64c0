import { describe, expect, test } from 'vitest'
import { parseCpuSpec } from '../../../lib/arch/x86_64/cpu-spec.js'
import { machineCpu } from '../../../lib/arch/x86_64/machine-cpu.js'
import { initialMsrs } from '../../../lib/arch/x86_64/msrs.js'
import type { CpuidEntry } from '../../../lib/kvm/structs.js'
import { decodeSvmLeaf } from '../../../lib/nested/svm-capabilities.js'
import { WRITABLE_VMX_MSRS } from '../../../lib/nested/vmx-capabilities.js'
import { AMD, INTEL } from './cpuid-tables.js'

const machine = (cpuid: readonly CpuidEntry[], spec: string) =>
  machineCpu({ cpuid, featureMsrs }, parseCpuSpec(spec)).cpuid
const featureMsrs = [0x8b, 0x10a, ...Array.from({ length: 18 }, (_, i) => 0x480 + i)].map(index => ({
  index,
  value: BigInt(index) << 8n,
}))
const indices = [0x10, 0x3a, 0x174, 0x1a0]

describe('initialMsrs', () => {
  test('with vmx: FEATURE_CONTROL, then what any system gets', () => {
    const msrs = initialMsrs({ indices, cpuid: INTEL })
    expect(msrs).toEqual([
      { index: 0x3a, value: 5n },
      { index: 0x1a0, value: 1n },
      { index: 0x2ff, value: 0x806n },
    ])
  })

  test('without vmx: no FEATURE_CONTROL', () => {
    const withheld = machine(INTEL, 'host,-vmx')
    for (const cpuid of [AMD, withheld]) {
      expect(initialMsrs({ indices, cpuid }).map(msr => msr.index)).toEqual([0x1a0, 0x2ff])
    }
  })

  test('leaves out what this KVM does not have', () => {
    expect(initialMsrs({ indices: [], cpuid: [] })).toEqual([])
    const cpuid = machine(AMD, 'host,-mtrr')
    expect(initialMsrs({ indices: [0x10], cpuid })).toEqual([])
  })
})

test('the writable VMX MSRs are those that are not derived', () => {
  expect(WRITABLE_VMX_MSRS).toHaveLength(12)
  for (const derived of [0x481, 0x482, 0x483, 0x484, 0x487, 0x489]) expect(WRITABLE_VMX_MSRS).not.toContain(derived)
})

test('decodeSvmLeaf', () => {
  expect(decodeSvmLeaf(AMD.find(entry => entry.function === 0x8000000a)!)).toEqual({
    revision: 1,
    asids: 8,
    features: 0x1b45f,
  })
})
