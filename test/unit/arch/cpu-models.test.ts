import { describe, expect, test } from 'vitest'
import { CPU_FLAGS } from '../../../lib/arch/x86_64/cpu-flags.js'
import { CPU_MODELS, findCpuModel } from '../../../lib/arch/x86_64/cpu-models/models.js'
import { flagNamed } from '../../../lib/arch/x86_64/cpu-names.js'
import { parseCpuSpec, VENDOR_FLAGS } from '../../../lib/arch/x86_64/cpu-spec.js'
import { findEntry, flagsOf, vendorOf } from '../../../lib/arch/x86_64/cpuid.js'
import { checkCpuid } from '../../../lib/arch/x86_64/cpuid-check.js'
import { machineCpu } from '../../../lib/arch/x86_64/machine-cpu.js'
import { initialMsrs } from '../../../lib/arch/x86_64/msrs.js'
import { vcpuCpuid } from '../../../lib/arch/x86_64/topology.js'
import { ConfigError } from '../../../lib/errors.js'
import { INTEL } from './cpuid-tables.js'
import { everything } from './synthetic-kvm.js'

const intel = everything('GenuineIntel')
const amd = everything('AuthenticAMD')
const hostOf = (name: string) => (findCpuModel(name)?.vendor === 'AuthenticAMD' ? amd : intel)
const options = { tscDeadlineTimer: true }
const cpuOf = (spec: string, host = hostOf(spec.split(',')[0]!)) => machineCpu(host, parseCpuSpec(spec), options)
const names = CPU_MODELS.map(({ name }) => name)

describe('the models', () => {
  test('are those that were promised', () => {
    expect(names.join(' ')).toBe(
      'qemu64 kvm64 Nehalem Westmere SandyBridge IvyBridge Haswell Broadwell Skylake-Client Skylake-Server ' +
        'Cascadelake-Server Icelake-Server SapphireRapids Opteron_G3 EPYC EPYC-Rome EPYC-Milan EPYC-Genoa',
    )
  })

  test.each(CPU_MODELS)('$name: its flags have known names, stand once, and are its maker’s', model => {
    expect(model.flags.filter(flag => !CPU_FLAGS.has(flag))).toEqual([])
    expect(new Set(model.flags).size).toBe(model.flags.length)
    const foreign = model.flags.filter(flag => (VENDOR_FLAGS.get(flag) ?? model.vendor) !== model.vendor)
    expect(foreign).toEqual(model.name === 'qemu64' ? ['svm'] : [])
    expect(model.brand.length).toBeLessThan(48)
    expect(model.source).toContain(`${model.name}-v1`)
  })

  // Counted in QEMU's answer to query-cpu-model-expansion (7.2) and, for SapphireRapids and EPYC-Genoa, in its source.
  test.each([
    ['qemu64', 28],
    ['kvm64', 27],
    ['Nehalem', 32],
    ['Westmere', 35],
    ['SandyBridge', 41],
    ['IvyBridge', 46],
    ['Haswell', 56],
    ['Broadwell', 60],
    ['Skylake-Client', 62],
    ['Skylake-Server', 71],
    ['Cascadelake-Server', 75],
    ['Icelake-Server', 85],
    ['SapphireRapids', 104],
    ['Opteron_G3', 35],
    ['EPYC', 69],
    ['EPYC-Rome', 79],
    ['EPYC-Milan', 87],
    ['EPYC-Genoa', 110],
  ])('%s has %i flags', (name, count) => expect(findCpuModel(name)!.flags).toHaveLength(count))
})

describe('a model on a host that can give it', () => {
  test.each(names)('%s is consistent, with one vCPU and with many', name => {
    const { cpuid, missing } = cpuOf(name)
    expect(missing).toEqual([])
    expect(checkCpuid(cpuid)).toEqual([])
    for (const [id, count] of [
      [0, 1],
      [2, 3],
      [15, 16],
      [299, 300],
    ] as const) {
      expect(checkCpuid(vcpuCpuid(cpuid, id, count))).toEqual([])
    }
  })

  test.each(names)('%s shows its flags, KVM’s additions, and no other', name => {
    const model = findCpuModel(name)!
    const shown = new Set(flagsOf(cpuOf(name).cpuid))
    const nested = ['svm', 'monitor', 'npt', 'nrip_save', 'svme_addr_chk', 'vnmi']
    const wanted = model.flags.filter(flag => !nested.includes(flag))
    expect(wanted.filter(flag => !shown.has(flag))).toEqual([])
    for (const flag of [...wanted, 'hypervisor', 'x2apic']) shown.delete(flag)
    expect([...shown].filter(flag => !flag.startsWith('kvm')).sort()).toEqual([])
  })

  test.each(names)('%s with nesting is consistent as well', name => {
    const extension = hostOf(name) === amd ? '+svm' : '+vmx'
    const { cpuid } = cpuOf(`${name},${extension}`)
    expect(flagsOf(cpuid)).toContain(extension.slice(1))
    expect(checkCpuid(vcpuCpuid(cpuid, 0, 2))).toEqual([])
  })

  test('SandyBridge is who QEMU says it is', () => {
    const { cpuid } = cpuOf('SandyBridge')
    expect(vendorOf(cpuid)).toBe('GenuineIntel')
    expect(findEntry(cpuid, 0)!.eax).toBe(0xd)
    expect(findEntry(cpuid, 1)).toMatchObject({ eax: 0x206a1, ebx: 0x800 })
    expect(findEntry(cpuid, 4, 3)).toMatchObject({ eax: 0x163, ebx: 0x3c0003f, ecx: 0x3fff })
    expect(findEntry(cpuid, 0xd)).toMatchObject({ eax: 7, ebx: 832, ecx: 832 })
    expect(findEntry(cpuid, 0x80000000)!.eax).toBe(0x80000008)
    expect(findEntry(cpuid, 0x80000008)!.eax).toBe(0x3028)
    const brand = [2, 3, 4].map(i => findEntry(cpuid, 0x80000000 + i)!)
    const words = brand.flatMap(({ eax, ebx, ecx, edx }) => [eax, ebx, ecx, edx])
    expect(Buffer.from(Uint32Array.from(words).buffer).toString('latin1').replace(/\0+$/, '')).toBe(
      'Intel Xeon E312xx (Sandy Bridge)',
    )
  })

  test('EPYC-Milan has AMD’s leaves, and its family overflows into the extended one', () => {
    const { cpuid } = cpuOf('EPYC-Milan,+svm')
    expect(findEntry(cpuid, 1)!.eax).toBe(0xa00f11)
    expect(findEntry(cpuid, 0x80000001)!.eax).toBe(0xa00f11)
    expect(findEntry(cpuid, 0x8000000a)).toMatchObject({ eax: 1, ebx: 16, edx: 0x10000009 })
    expect(findEntry(cpuid, 0x80000005)).toMatchObject({ ecx: 0x20080140, edx: 0x20080140 })
    expect(findEntry(cpuid, 0x80000006)).toMatchObject({ ecx: 0x2006140, edx: 0x1008140 })
    expect(findEntry(cpuid, 0x8000001d, 3)!.ecx).toBe(0x7fff)
    expect(cpuid.some(entry => entry.function === 4)).toBe(false)
  })

  test('speculation control is told of where the maker has it', () => {
    expect(findEntry(cpuOf('EPYC-Rome').cpuid, 7)!.edx).toBe(0)
    expect(findEntry(cpuOf('EPYC-Rome').cpuid, 0x80000008)!.ebx).toBe(0x9205)
    expect(findEntry(cpuOf('Cascadelake-Server').cpuid, 7)!.edx).toBe(0x84000000)
    expect(findEntry(cpuOf('Cascadelake-Server').cpuid, 0x80000008)!.ebx).toBe(0)
  })

  test('generic models have the maker of the host, and so either extension', () => {
    expect(vendorOf(cpuOf('qemu64', amd).cpuid)).toBe('AuthenticAMD')
    expect(flagsOf(cpuOf('qemu64,+svm', amd).cpuid)).toContain('svm')
    expect(flagsOf(cpuOf('qemu64,+vmx', intel).cpuid)).toContain('vmx')
    expect(() => cpuOf('qemu64,+svm', intel)).toThrow('this host has vmx, not svm')
  })

  test('a flag beyond the model raises its highest leaf', () => {
    const { cpuid } = cpuOf('Opteron_G3,+smep,+xsave,+avx')
    expect(findEntry(cpuid, 0)!.eax).toBe(0xd)
    expect(findEntry(cpuid, 0xd)!.eax).toBe(7)
    expect(checkCpuid(cpuid)).toEqual([])
    expect(() => cpuOf('kvm64,+avx2')).toThrow('avx2 cannot be had without avx; add +avx, or leave out +avx2')
  })

  test('settings: the brand string, the width of addresses', () => {
    const { cpuid } = cpuOf('kvm64,model-id=Mine,phys-bits=46')
    expect(findEntry(cpuid, 0x80000002)!.eax).toBe(Buffer.from('Mine').readUInt32LE())
    expect(findEntry(cpuid, 0x80000008)!.eax & 0xff).toBe(46)
    expect(findEntry(cpuOf('host,phys-bits=40').cpuid, 0x80000008)!.eax & 0xff).toBe(40)
  })
})

describe('a model on a host that lacks some of it', () => {
  const host = { cpuid: INTEL, featureMsrs: [] }

  test('enforce names all that is missing, and what to do', () => {
    expect(() => cpuOf('SapphireRapids', host)).toThrow(ConfigError)
    expect(() => cpuOf('SapphireRapids', host)).toThrow(
      /does not offer arat, hle, .*amx_tile, .*taa-no to guests; go without \(SapphireRapids,check\)/,
    )
    const less = INTEL.map(entry => (entry.function === 1 ? { ...entry, ecx: entry.ecx & ~1 } : entry))
    const problem = 'does not offer pni to guests; withhold them (kvm64,-pni), go without (kvm64,check)'
    expect(() => cpuOf('kvm64', { cpuid: less, featureMsrs: [] })).toThrow(problem)
  })

  test('check goes without it, and without what depends on it', () => {
    const less = INTEL.map(entry => (entry.function === 1 ? { ...entry, ecx: entry.ecx & ~(1 << 28) } : entry))
    const { cpuid, missing } = cpuOf('Skylake-Server,check', { cpuid: less, featureMsrs: [] })
    expect(missing).toEqual(expect.arrayContaining(['avx']))
    const flags = flagsOf(cpuid)
    for (const flag of ['avx', 'avx2', 'avx512f', 'fma']) expect(flags).not.toContain(flag)
    expect(flags).toContain('xsave')
    expect(checkCpuid(vcpuCpuid(cpuid, 1, 4))).toEqual([])
  })

  test('another maker’s model is missing its maker', () => {
    const { cpuid, missing } = cpuOf('EPYC,check', host)
    expect(missing).toContain('vendor-AuthenticAMD')
    expect(vendorOf(cpuid)).toBe('GenuineIntel')
    expect(() => cpuOf('EPYC', host)).toThrow('vendor-AuthenticAMD')
  })

  test('AMX without its state, as KVM reports it to a process that has not asked for that, is not offered', () => {
    const cpuid = intel.cpuid.map(e =>
      e.function === 0xd && e.index === 0 ? { ...e, eax: 0x2ff, ebx: 2696, ecx: 2696 } : e,
    )
    const withoutState = { ...intel, cpuid }
    expect(cpuOf('SapphireRapids,check', withoutState).missing).toEqual(['amx_bf16', 'amx_tile', 'amx_int8'])
    const { cpuid: table } = cpuOf('host', withoutState)
    expect(flagsOf(table)).not.toContain('amx_tile')
    expect(checkCpuid(vcpuCpuid(table, 0, 2))).toEqual([])
  })

  test('wider addresses than the host’s', () => {
    expect(() => cpuOf('host,phys-bits=48', host)).toThrow('does not offer phys-bits-48')
    expect(cpuOf('kvm64,phys-bits=48,check', host).missing).toContain('phys-bits-48')
  })

  test('withheld flags are not missed', () => {
    expect(() => cpuOf('Haswell', { cpuid: INTEL, featureMsrs: [] })).toThrow(
      'does not offer arat, hle, rtm to guests; withhold them (Haswell,-arat,-hle,-rtm)',
    )
    expect(cpuOf('Haswell,-arat,-hle,rtm=off', host).missing).toEqual([])
  })
})

describe('MSRs that go with features', () => {
  const msrsOf = (spec: string) => {
    const { cpuid, archCapabilities } = machineCpu(intel, parseCpuSpec(spec), options)
    return new Map(initialMsrs({ indices: [0x10a], cpuid, archCapabilities }).map(m => [m.index, m.value]))
  }

  test('IA32_ARCH_CAPABILITIES is the model’s, and nobody’s who lacks the flag', () => {
    // rdctl-no, ibrs-all, skip-l1dfl-vmentry, mds-no, pschange-mc-no, taa-no
    expect(msrsOf('SapphireRapids').get(0x10a)).toBe(0x16bn)
    expect(msrsOf('SapphireRapids,-arch-capabilities').has(0x10a)).toBe(false)
    expect(msrsOf('Icelake-Server').has(0x10a)).toBe(false)
    expect(msrsOf('host').has(0x10a)).toBe(false)
  })

  test('a host without one of its bits', () => {
    const without = { ...intel, featureMsrs: [{ index: 0x10a, value: 0x14bn }] }
    expect(() => cpuOf('SapphireRapids', without)).toThrow('does not offer mds-no')
    expect(cpuOf('SapphireRapids,check', without)).toMatchObject({ archCapabilities: 0x14bn, missing: ['mds-no'] })
  })

  test('IA32_FEATURE_CONTROL and VMX capabilities only with vmx', () => {
    expect(msrsOf('Haswell').has(0x3a)).toBe(false)
    expect(msrsOf('Haswell,+vmx').get(0x3a)).toBe(5n)
    expect(cpuOf('Haswell').vmxMsrs).toBeUndefined()
    expect(cpuOf('Haswell,+vmx').vmxMsrs!.map(({ index }) => index)).toEqual([
      0x480, 0x48d, 0x48e, 0x48b, 0x48f, 0x490, 0x485, 0x48c, 0x491, 0x486, 0x488, 0x48a,
    ])
  })
})

describe('flag names', () => {
  test.each([
    ['sse4.1', 'sse4_1'],
    ['sse4-2', 'sse4_2'],
    ['lahf-lm', 'lahf_lm'],
    ['nrip-save', 'nrip_save'],
    ['svm-lock', 'svm_lock'],
    ['sse3', 'pni'],
    ['pni', 'pni'],
    ['tsc-deadline', 'tsc_deadline_timer'],
    ['avx512vnni', 'avx512_vnni'],
    ['kvm_pv_eoi', 'kvm-pv-eoi'],
    ['amd-ssbd', 'ssbd'],
    ['frobnicate', undefined],
  ])('%s is %s', (name, flag) => expect(flagNamed(name)).toBe(flag))
})

test('KVM’s own answer, cut or not, is made consistent', () => {
  for (const cpuid of [INTEL, intel.cpuid]) {
    const host = machineCpu({ cpuid, featureMsrs: [] }, parseCpuSpec('host'), options).cpuid
    expect(checkCpuid(vcpuCpuid(host, 0, 2))).toEqual([])
    const less = machineCpu({ cpuid, featureMsrs: [] }, parseCpuSpec('host,-avx,-la57,-pku'), options).cpuid
    expect(checkCpuid(vcpuCpuid(less, 0, 2))).toEqual([])
  }
})
