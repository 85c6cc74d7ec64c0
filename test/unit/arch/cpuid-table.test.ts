import { expect, test } from 'vitest'
import { CpuidTable } from '../../../lib/arch/x86_64/cpuid-table.js'
import { ConfigError } from '../../../lib/errors.js'
import { AMD, INTEL } from './cpuid-tables.js'

test('is a copy', () => {
  const before = structuredClone(INTEL)
  const table = new CpuidTable(INTEL)
  table.remove('avx')
  table.entry(0).eax = 1
  expect(INTEL).toEqual(before)
  expect(new CpuidTable().entries).toEqual([])
})

test('flags by name, also QEMU’s', () => {
  const table = new CpuidTable(INTEL)
  expect(table.has('sse4.1')).toBe(true)
  expect(table.has('hypervisor')).toBe(false)
  table.add('hypervisor')
  expect(table.flags).toContain('hypervisor')
  for (const name of ['nonsense', 'avx3']) expect(() => table.has(name)).toThrow(ConfigError)
  expect(() => table.add('avx521f')).toThrow('did you mean avx512f?')
})

test('removing takes along what depends on it, and sizes the XSAVE area anew', () => {
  const table = new CpuidTable(INTEL)
  table.remove('pku')
  expect(table.entry(0xd).ecx).toBe(0xa80)
  table.remove('avx512f')
  expect(table.entry(0xd)).toMatchObject({ eax: 7, ebx: 832, ecx: 832 })
  expect(table.has('avx512bw')).toBe(false)
  expect(table.has('avx2')).toBe(true)
})

test('a flag is added where the maker has it, with AMD’s copy', () => {
  const intel = new CpuidTable(INTEL)
  intel.setBit({ leaf: 7, index: 0, register: 'edx', bit: 27 }, false)
  intel.add('stibp')
  expect(intel.bit({ leaf: 7, index: 0, register: 'edx', bit: 27 })).toBe(true)
  expect(intel.entry(0x80000008).ebx).toBe(0)
  const amd = new CpuidTable(AMD)
  amd.remove('pse36')
  expect((amd.entry(0x80000001).edx >>> 17) & 1).toBe(0)
  amd.add('pse36')
  expect((amd.entry(0x80000001).edx >>> 17) & 1).toBe(1)
  amd.entry(0x80000008).ebx = 0
  amd.add('stibp')
  expect(amd.entry(0x80000008).ebx).toBe(1 << 15)
  expect(amd.entry(7).edx).toBe(0)
})

test('leaves, registers and bits', () => {
  const table = new CpuidTable()
  table.entry(0x40000000).ebx = 0x4b4d564b
  table.setBit({ leaf: 7, index: 1, register: 'eax', bit: 31 })
  table.setBit({ leaf: 7, index: 1, register: 'eax', bit: 4 })
  expect(table.entries).toEqual([
    { function: 0x40000000, index: 0, flags: 0, eax: 0, ebx: 0x4b4d564b, ecx: 0, edx: 0 },
    { function: 7, index: 1, flags: 1, eax: 0x80000010, ebx: 0, ecx: 0, edx: 0 },
  ])
  table.setBit({ leaf: 7, index: 1, register: 'eax', bit: 31 }, false)
  expect(table.entry(7, 1).eax).toBe(0x10)
  expect(() => table.setBit({ leaf: 7, index: 0, register: 'eax', bit: 32 })).toThrow('give a number from 0 to 31')
})

test('says what does not fit, and makes each vCPU’s own', () => {
  const table = new CpuidTable(INTEL)
  table.add('hypervisor')
  expect(table.check()).toEqual([])
  table.add('amx_tile')
  expect(table.check()).toContainEqual({
    invariant: 'xsave',
    problem: 'leaf 0xd.0 eax lacks component 17, and amx_tile is set',
  })
  table.remove('amx_tile')
  expect(new CpuidTable(table.forVcpu(2, 4)).check()).toEqual([])
  expect(new CpuidTable(table.forVcpu(2, 4)).entry(0xb, 1)).toMatchObject({ ebx: 4, edx: 2 })
})
