import { describe, expect, test } from 'vitest'
import { parseCpuSpec } from '../../../lib/arch/x86_64/cpu-spec.js'
import { type CpuidDraft, findEntry } from '../../../lib/arch/x86_64/cpuid.js'
import { checkCpuid, type Invariant } from '../../../lib/arch/x86_64/cpuid-check.js'
import { machineCpu } from '../../../lib/arch/x86_64/machine-cpu.js'
import { vcpuCpuid } from '../../../lib/arch/x86_64/topology.js'
import { everything } from './synthetic-kvm.js'

type Change = (at: (leaf: number, index?: number) => CpuidDraft, table: CpuidDraft[]) => void

const hosts = { 'SapphireRapids,+vmx': everything('GenuineIntel'), 'EPYC-Genoa,+svm': everything('AuthenticAMD') }

function changed(spec: keyof typeof hosts, change: Change): CpuidDraft[] {
  const { cpuid } = machineCpu(hosts[spec], parseCpuSpec(spec), { tscDeadlineTimer: true })
  const table: CpuidDraft[] = vcpuCpuid(cpuid, 1, 4).map(entry => ({ ...entry }))
  change((leaf, index) => findEntry(table, leaf, index)!, table)
  return table
}

describe('checkCpuid', () => {
  test('a table that is consistent breaks nothing', () => {
    for (const spec of ['SapphireRapids,+vmx', 'EPYC-Genoa,+svm'] as const) {
      expect(checkCpuid(changed(spec, () => {}))).toEqual([])
    }
    expect(checkCpuid([])).toEqual([])
  })

  const intel: readonly [Invariant, string, Change][] = [
    ['entries', 'leaf 0x1.0 stands twice', (at, table) => table.push({ ...at(1) })],
    ['entries', 'leaf 0x1.0 eax is -1', at => Object.assign(at(1), { eax: -1 })],
    ['levels', 'leaf 0x1e tells of something', at => Object.assign(at(0), { eax: 0x1d })],
    ['levels', 'leaf 0x80000008 tells of something', at => Object.assign(at(0x80000000), { eax: 0x80000007 })],
    ['levels', 'leaf 0x40000001 tells of something', at => Object.assign(at(0x40000000), { eax: 0x40000000 })],
    ['subleaves', '0x7.0 eax says 0', at => Object.assign(at(7), { eax: 0 })],
    ['flags', 'avx is set without xsave', at => clear(at(1), 'ecx', 26)],
    ['flags', 'svm is set on a processor of GenuineIntel', at => set(at(0x80000001), 'ecx', 2)],
    ['xsave', 'is filled in without xsave', at => clear(at(1), 'ecx', 26)],
    ['xsave', 'lacks x87 or SSE', at => clear(at(0xd), 'eax', 0)],
    ['xsave', 'lacks component 6, and avx512f is set', at => clear(at(0xd), 'eax', 6)],
    ['xsave', 'has component 3, and mpx is not set', at => set(at(0xd), 'eax', 3)],
    ['xsave', 'ecx is 4096, and the components need 11008', at => Object.assign(at(0xd), { ecx: 4096 })],
    ['xsave', 'ebx is 12000, outside 576 to ecx', at => Object.assign(at(0xd), { ebx: 12000 })],
    ['xsave', 'component 5 at 600 begins before 832', at => Object.assign(at(0xd, 5), { ebx: 600 })],
    ['xsave', 'component 9 has no size', at => Object.assign(at(0xd, 9), { eax: 0 })],
    ['xsave', 'supervisor state without xsaves', at => Object.assign(at(0xd, 1), { eax: 7, ecx: 256 })],
    ['widths', '20 physical bits', at => Object.assign(at(0x80000008), { eax: 0x3914 })],
    ['widths', '48 linear bits, and la57 is set', at => Object.assign(at(0x80000008), { eax: 0x3028 })],
    ['clflush', 'a line of no size', at => clearByte(at(1), 8)],
    ['brand', 'does not end', at => fill(at, 0x41414141)],
    ['brand', 'is no text', at => Object.assign(at(0x80000002), { eax: 0x01010101 })],
    ['hypervisor', 'without the hypervisor bit', at => clear(at(1), 'ecx', 31)],
    ['hypervisor', 'without a signature', at => Object.assign(at(0x40000000), { ebx: 0, ecx: 0, edx: 0 })],
    ['topology', 'different APIC ids', at => Object.assign(at(0xb, 1), { edx: 3 })],
    ['topology', 'do not grow', at => Object.assign(at(0xb, 0), { eax: 5 })],
    ['topology', 'leaf 0xb has 1 bits for APIC id 1 of 4', at => Object.assign(at(0xb, 1), { eax: 1 })],
    ['topology', 'leaf 0x1 has the APIC id 0, leaf 0xb 1', at => clearByte(at(1), 24)],
    ['topology', 'leaf 0x1 has room for 0 vCPUs', at => clearByte(at(1), 16)],
    ['topology', 'ht is not set with 4 vCPUs', at => clear(at(1), 'edx', 28)],
    [
      'topology',
      'leaf 0x1f is not what leaf 0xb is',
      (at, table) => table.push({ ...at(0xb), function: 0x1f, edx: 7 }),
    ],
    ['caches', 'one before it is not', at => Object.assign(at(4, 1), { eax: 0 })],
    ['caches', 'nearer to the core', at => Object.assign(at(4, 3), { eax: 0x121 })],
    ['caches', 'shared by 4096 APIC ids of 4', at => Object.assign(at(4, 3), { eax: 0x3ffc163 })],
    [
      'caches',
      'leaf 0x80000006 ecx tells of 1024 KiB, leaf 0x4 of 4096',
      at => Object.assign(at(0x80000006), { ecx: 0x4008040 }),
    ],
  ]
  test.each(intel)('Intel: %s: %s', (invariant, problem, change) => {
    const problems = checkCpuid(changed('SapphireRapids,+vmx', change))
    expect(problems).toContainEqual({ invariant, problem: expect.stringContaining(problem) })
  })

  const amd: readonly [Invariant, string, Change][] = [
    ['copies', 'another maker', at => Object.assign(at(0x80000000), { ebx: 0 })],
    ['copies', 'leaf 0x80000001 eax is 0x0', at => Object.assign(at(0x80000001), { eax: 0 })],
    ['copies', 'in the bits 0x1', at => clear(at(0x80000001), 'edx', 0)],
    ['flags', 'vmx is set on a processor of AuthenticAMD', at => set(at(1), 'ecx', 5)],
    ['svm', 'has no revision', at => Object.assign(at(0x8000000a), { eax: 0 })],
    ['svm', 'filled in without svm', at => clear(at(0x80000001), 'ecx', 2)],
    ['topology', 'leaf 0x80000008 counts 1 vCPUs, leaf 0xb 4', at => Object.assign(at(0x80000008), { ecx: 0x2000 })],
    ['topology', 'leaf 0x80000008 has 0 bits', at => Object.assign(at(0x80000008), { ecx: 3 })],
    ['topology', 'cmp_legacy does not fit 4', at => clear(at(0x80000001), 'ecx', 1)],
    ['topology', 'leaf 0x8000001e has the APIC id 9', at => Object.assign(at(0x8000001e), { eax: 9 })],
    ['caches', 'leaf 0x80000005 ecx tells of 64 KiB', at => Object.assign(at(0x80000005), { ecx: 0x40080140 })],
  ]
  test.each(amd)('AMD: %s: %s', (invariant, problem, change) => {
    const problems = checkCpuid(changed('EPYC-Genoa,+svm', change))
    expect(problems).toContainEqual({ invariant, problem: expect.stringContaining(problem) })
  })
})

type Register = 'eax' | 'ebx' | 'ecx' | 'edx'

function set(entry: CpuidDraft, register: Register, bit: number): void {
  entry[register] = (entry[register] | (1 << bit)) >>> 0
}

function clear(entry: CpuidDraft, register: Register, bit: number): void {
  entry[register] = (entry[register] & ~(1 << bit)) >>> 0
}

function clearByte(entry: CpuidDraft, bit: number): void {
  entry.ebx = (entry.ebx & ~(0xff << bit)) >>> 0
}

function fill(at: (leaf: number) => CpuidDraft, value: number): void {
  for (const leaf of [0x80000002, 0x80000003, 0x80000004]) {
    Object.assign(at(leaf), { eax: value, ebx: value, ecx: value, edx: value })
  }
}
