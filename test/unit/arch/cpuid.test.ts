import { describe, expect, test } from 'vitest'
import { CPU_FLAGS } from '../../../lib/arch/x86_64/cpu-flags.js'
import { parseCpuSpec } from '../../../lib/arch/x86_64/cpu-spec.js'
import { findEntry, flagsOf, vendorOf } from '../../../lib/arch/x86_64/cpuid.js'
import { type CpuidOptions, machineCpu } from '../../../lib/arch/x86_64/machine-cpu.js'
import { vcpuCpuid } from '../../../lib/arch/x86_64/topology.js'
import { ConfigError } from '../../../lib/errors.js'
import type { CpuidEntry } from '../../../lib/kvm/structs.js'
import { AMD, INTEL } from './cpuid-tables.js'

const machine = (cpuid: readonly CpuidEntry[], spec = 'host', options?: CpuidOptions) =>
  machineCpu({ cpuid, featureMsrs: [] }, parseCpuSpec(spec), options).cpuid

describe('the table of flags', () => {
  test.each([
    ['vmx', 0x1, 0, 'ecx', 5],
    ['svm', 0x80000001, 0, 'ecx', 2],
    ['hypervisor', 0x1, 0, 'ecx', 31],
    ['sse2', 0x1, 0, 'edx', 26],
    ['pni', 0x1, 0, 'ecx', 0],
    ['avx512f', 0x7, 0, 'ebx', 16],
    ['la57', 0x7, 0, 'ecx', 16],
    ['fsrm', 0x7, 0, 'edx', 4],
    ['xsaves', 0xd, 1, 'eax', 3],
    ['lm', 0x80000001, 0, 'edx', 29],
    ['nrip_save', 0x8000000a, 0, 'edx', 3],
    ['clzero', 0x80000008, 0, 'ebx', 0],
  ])('%s is leaf %i.%i %s bit %i', (name, leaf, index, register, bit) => {
    expect(CPU_FLAGS.get(name)).toEqual([{ leaf, index, register, bit }])
  })

  test('a flag that Intel and AMD place differently has both places', () => {
    expect(CPU_FLAGS.get('stibp')).toEqual([
      { leaf: 0x7, index: 0, register: 'edx', bit: 27 },
      { leaf: 0x80000008, index: 0, register: 'ebx', bit: 15 },
    ])
  })

  test('no two flags of one register claim a bit, but those that Linux derives from the same one', () => {
    const seen = new Map<string, string>()
    const doubles: string[] = []
    for (const [name, locations] of CPU_FLAGS) {
      for (const location of locations) {
        const key = JSON.stringify(location)
        const other = seen.get(key)
        if (other) doubles.push(`${other}=${name}`)
        seen.set(key, name)
        expect(location.bit).toBeLessThan(32)
      }
    }
    expect(doubles.sort()).toEqual(['constant_tsc=nonstop_tsc', 'ibrs=ibpb'])
  })
})

describe('flagsOf', () => {
  test('names what is there', () => {
    const intel = flagsOf(INTEL)
    expect(intel).toEqual(expect.arrayContaining(['fpu', 'vmx', 'avx512f', 'xsaves', 'pdpe1gb', 'avx512_bf16', 'ssbd']))
    expect(intel).not.toContain('svm')
    expect(flagsOf(AMD)).toEqual(expect.arrayContaining(['svm', 'npt', 'vgif', 'topoext', 'stibp']))
    expect(flagsOf([])).toEqual([])
  })
})

describe('parseCpuSpec', () => {
  test('reads flags demanded and withheld', () => {
    expect(parseCpuSpec('host')).toEqual({
      text: 'host',
      model: 'host',
      demanded: [],
      withheld: [],
      missing: 'enforce',
    })
    expect(parseCpuSpec('host, +vmx,-avx512f,+vmx')).toMatchObject({ demanded: ['vmx'], withheld: ['avx512f'] })
  })

  test.each([
    ['', 'there is no CPU model ""; the models are host, qemu64'],
    ['+vmx', 'there is no CPU model "+vmx"'],
    ['Haswel', 'did you mean Haswell?'],
    ['epyc', 'did you mean EPYC?'],
    ['host,chek', 'did you mean check?'],
    ['host,phys-bit=40', 'did you mean phys-bits?'],
    ['host,phys-bits=64', 'give a number from 32 to 52'],
    ['host,check=maybe', 'give on or off'],
    ['host,check,enforce', 'give one of enforce and check'],
    ['host,enforce,enforce=off', 'enforce is given twice'],
    ['host,vmx=yes', 'vmx is a flag'],
    ['EPYC,+vmx', 'EPYC is a model of AuthenticAMD, and vmx is only on processors of GenuineIntel; ask for +svm'],
    ['Haswell,+nrip-save', 'nrip_save is only on processors of AuthenticAMD; leave out +nrip_save'],
    ['host,vmx', '"vmx" has no sign'],
    ['host,', '"" has no sign'],
    ['host,+', 'no CPU flag ""'],
    ['host,+vxm', 'no CPU flag "vxm"; did you mean vmx?'],
    ['host,-avx512', 'did you mean avx512'],
    ['host,+frobnicate', 'no CPU flag "frobnicate"; the flags have the names'],
    ['host,+constructor', 'no CPU flag "constructor"'],
    ['host,+svm,-svm', 'svm is both demanded and withheld'],
    [`host,+${'x'.repeat(100_000)}`, 'no CPU flag'],
  ])('%.40s is a ConfigError', (spec, message) => {
    expect(() => parseCpuSpec(spec)).toThrow(ConfigError)
    expect(() => parseCpuSpec(spec)).toThrow(message)
  })
})

describe('machineCpu of the host', () => {
  test('is what is supported, with the hypervisor bit, and leaves that as it is', () => {
    const before = structuredClone(INTEL)
    const entries = machine(INTEL, 'host,-vmx')
    expect(INTEL).toEqual(before)
    expect(flagsOf(INTEL)).not.toContain('hypervisor')
    expect(flagsOf(entries)).toContain('hypervisor')
  })

  test('offers the TSC deadline timer when told to, unless it is withheld', () => {
    const options = { tscDeadlineTimer: true }
    const without = INTEL.map(entry => (entry.function === 1 ? { ...entry, ecx: entry.ecx & ~(1 << 24) } : entry))
    expect(flagsOf(machine(without))).not.toContain('tsc_deadline_timer')
    expect(flagsOf(machine(without, 'host', options))).toContain('tsc_deadline_timer')
    const withheld = machine(without, 'host,-tsc_deadline_timer', options)
    expect(flagsOf(withheld)).not.toContain('tsc_deadline_timer')
  })

  test('-vmx takes vmx away, and nothing else', () => {
    const all = flagsOf(machine(INTEL))
    expect(flagsOf(machine(INTEL, 'host,-vmx'))).toEqual(all.filter(flag => flag !== 'vmx'))
    expect(flagsOf(machine(INTEL, 'host,+vmx'))).toEqual(all)
  })

  test('-svm empties its leaf as well', () => {
    const entries = machine(AMD, 'host,-svm')
    expect(findEntry(entries, 0x8000000a)).toMatchObject({ eax: 0, ebx: 0, ecx: 0, edx: 0 })
    const flags = flagsOf(entries)
    for (const flag of ['svm', 'npt', 'vgif', 'skinit']) expect(flags).not.toContain(flag)
    expect(flags).toContain('sse4a')
  })

  test('what depends on a withheld flag goes with it', () => {
    const flags = flagsOf(machine(INTEL, 'host,-avx512f'))
    expect(flags.filter(flag => flag.startsWith('avx512'))).toEqual([])
    expect(flags).toContain('avx2')
    const withoutAvx = machine(INTEL, 'host,-avx')
    for (const flag of ['avx', 'avx2', 'fma', 'avx512f', 'vaes', 'avx512vbmi'])
      expect(flagsOf(withoutAvx)).not.toContain(flag)
    expect(findEntry(withoutAvx, 0xd)?.eax).toBe(0x203)
    for (const component of [2, 5, 6, 7])
      expect(findEntry(withoutAvx, 0xd, component)).toMatchObject({ eax: 0, ebx: 0 })
    expect(findEntry(withoutAvx, 0xd, 9)?.eax).toBe(8)
    expect(findEntry(machine(INTEL, 'host,-xsave'), 0xd, 1)?.eax).toBe(0)
  })

  test('AMD’s copies of a bit go with it', () => {
    const copies = (supported: readonly CpuidEntry[], spec: string) =>
      findEntry(supported, 0x80000001)!.edx ^ findEntry(machine(supported, spec), 0x80000001)!.edx
    // Bit 25 is fxsr_opt, which goes for another reason.
    expect(copies(AMD, 'host,-fxsr') >>> 0).toBe((1 << 24) | (1 << 25))
    expect(copies(AMD, 'host,-pse36')).toBe(1 << 17)
    expect(copies(AMD, 'host,-clflush')).toBe(0)
    expect(copies(AMD, 'host,-sep')).toBe(0)
    expect(copies(AMD, 'host,-pni')).toBe(0)
    expect(copies(INTEL, 'host,-pse36')).toBe(0)
  })

  test.each([
    [INTEL, 'host,+svm', 'has vmx, not svm: its processor is GenuineIntel', 'ask for +vmx'],
    [AMD, 'host,+vmx', 'has svm, not vmx: its processor is AuthenticAMD', 'ask for +svm'],
    [machine(INTEL, 'host,-vmx'), 'host,+vmx', 'it cannot nest', 'load kvm_intel with nested=1'],
    [machine(AMD, 'host,-svm'), 'host,+svm', 'it cannot nest', 'load kvm_amd with nested=1'],
    [AMD, 'host,+avx512f', 'does not offer avx512f', 'leave out +avx512f'],
    [INTEL, 'host,-avx,+avx2', 'avx2 cannot be had without', 'leave out +avx2'],
  ])('a flag that cannot be given is refused with the reason (%#)', (supported, spec, problem, remedy) => {
    let caught: unknown
    try {
      machine(supported, spec)
    } catch (error) {
      caught = error
    }
    expect(caught).toBeInstanceOf(ConfigError)
    expect(caught).toMatchObject({ field: 'cpu', value: spec, message: expect.stringContaining(problem) })
    expect((caught as ConfigError).remedy).toContain(remedy)
  })
})

describe('vcpuCpuid', () => {
  const cpuid = (supported: readonly CpuidEntry[], id: number, count: number) =>
    vcpuCpuid(machine(supported), id, count)

  test('leaf 1 has the APIC id, the count and HTT', () => {
    const leaf = findEntry(cpuid(INTEL, 2, 3), 1)!
    expect(leaf.ebx).toBe(0x02040800)
    expect((leaf.edx >>> 28) & 1).toBe(1)
    const single = findEntry(cpuid(AMD, 0, 1), 1)!
    expect(single.ebx).toBe(0x00010800)
    expect((single.edx >>> 28) & 1).toBe(0)
    expect(single.edx).toBeGreaterThan(0)
  })

  test('leaf 0xb has a thread and a core level, and is added where it is missing', () => {
    for (const supported of [INTEL, AMD]) {
      const entries = cpuid(supported, 5, 6)
      const rows = entries.filter(entry => entry.function === 0xb)
      expect(rows.map(({ index, eax, ebx, ecx, edx }) => [index, eax, ebx, ecx, edx])).toEqual([
        [0, 0, 1, 0x100, 5],
        [1, 3, 6, 0x201, 5],
        [2, 0, 0, 2, 5],
      ])
      expect(rows.every(row => row.flags === 1)).toBe(true)
      expect(findEntry(entries, 0)!.eax).toBe(supported === INTEL ? 0xd : 0xb)
    }
  })

  test('leaf 0x1f follows 0xb where KVM reports it', () => {
    const supported = [...INTEL, { function: 0x1f, index: 0, flags: 1, eax: 9, ebx: 9, ecx: 9, edx: 9 }]
    const rows = cpuid(supported, 1, 2).filter(entry => entry.function === 0x1f)
    expect(rows.map(row => [row.eax, row.ebx, row.ecx, row.edx])).toEqual([
      [0, 1, 0x100, 1],
      [1, 2, 0x201, 1],
      [0, 0, 2, 1],
    ])
    expect(cpuid(INTEL, 1, 2).some(entry => entry.function === 0x1f)).toBe(false)
  })

  test('an APIC id above 255 is whole in leaf 0xb', () => {
    const entries = cpuid(INTEL, 300, 400)
    expect(findEntry(entries, 0xb, 1)).toMatchObject({ eax: 9, ebx: 400, edx: 300 })
    expect(findEntry(entries, 1)!.ebx).toBe(0x2cff0800)
  })

  test('caches: L1 and L2 belong to a core, L3 to the package', () => {
    const leaf4 = (index: number, count: number) => findEntry(cpuid(INTEL, 0, count), 4, index)!.eax
    expect([0, 1, 2, 3, 4].map(index => leaf4(index, 4))).toEqual([0x0c000121, 0x0c000122, 0x0c000143, 0x0c00c163, 0])
    expect(leaf4(3, 1)).toBe(0x163)
    expect(leaf4(0, 400) >>> 26).toBe(63)
    const amd = cpuid(AMD, 0, 4)
    expect(findEntry(amd, 0x8000001d, 0)!.eax).toBe(0x121)
    expect(findEntry(amd, 0x8000001d, 3)!.eax).toBe(0xc163)
  })

  test('AMD’s own counts are right there, and are not made up on Intel', () => {
    const entries = cpuid(AMD, 3, 6)
    expect(findEntry(entries, 0x80000008)).toMatchObject({ eax: 0x3030, ecx: 0x3005 | 0x0f00 })
    expect(findEntry(entries, 0x8000001e)).toMatchObject({ eax: 3, ebx: 3, ecx: 0, edx: 0 })
    expect(flagsOf(entries)).toContain('cmp_legacy')
    expect(flagsOf(cpuid(AMD, 0, 1))).not.toContain('cmp_legacy')
    expect(findEntry(cpuid(INTEL, 3, 6), 0x80000008)).toEqual(findEntry(INTEL, 0x80000008))
    expect(flagsOf(cpuid(INTEL, 3, 6))).not.toContain('cmp_legacy')
  })

  test('every value is an unsigned 32-bit integer, and the vendor stays', () => {
    for (const supported of [INTEL, AMD]) {
      const entries = cpuid(supported, 255, 256)
      for (const { eax, ebx, ecx, edx } of entries) {
        for (const value of [eax, ebx, ecx, edx]) expect(value >>> 0).toBe(value)
      }
      expect(vendorOf(entries)).toBe(vendorOf(supported))
    }
  })
})
