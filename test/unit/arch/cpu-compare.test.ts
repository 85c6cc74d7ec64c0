import { describe, expect, test } from 'vitest'
import { ARCH_CAPABILITIES } from '../../../lib/arch/x86_64/arch-capabilities.js'
import { cpuBaseline, diffCpus, factsOfHost, factsOfModel, missingOf } from '../../../lib/arch/x86_64/cpu-compare.js'
import { CPU_DUMP_SCHEMA, parseCpuDump } from '../../../lib/arch/x86_64/cpu-dump.js'
import type { CpuHost } from '../../../lib/arch/x86_64/cpu-host.js'
import { parseCpuSpec } from '../../../lib/arch/x86_64/cpu-spec.js'
import { clearFlag } from '../../../lib/arch/x86_64/cpuid.js'
import { machineCpu } from '../../../lib/arch/x86_64/machine-cpu.js'
import { ConfigError } from '../../../lib/errors.js'
import { everything } from './synthetic-kvm.js'

/** A host that can give all but these. */
function hostWithout(flags: string, vendor: 'GenuineIntel' | 'AuthenticAMD' = 'GenuineIntel'): CpuHost {
  const { cpuid, featureMsrs } = everything(vendor)
  const entries = cpuid.map(entry => ({ ...entry }))
  for (const flag of flags.split(' ')) clearFlag(entries, flag)
  return { cpuid: entries, featureMsrs, tscDeadlineTimer: true }
}

const skylake = hostWithout('avx512_vnni amx_tile amx_bf16 amx_int8 serialize')
const withoutTsx = hostWithout('hle rtm la57')
const zen = hostWithout('vnmi', 'AuthenticAMD')
const facts = (spec: string) => factsOfModel(parseCpuSpec(spec))

describe('cpuBaseline', () => {
  test('one host: the largest model that it can give', () => {
    expect(cpuBaseline([skylake])).toMatchObject({ model: 'Skylake-Server' })
    expect(cpuBaseline([hostWithout('mwaitx')])).toMatchObject({ model: 'SapphireRapids', cpu: 'SapphireRapids' })
    expect(cpuBaseline([zen])).toMatchObject({ model: 'EPYC-Genoa' })
  })

  test('several: what all can give, and what flags withheld would add', () => {
    const { model, cpu, flags, missing } = cpuBaseline([skylake, withoutTsx])
    expect(model).toBe('IvyBridge')
    expect(missing.Haswell).toEqual(['hle', 'rtm'])
    expect(missing['Cascadelake-Server']).toEqual(['avx512_vnni', 'hle', 'rtm'])
    expect(missing.EPYC).toContain('vendor-AuthenticAMD')
    expect(missing.IvyBridge).toBeUndefined()
    expect(cpu).toMatch(/^SapphireRapids,/)
    for (const host of [skylake, withoutTsx]) expect(missingOf(host, parseCpuSpec(cpu!))).toEqual([])
    expect(flags).toContain('avx512f')
    for (const flag of ['hle', 'serialize', 'la57']) expect(flags).not.toContain(flag)
  })

  test('of both makers: a generic one', () => {
    expect(cpuBaseline([skylake, zen])).toMatchObject({ model: 'kvm64' })
  })

  test('KVM’s own features and the width of addresses are evened out', () => {
    const old = hostWithout('kvm-asyncpf-int')
    const narrow = {
      ...old,
      cpuid: old.cpuid.map(e => (e.function === 0x80000008 ? { ...e, eax: 39 | (57 << 8) } : e)),
    }
    expect(cpuBaseline([skylake, narrow]).cpu).toMatch(/-kvm-asyncpf-int,phys-bits=39$/)
  })

  test('none where a host cannot give the least', () => {
    expect(cpuBaseline([hostWithout('pni')])).toMatchObject({ model: null, missing: { kvm64: ['pni'] } })
    expect(() => cpuBaseline([])).toThrow(ConfigError)
  })
})

describe('what vmx offers', () => {
  const spec = parseCpuSpec('Haswell,+vmx,-vmx-ept')
  const capabilities = skylake.featureMsrs.find(({ index }) => index === ARCH_CAPABILITIES)!
  const cut = machineCpu(skylake, parseCpuSpec('host,-vmx-ept')).vmxMsrs!
  const shadow = { ...skylake, featureMsrs: [capabilities, ...cut] }

  test('is the model’s, and nothing without vmx', () => {
    expect(factsOfModel(spec).vmx).toContain('vmx-vpid')
    expect(factsOfModel(spec).vmx).toContain('vmx-invpcid-exit')
    expect(factsOfModel(spec).vmx).not.toContain('vmx-eptad')
    expect(factsOfModel(spec).vmx).not.toContain('vmx-tsc-scaling')
    expect(facts('Haswell,+vmx,+vmx-tsc-scaling,-invpcid').vmx).toContain('vmx-tsc-scaling')
    expect(facts('Haswell,+vmx,+vmx-tsc-scaling,-invpcid').vmx).not.toContain('vmx-invpcid-exit')
    expect(facts('Haswell').vmx).toEqual([])
    expect(() => facts('Haswell,+vmx-pml')).toThrow('vmx-pml cannot be had without vmx; add +vmx')
    expect(() => facts('Nehalem,+vmx,+vmx-pml')).toThrow('vmx-pml cannot be had without vmx-eptad')
    expect(factsOfHost(skylake, spec).vmx).toEqual(factsOfModel(spec).vmx)
    expect(factsOfHost(skylake).vmx).toContain('vmx-pml')
    expect(factsOfHost(skylake, parseCpuSpec('host,-vmx-ept')).vmx).not.toContain('vmx-pml')
    expect(factsOfHost(zen).vmx).toEqual([])
  })

  test('is the host’s with qemu64', () => {
    const generic = parseCpuSpec('qemu64,+vmx,+vmx-pml')
    expect(factsOfModel(generic).vmx).toBeNull()
    expect(factsOfModel(generic, skylake).vmx).toContain('vmx-pml')
    expect(factsOfModel(generic, zen).vmx).toEqual(['vmx-pml'])
    expect(factsOfModel(parseCpuSpec('qemu64,+vmx'), shadow).vmx).not.toContain('vmx-ept')
    expect(factsOfModel(parseCpuSpec('qemu64,+vmx'), shadow).vmx).toContain('vmx-vpid')
  })

  test('is told apart, where it is known of both', () => {
    const { onlyA, onlyB } = diffCpus(factsOfHost(skylake), factsOfHost(shadow))
    expect(onlyA).toEqual(expect.arrayContaining(['vmx-ept', 'vmx-pml']))
    expect(onlyB).toEqual([])
    const models = diffCpus(facts('Haswell,+vmx'), facts('Broadwell,+vmx'))
    expect(models.onlyB.filter(name => name.startsWith('vmx-'))).toEqual(['vmx-rdseed-exit', 'vmx-pml'])
    const unknown = diffCpus(facts('qemu64,+vmx'), factsOfHost(skylake))
    expect(unknown.onlyB.filter(name => name.startsWith('vmx-'))).toEqual([])
  })

  test('is in the baseline what all of the hosts offer', () => {
    const { vmx } = cpuBaseline([skylake, shadow])
    expect(vmx).toContain('vmx-vpid')
    expect(vmx).not.toContain('vmx-ept')
    expect(cpuBaseline([skylake]).vmx).toContain('vmx-ept')
    expect(cpuBaseline([zen]).vmx).toEqual([])
  })

  test('is withheld in the baseline where some host lacks it', () => {
    const { nested, cpu } = cpuBaseline([skylake, shadow])
    expect(nested).toMatch(/^SapphireRapids,\+vmx,/)
    expect(nested).toContain(',-vmx-ept')
    // What needs EPT is not named again.
    expect(nested).not.toMatch(/-vmx-(pml|invept|eptad)/)
    expect(cpu).not.toContain('vmx')
    const [one, other] = [skylake, shadow].map(host => machineCpu(host, parseCpuSpec(nested!)))
    expect(one!.vmxMsrs).toEqual(other!.vmxMsrs)
    expect(one!.cpuid).toEqual(other!.cpuid)
    expect([...one!.missing, ...other!.missing]).toEqual([])
  })

  test('is in no baseline where not all hosts nest, or not in one way', () => {
    expect(cpuBaseline([skylake, hostWithout('vmx')]).nested).toBeNull()
    expect(cpuBaseline([skylake, zen]).nested).toBeNull()
    expect(cpuBaseline([zen]).nested).toMatch(/^EPYC-Genoa,\+svm,-vnmi/)
    const old = { ...skylake, featureMsrs: [] }
    expect(cpuBaseline([skylake, old]).nested).toBeNull()
  })

  test('a host that has on always what models lack keeps them from nesting there', () => {
    const always = {
      ...skylake,
      featureMsrs: skylake.featureMsrs.map(m => (m.index === 0x48e ? { ...m, value: m.value | (1n << 17n) } : m)),
    }
    expect(cpuBaseline([always])).toMatchObject({ nested: null, cpu: expect.stringContaining('SapphireRapids') })
  })
})

describe('diffCpus', () => {
  test('names what each has, and whose it is', () => {
    const { onlyA, onlyB, fields } = diffCpus(facts('Haswell,-rtm'), facts('Broadwell'))
    expect(onlyA).toEqual([])
    expect(onlyB).toEqual(['rtm', 'rdseed', 'adx', 'smap', '3dnowprefetch'])
    expect(fields).toContainEqual({ field: 'model', a: 60, b: 61 })
    expect(diffCpus(facts('EPYC'), facts('EPYC'))).toEqual({ onlyA: [], onlyB: [], fields: [] })
  })

  test('a model’s facts are those that a guest of it sees', () => {
    const host = factsOfHost({ ...zen }, parseCpuSpec('EPYC-Milan'))
    const { onlyA, onlyB, fields } = diffCpus(host, facts('EPYC-Milan'))
    expect(onlyA.filter(flag => !flag.startsWith('kvm'))).toEqual(['x2apic', 'hypervisor'])
    expect(onlyB).toEqual([])
    expect(fields).toEqual([])
    expect(facts('EPYC').flags).not.toContain('npt')
    expect(facts('EPYC,+svm').flags).toContain('npt')
    expect(() => factsOfModel(parseCpuSpec('host'))).toThrow(ConfigError)
  })
})

describe('parseCpuDump', () => {
  const row = { leaf: '0x1', index: 0, flags: 0, eax: '0x1', ebx: '0xffffffff', ecx: '0x0', edx: '0x0' }
  const dump = {
    schema: CPU_DUMP_SCHEMA,
    tscDeadlineTimer: true,
    cpuid: [row],
    featureMsrs: { '0x10a': '0x4000000000000001' },
  }
  const parse = (value: unknown) => parseCpuDump(typeof value === 'string' ? value : JSON.stringify(value), 'a.json')

  test('reads what was dumped', () => {
    expect(parse(dump)).toEqual({
      cpuid: [{ function: 1, index: 0, flags: 0, eax: 1, ebx: 0xffffffff, ecx: 0, edx: 0 }],
      featureMsrs: [{ index: 0x10a, value: 0x4000000000000001n }],
      tscDeadlineTimer: true,
    })
  })

  test.each([
    ['no JSON', '{', 'it is no CPU dump'],
    ['a list', [], 'it is no CPU dump'],
    ['something else', { name: 'x' }, 'it is no CPU dump'],
    ['a newer one', { ...dump, schema: 2, cpuid: 'new' }, 'schema 2, from a newer nested-kvm; this one reads 1'],
    ['an odd schema', { ...dump, schema: '1' }, 'its schema is unknown'],
    ['no table', { ...dump, cpuid: [] }, 'it has no table cpuid'],
    ['a table without end', { ...dump, cpuid: Array(5000).fill(row) }, 'it has no table cpuid'],
    ['a row that is none', { ...dump, cpuid: [null] }, 'cpuid[0] is no object'],
    ['a register that is none', { ...dump, cpuid: [{ ...row, ecx: '0x123456789' }] }, 'cpuid[0].ecx is no hexadecimal'],
    ['an index that is none', { ...dump, cpuid: [{ ...row, index: -1 }] }, 'cpuid[0].index is no 32-bit number'],
    ['no MSRs', { ...dump, featureMsrs: [] }, 'it has no featureMsrs'],
    ['an MSR that is none', { ...dump, featureMsrs: { x: '0x1' } }, 'an MSR is no hexadecimal'],
    ['a value that is none', { ...dump, featureMsrs: { '0x1': 7 } }, 'featureMsrs.0x1 is no hexadecimal'],
    ['no timer', { ...dump, tscDeadlineTimer: 1 }, 'tscDeadlineTimer is no boolean'],
  ])('%s is refused', (_what, value, problem) => {
    expect(() => parse(value)).toThrow(ConfigError)
    expect(() => parse(value)).toThrow(problem)
  })
})
