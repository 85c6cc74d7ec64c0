import { describe, expect, test } from 'vitest'
import { CPU_FLAG_DEPENDENTS, CPU_FLAGS } from '../../../lib/arch/x86_64/cpu-flags.js'
import { CPU_MODELS, findCpuModel } from '../../../lib/arch/x86_64/cpu-models/models.js'
import { featureNamed } from '../../../lib/arch/x86_64/cpu-names.js'
import { extensionWith, parseCpuSpec } from '../../../lib/arch/x86_64/cpu-spec.js'
import { flagsOf, withDependents } from '../../../lib/arch/x86_64/cpuid.js'
import { lackingMessage, type MachineCpu, machineCpu } from '../../../lib/arch/x86_64/machine-cpu.js'
import { ConfigError } from '../../../lib/errors.js'
import { VMX_DEPENDENCIES } from '../../../lib/nested/vmx-dependents.js'
import { VMX_FEATURE_NAMES, VMX_FEATURES } from '../../../lib/nested/vmx-features.js'
import { impossibleControls, vmxFeaturesOf } from '../../../lib/nested/vmx-switch.js'
import { everything } from './synthetic-kvm.js'

const intel = everything('GenuineIntel')
const amd = everything('AuthenticAMD')
const without = (...names: string[]) => ({
  ...intel,
  featureMsrs: machineCpu(intel, parseCpuSpec(`host${names.map(name => `,-${name}`).join('')}`)).vmxMsrs!,
})
const cpuOf = (spec: string, host = intel) => machineCpu(host, parseCpuSpec(spec))
const msrsOf = ({ vmxMsrs = [] }: MachineCpu) => new Map(vmxMsrs.map(({ index, value }) => [index, value]))
const namesOf = (cpu: MachineCpu) => new Set(vmxFeaturesOf(msrsOf(cpu)))
const lostBy = (spec: string) => {
  const left = namesOf(cpuOf(spec))
  return new Set([...VMX_FEATURE_NAMES].filter(name => !left.has(name)))
}
const hex = (value: bigint | undefined) => value?.toString(16)
const names = [...VMX_FEATURE_NAMES]

describe('the names', () => {
  test('are those of all words, each once, and QEMU’s four for controls that may be 0', () => {
    const count = VMX_FEATURES.reduce((sum, word) => sum + word.names.size + word.optional.size, 0)
    expect(VMX_FEATURE_NAMES.size).toBe(count)
    expect(VMX_FEATURES.flatMap(({ optional }) => [...optional.values()])).toEqual([
      'vmx-cr3-load-noexit',
      'vmx-cr3-store-noexit',
      'vmx-exit-nosave-debugctl',
      'vmx-entry-noload-debugctl',
    ])
    expect(names.filter(name => CPU_FLAGS.has(name))).toEqual([])
  })

  test.each(names)('%s goes alone with what depends on it, and comes back', name => {
    const lost = lostBy(`host,-${name}`)
    expect(lost).toEqual(withDependents([name]))
    expect(lostBy(`host,${name.replaceAll('-', '_')}=off`)).toEqual(lost)
    // A host that has it gives it; one that lacks it is said to.
    expect(namesOf(cpuOf(`host,+${name}`))).toContain(name)
    expect(() => cpuOf(`host,+${name}`, without(name))).toThrow(`does not offer ${name} to guests; leave out +${name}`)
    expect(cpuOf(`host,+${name},check`, without(name)).missing).toEqual([name])
  })

  test.each([
    ['vmx_unrestricted_guest', 'vmx-unrestricted-guest'],
    ['vmx-invept-single-context-noglobals', 'vmx-invvpid-single-context-noglobals'],
    ['nrips', 'nrip_save'],
    ['nrip-save', 'nrip_save'],
    ['v-vmsave-vmload', 'v_vmsave_vmload'],
    ['vmsave-vmload-virtualization', 'v_vmsave_vmload'],
    ['vls', 'v_vmsave_vmload'],
    ['tsc-scale', 'tsc_scale'],
    ['vmcb-clean', 'vmcb_clean'],
    ['pause-filter', 'pausefilter'],
    ['pfthreshold', 'pfthreshold'],
    ['svme-addr-chk', 'svme_addr_chk'],
    ['vmx', 'vmx'],
    ['vmx-', undefined],
    ['ept', undefined],
  ])('%s is %s', (name, feature) => expect(featureNamed(name)).toBe(feature))

  test('say of which extension they are', () => {
    expect(['vmx-pml', 'npt', 'skinit', 'vmx', 'svm', 'avx'].map(extensionWith)).toEqual([
      'vmx',
      'svm',
      'svm',
      undefined,
      undefined,
      undefined,
    ])
  })
})

describe('the MSRs', () => {
  test('of a host that is left as it is are its own', () => {
    const own = intel.featureMsrs.filter(({ index }) => index !== 0x10a)
    expect(cpuOf('host').vmxMsrs).toEqual(own)
    expect(cpuOf('host').vmxSwitched).toBeUndefined()
    expect(cpuOf('host,-avx').vmxMsrs).toEqual(own)
  })

  test.each([
    // Bit 1 of the allowed 1-settings, 17 and 7, and the lower half of what goes with EPT
    ['-vmx-ept', 0x48b, 0xffff_ffffn, 0x2_0082n << 32n],
    ['-vmx-ept', 0x48c, 0xffff_ffffn, 0x6f3_41c1n],
    ['-vmx-ept', 0x491, 0n, 1n],
    ['-vmx-vpid', 0x48c, 0n, 0xf01n << 32n],
    ['-vmx-preemption-timer', 0x48d, 0n, 1n << 38n],
    ['-vmx-preemption-timer', 0x48f, 0n, 1n << 54n],
    ['-vmx-store-lma', 0x485, 0n, 1n << 5n],
    ['-vmx-ins-outs', 0x480, 0n, 1n << 54n],
  ])('%s clears its bits of 0x%s', (switched, msr, _, gone) => {
    const [before, after] = [msrsOf(cpuOf('host')).get(msr)!, msrsOf(cpuOf(`host,${switched}`)).get(msr)!]
    expect(hex(before ^ after)).toBe(hex(gone))
    expect(before & gone).toBe(gone)
  })

  test('what may no longer be 0 must be 1', () => {
    const [before, after] = [
      msrsOf(cpuOf('host')),
      msrsOf(cpuOf('host,-vmx-cr3-load-noexit,-vmx-entry-noload-debugctl')),
    ]
    expect(after.get(0x48e)! ^ before.get(0x48e)!).toBe(1n << 15n)
    expect(after.get(0x490)! ^ before.get(0x490)!).toBe(1n << 2n)
  })

  test('without true controls the default1 class must be 1 (Intel SDM vol. 3, A.2)', () => {
    const msrs = msrsOf(cpuOf('host,-vmx-true-ctls'))
    expect([0x48d, 0x48e, 0x48f, 0x490].map(msr => hex(msrs.get(msr)! & 0xffff_ffffn))).toEqual([
      '16',
      '401e172',
      '36dff',
      '11ff',
    ])
    expect(((msrs.get(0x480) ?? 0n) >> 55n) & 1n).toBe(0n)
  })

  test('without true controls the reserved bits of the class must be 1 as well, whatever KVM says of them', () => {
    const free = {
      ...intel,
      featureMsrs: intel.featureMsrs.map(m => (m.index === 0x48d ? { ...m, value: m.value & ~0x16n } : m)),
    }
    expect(msrsOf(cpuOf('host', free)).get(0x48d)! & 0xffn).toBe(0n)
    expect(msrsOf(cpuOf('host,-vmx-true-ctls', free)).get(0x48d)! & 0xffn).toBe(0x16n)
  })

  test('a control that the host itself makes impossible is its own affair', () => {
    const odd = {
      ...intel,
      featureMsrs: intel.featureMsrs.map(m =>
        m.index === 0x48e ? { ...m, value: (m.value | 0x80n) & ~(0x80n << 32n) } : m,
      ),
    }
    expect(impossibleControls(msrsOf(cpuOf('host,-vmx-pml', odd)))).toEqual(['vmx-hlt-exit'])
  })

  test('bits without a name go with the MSR that they are in', () => {
    const unnamed = intel.featureMsrs.map(m => (m.index === 0x48b ? { ...m, value: m.value | (1n << 54n) } : m))
    const host = { ...intel, featureMsrs: unnamed }
    expect(msrsOf(cpuOf('host,-vmx-pml', host)).get(0x48b)! & (1n << 54n)).not.toBe(0n)
    expect(msrsOf(cpuOf('host,-vmx-secondary-ctls', host)).get(0x48b)).toBe(0n)
  })

  test('numbers and fixed bits stay', () => {
    const spec = `host${names
      .filter(name => !name.endsWith('-true-ctls'))
      .map(name => `,-${name}`)
      .join('')}`
    expect(() => cpuOf(spec)).toThrow('vmx-cr3-load-exit would be neither on nor off')
    const all = `host${names
      .filter(name => !/cr3|debugctl|true-ctls/.test(name))
      .map(name => `,-${name}`)
      .join('')}`
    const msrs = msrsOf(cpuOf(all))
    expect([0x480, 0x485, 0x486, 0x488, 0x48a].map(msr => hex(msrs.get(msr)))).toEqual([
      '98100011e57ed0',
      '5',
      '80000021',
      '2000',
      '2e',
    ])
  })
})

describe('the dependencies', () => {
  test('name only what there is, and their source', () => {
    for (const { base, dependents, source } of VMX_DEPENDENCIES) {
      expect(VMX_FEATURE_NAMES.has(base) || CPU_FLAGS.has(base)).toBe(true)
      for (const dependent of dependents) expect(VMX_FEATURE_NAMES).toContain(dependent)
      expect(dependents.length).toBeGreaterThan(0)
      expect(source).toMatch(/^vol\. 3, (27\.2\.1\.[12]|29\.3\.6|appendix A\.\d+)/)
    }
  })

  test('have no cycle', () => {
    const done = new Set<string>()
    const visit = (name: string, path: readonly string[]) => {
      expect(path).not.toContain(name)
      if (done.has(name)) return
      for (const dependent of CPU_FLAG_DEPENDENTS.get(name) ?? []) visit(dependent, [...path, name])
      done.add(name)
    }
    for (const base of CPU_FLAG_DEPENDENTS.keys()) visit(base, [])
    expect(done.size).toBeGreaterThan(VMX_FEATURE_NAMES.size)
  })

  const rules = VMX_DEPENDENCIES.filter(({ base }) => base !== 'vmx').flatMap(({ base, dependents }) =>
    dependents.map(dependent => [base, dependent] as const),
  )
  test.each(rules)('without %s there is no %s', (base, dependent) => {
    expect(lostBy(`host,-${base}`)).toContain(dependent)
    const spec = `host,-${base},+${dependent}`
    expect(() => cpuOf(spec)).toThrow(ConfigError)
    expect(() => cpuOf(spec)).toThrow(
      new RegExp(`${dependent} cannot be had without \\S+, which is withheld; leave out`),
    )
  })

  // The same again, not taken from the table.
  test.each([
    ['vmx-true-ctls', 'vmx-cr3-load-noexit vmx-cr3-store-noexit vmx-exit-nosave-debugctl vmx-entry-noload-debugctl'],
    ['vmx-secondary-ctls', 'vmx-ept vmx-vpid vmx-apicv-xapic vmx-shadow-vmcs vmx-tsc-scaling vmx-vmfunc vmx-ple'],
    ['vmx-intr-exit', 'vmx-apicv-vid vmx-posted-intr'],
    ['vmx-nmi-exit', 'vmx-vnmi vmx-vnmi-pending'],
    ['vmx-vnmi', 'vmx-vnmi-pending'],
    ['vmx-flexpriority', 'vmx-apicv-x2apic vmx-apicv-register vmx-apicv-vid vmx-posted-intr'],
    ['vmx-apicv-vid', 'vmx-posted-intr'],
    ['vmx-exit-ack-intr', 'vmx-posted-intr'],
    ['vmx-ept', 'vmx-unrestricted-guest vmx-pml vmx-eptp-switching vmx-invept vmx-eptad vmx-page-walk-4 vmx-ept-2mb'],
    ['vmx-preemption-timer', 'vmx-exit-save-preemption-timer'],
    ['vmx-store-lma', 'vmx-unrestricted-guest'],
    ['vmx-eptad', 'vmx-pml'],
    ['vmx-invept', 'vmx-invept-single-context vmx-invept-all-context'],
    ['vmx-vpid', 'vmx-invvpid vmx-invvpid-single-addr'],
    ['vmx-invvpid', 'vmx-invvpid-single-context vmx-invvpid-single-context-noglobals vmx-invvpid-all-context'],
    ['vmx-vmfunc', 'vmx-eptp-switching'],
    ['lm', 'vmx-entry-ia32e-mode vmx-exit-host-addr-space-size'],
    ['rdtscp', 'vmx-rdtscp-exit'],
    ['invpcid', 'vmx-invpcid-exit'],
    ['rdrand', 'vmx-rdrand-exit'],
    ['rdseed', 'vmx-rdseed-exit'],
    ['xsaves', 'vmx-xsaves'],
    ['waitpkg', 'vmx-enable-user-wait-pause'],
    ['mpx', 'vmx-exit-clear-bndcfgs vmx-entry-load-bndcfgs'],
    ['sgx', 'vmx-encls-exit vmx-enclv-exit'],
    ['intel_pt', 'vmx-intel-pt vmx-exit-clear-rtit-ctl vmx-entry-load-rtit-ctl'],
    ['fred', 'vmx-entry-load-fred vmx-nested-exception'],
  ])('%s is the base of %s', (base, dependents) => {
    const lost = lostBy(`host,-${base}`)
    expect(dependents.split(' ').filter(name => !lost.has(name))).toEqual([])
    // Some go with their whole MSR, too.
    expect([...withDependents([base])]).toEqual(expect.arrayContaining(dependents.split(' ')))
  })

  test('svm’s features have bases as well', () => {
    const left = (spec: string) => flagsOf(cpuOf(spec, amd).cpuid)
    expect(left('host')).toEqual(expect.arrayContaining(['npt', 'avic', 'x2avic', 'v_vmsave_vmload', 'pfthreshold']))
    const without = left('host,-npt,-pause-filter')
    for (const flag of ['npt', 'avic', 'x2avic', 'v_vmsave_vmload', 'pfthreshold']) expect(without).not.toContain(flag)
    expect(without).toEqual(expect.arrayContaining(['svm', 'vgif', 'nrip_save', 'lbrv']))
  })

  test('a control is on or off', () => {
    for (const [control, freedom] of [
      ['vmx-cr3-load-exit', 'vmx-cr3-load-noexit'],
      ['vmx-cr3-store-exit', 'vmx-true-ctls'],
      ['vmx-exit-save-debugctl', 'vmx-exit-nosave-debugctl'],
    ]) {
      expect(() => cpuOf(`host,-${control},-${freedom}`)).toThrow(`${control} would be neither on nor off`)
      expect(() => cpuOf(`host,-${control}`, without(freedom!))).toThrow(`${control} would be neither on nor off`)
      expect(impossibleControls(msrsOf(cpuOf(`host,-${control}`)))).toEqual([])
    }
  })

  test('-vmx takes all, and is fine where there is none', () => {
    expect(cpuOf('host,-vmx').vmxMsrs).toBeUndefined()
    expect(cpuOf('host,-vmx,-vmx-ept', amd).vmxMsrs).toBeUndefined()
    expect(cpuOf('host,-npt').missing).toEqual([])
  })
})

/** A host with these bits changed in one MSR. */
const altered = (index: number, change: (value: bigint) => bigint) => ({
  ...intel,
  featureMsrs: intel.featureMsrs.map(m => (m.index === index ? { ...m, value: change(m.value) } : m)),
})
const setOf = (name: string) => findCpuModel(name)!.vmx as readonly string[]
const difference = (older: string, newer: string) => {
  const [a, b] = [setOf(older), setOf(newer)]
  const [added, gone] = [b.filter(name => !a.includes(name)), a.filter(name => !b.includes(name))]
  return [...added.map(name => `+${name.slice(4)}`), ...gone.map(name => `-${name.slice(4)}`)].join(' ')
}

describe('models', () => {
  test('know what their vmx offers, but for qemu64', () => {
    expect(CPU_MODELS.filter(({ vmx }) => vmx === 'host').map(({ name }) => name)).toEqual(['qemu64'])
    for (const { name, vendor, vmx } of CPU_MODELS) {
      if (vmx === 'host') continue
      expect([name, vmx.filter(feature => !VMX_FEATURE_NAMES.has(feature))]).toEqual([name, []])
      expect([name, new Set(vmx).size]).toEqual([name, vmx.length])
      expect([name, vmx.length > 0]).toEqual([name, vendor !== 'AuthenticAMD'])
    }
  })

  // As QEMU 7.2 answers (unavailable-features under TCG), and its text for SapphireRapids
  test.each([
    ['Nehalem', 'Westmere', '+unrestricted-guest +store-lma'],
    ['Westmere', 'SandyBridge', ''],
    ['SandyBridge', 'IvyBridge', '+posted-intr +apicv-register +apicv-vid +rdrand-exit'],
    ['IvyBridge', 'Haswell', '+invpcid-exit +vmfunc +shadow-vmcs +vmwrite-vmexit-fields +eptad +eptp-switching'],
    ['Haswell', 'Broadwell', '+rdseed-exit +pml'],
    ['Broadwell', 'Skylake-Client', '-apicv-x2apic -posted-intr -apicv-register -apicv-vid'],
    ['Broadwell', 'Skylake-Server', '-eptp-switching'],
    ['Skylake-Server', 'Cascadelake-Server', ''],
    ['Cascadelake-Server', 'Icelake-Server', '-rdseed-exit -pml'],
    ['Icelake-Server', 'SapphireRapids', '+eptp-switching +rdseed-exit +pml +xsaves +page-walk-5'],
  ])('from %s to %s', (older, newer, changes) => {
    expect(difference(older, newer).split(' ').sort()).toEqual(changes.split(' ').sort())
  })

  // QEMU's words made MSRs (make_vmx_msr_value); the numbers are the host's.
  test.each([
    [
      'SapphireRapids,+vmx',
      {
        1152: 'd8100011e57ed0',
        1165: 'ff00000016',
        1166: 'fff9fffe04006172',
        1163: '137bff00000000',
        1167: '7fffff00036dfb',
        1168: 'f3ff000011fb',
        1157: '20000065',
        1164: 'f01063340c1',
        1169: '1',
      },
    ],
    [
      'kvm64,+vmx',
      {
        1152: '18100011e57ed0',
        1165: '1f00000016',
        1166: '67b9fffe0401e172',
        1163: '0',
        1167: '3efff00036dff',
        1168: '13ff000011ff',
        1157: '45',
        1164: '0',
        1169: '0',
      },
    ],
  ])('%s has the MSRs that it has under QEMU', (spec, expected) => {
    const msrs = msrsOf(cpuOf(spec))
    const shown = Object.keys(expected).map(index => [index, hex(msrs.get(Number(index)))])
    expect(Object.fromEntries(shown)).toEqual(expected)
    expect(msrs.size).toBe(12)
  })

  test.each(CPU_MODELS.filter(({ vendor, vmx }) => vendor !== 'AuthenticAMD' && vmx !== 'host').map(m => m.name))(
    '%s has its own set, less what needs flags that it lacks, and that holds together',
    name => {
      const cpu = cpuOf(`${name},+vmx`)
      const [left, flags] = [namesOf(cpu), new Set(flagsOf(cpu.cpuid))]
      const lost = setOf(name).filter(feature => !left.has(feature))
      expect(lost).toEqual(['Nehalem', 'Westmere'].includes(name) ? ['vmx-rdtscp-exit'] : [])
      expect([...left].filter(feature => !setOf(name).includes(feature))).toEqual([])
      for (const { base, dependents } of VMX_DEPENDENCIES) {
        if (left.has(base) || flags.has(base)) continue
        expect([base, dependents.filter(dependent => left.has(dependent))]).toEqual([base, []])
      }
      expect(impossibleControls(msrsOf(cpu))).toEqual([])
      expect(cpu.vmxSwitched).toEqual(VMX_FEATURE_NAMES)
    },
  )

  test('are the same on hosts that offer different things', () => {
    const lesser = { ...without('vmx-tsc-scaling', 'vmx-pml', 'vmx-entry-load-bndcfgs', 'vmx-zero-len-inject') }
    expect(cpuOf('Haswell,+vmx', lesser).vmxMsrs).toEqual(cpuOf('Haswell,+vmx').vmxMsrs)
    // Controls and capabilities that nobody has named yet.
    const newer = [
      altered(0x48b, value => value | (1n << 54n)),
      altered(0x48e, value => value | (1n << 32n)),
      altered(0x48c, value => value | (1n << 60n)),
      altered(0x485, value => value | (1n << 9n)),
      altered(0x480, value => value | (1n << 57n)),
    ]
    for (const host of newer) {
      expect(msrsOf(cpuOf('host', host))).not.toEqual(msrsOf(cpuOf('host')))
      expect(cpuOf('Haswell,+vmx', host).vmxMsrs).toEqual(cpuOf('Haswell,+vmx').vmxMsrs)
    }
    // Numbers are not capabilities.
    const revised = altered(0x480, value => value + 1n)
    expect(msrsOf(cpuOf('Haswell,+vmx', revised)).get(0x480)).toBe(msrsOf(cpuOf('Haswell,+vmx')).get(0x480)! + 1n)
  })

  test('what must be 1 stays possible, named or not', () => {
    const forced = altered(0x48d, value => value | (1n << 36n) | (1n << 4n) | (1n << 42n) | (1n << 10n))
    expect(msrsOf(cpuOf('Haswell,+vmx', forced)).get(0x48d)).toBe(0x4ff_0000_0416n)
    const host = altered(0x48b, value => value | 0x1000_0000n)
    expect(() => cpuOf('Haswell,+vmx', host)).toThrow(ConfigError)
    expect(() =>
      cpuOf(
        'Haswell,+vmx',
        altered(0x48b, value => value | (1n << 25n)),
      ),
    ).toThrow(
      'vmx-tsc-scaling would be neither on nor off: Haswell does not have it, and KVM on this host has it on always; add +vmx-tsc-scaling',
    )
    expect(() =>
      cpuOf(
        'Haswell,+vmx,-vmx-ept',
        altered(0x48b, value => value | 2n),
      ),
    ).toThrow('vmx-ept would be neither on nor off: it is withheld')
  })

  test('take what is demanded, and leave what is withheld, with what depends on it', () => {
    expect(namesOf(cpuOf('Haswell,+vmx,+vmx-tsc-scaling'))).toContain('vmx-tsc-scaling')
    expect(namesOf(cpuOf('Skylake-Server,+vmx,+xsaves,+vmx-xsaves'))).toContain('vmx-xsaves')
    expect(namesOf(cpuOf('Nehalem,+vmx,+rdtscp'))).toContain('vmx-rdtscp-exit')
    const shadow = namesOf(cpuOf('Broadwell,+vmx,-vmx-ept,-rdseed'))
    for (const name of withDependents(['vmx-ept', 'rdseed'])) expect(shadow).not.toContain(name)
    expect(flagsOf(cpuOf('Nehalem,+vmx,-vmx-ept').cpuid)).toContain('vmx')
    expect(() => cpuOf('Nehalem,+vmx,+vmx-pml')).toThrow('vmx-pml cannot be had without vmx-eptad; add +vmx-eptad')
    expect(cpuOf('Haswell').vmxMsrs).toBeUndefined()
  })

  test('name what the host lacks, and not all that needs it', () => {
    const host = without('vmx-ept', 'vmx-vpid', 'vmx-mtf', 'vmx-cr3-load-noexit')
    const problem =
      'KVM on this host does not offer vmx-mtf, vmx-cr3-load-noexit, vmx-ept, vmx-vpid (and 16 of vmx that need it) to guests; ' +
      'withhold them (Haswell,+vmx,-vmx-mtf,-vmx-cr3-load-noexit,-vmx-ept,-vmx-vpid), go without (Haswell,+vmx,check)'
    expect(() => cpuOf('Haswell,+vmx', host)).toThrow(problem)
    const { missing, vmxMsrs } = cpuOf('Haswell,+vmx,check', host)
    expect(missing).toHaveLength(20)
    expect(missing).toEqual(expect.arrayContaining(['vmx-invept', 'vmx-unrestricted-guest', 'vmx-invvpid']))
    expect(lackingMessage(parseCpuSpec('Haswell,+vmx,check'), missing)).toBe(
      'KVM on this host does not offer vmx-mtf, vmx-cr3-load-noexit, vmx-ept, vmx-vpid (and 16 of vmx that need it) of Haswell: ' +
        'the guest goes without',
    )
    // As the remedy says, on either host.
    const remedied = 'Haswell,+vmx,-vmx-mtf,-vmx-cr3-load-noexit,-vmx-ept,-vmx-vpid'
    expect(cpuOf(remedied, host)).toMatchObject({ missing: [], vmxMsrs })
    expect(cpuOf(remedied).vmxMsrs).toEqual(vmxMsrs)
  })

  test('a host that cannot nest lacks vmx, and no more is told', () => {
    expect(cpuOf('Haswell,+vmx,check', { ...intel, cpuid: cpuOf('host,-vmx').cpuid }).missing).toEqual(['vmx'])
    expect(() => cpuOf('Haswell,+vmx', amd)).toThrow('this host has svm, not vmx')
  })

  test('a KVM that lets nobody choose gives no model its own', () => {
    const old = { ...intel, featureMsrs: intel.featureMsrs.filter(({ index }) => index === 0x10a) }
    expect(() => cpuOf('Haswell,+vmx', old)).toThrow('does not offer vmx-feature-msrs to guests; go without')
    expect(cpuOf('Haswell,+vmx,check', old)).toMatchObject({ missing: ['vmx-feature-msrs'], vmxMsrs: [] })
    expect(() => cpuOf('Haswell,+vmx,+vmx-ept', old)).toThrow('does not offer vmx-ept, vmx-feature-msrs to guests')
    expect(cpuOf('qemu64,+vmx', old)).toMatchObject({ missing: [], vmxMsrs: [] })
  })

  test('qemu64 has what the host offers, without what needs flags that it lacks', () => {
    expect([...VMX_FEATURE_NAMES].filter(name => !namesOf(cpuOf('qemu64,+vmx')).has(name))).toEqual([
      'vmx-nested-exception',
      'vmx-rdtscp-exit',
      'vmx-rdrand-exit',
      'vmx-invpcid-exit',
      'vmx-encls-exit',
      'vmx-rdseed-exit',
      'vmx-xsaves',
      'vmx-enable-user-wait-pause',
      'vmx-enclv-exit',
      'vmx-exit-clear-bndcfgs',
      'vmx-exit-clear-rtit-ctl',
      'vmx-entry-load-bndcfgs',
      'vmx-entry-load-rtit-ctl',
      'vmx-entry-load-fred',
      'vmx-intel-pt',
    ])
    expect(cpuOf('qemu64,+vmx,-vmx-ept').vmxSwitched).toContain('vmx-pml')
    expect(namesOf(cpuOf('qemu64,+vmx', without('vmx-pml')))).not.toContain('vmx-pml')
  })

  test('what a model is demanded to have needs what it needs', () => {
    expect(() => cpuOf('Haswell,+vmx-ept')).toThrow(
      'vmx-ept cannot be had without vmx; add +vmx, or leave out +vmx-ept',
    )
    expect(() => cpuOf('Nehalem,+vmx,+vmx-rdtscp-exit')).toThrow('vmx-rdtscp-exit cannot be had without rdtscp')
    expect(() => cpuOf('Haswell,+vmx,+vmx-pml', without('vmx-pml'))).toThrow('does not offer vmx-pml to guests')
    expect(() => cpuOf('EPYC,+npt', amd)).toThrow('npt cannot be had without svm; add +svm')
  })
})

describe('bad switches', () => {
  test.each([
    ['host,+vmx-etp', 'there is no CPU flag "vmx-etp"; did you mean vmx-ept? what vmx offers has the names of QEMU'],
    ['host,-vmx-unrestricted', 'did you mean vmx-unrestricted-guest?'],
    ['host,vmx-ept=yes', 'vmx-ept is a flag, and cannot be "yes"'],
    ['host,vmx-ept', '"vmx-ept" has no sign'],
    ['host,+vmx-ept,vmx_ept=off', 'vmx-ept is both demanded and withheld'],
    [
      'EPYC,+svm,+vmx-ept',
      'EPYC is a model of AuthenticAMD, and vmx-ept is only on processors of GenuineIntel; ask for +npt',
    ],
    ['EPYC,+svm,-vmx-ept', 'only on processors of GenuineIntel; ask for -npt'],
    ['EPYC,+svm,-vmx-pml', 'only on processors of GenuineIntel; leave out -vmx-pml'],
    ['Haswell,+vmx,-nrip-save', 'nrip_save is only on processors of AuthenticAMD; leave out -nrip_save'],
    ['Haswell,+vmx,-npt', 'ask for -vmx-ept'],
    [
      'host,-vmx-ept,+vmx-pml',
      'vmx-pml cannot be had without vmx-ept, which is withheld; leave out +vmx-pml, or what withholds vmx-ept',
    ],
    ['host,-vmx,+vmx-pml', 'vmx-pml cannot be had without vmx, which is withheld'],
    ['host,-xsave,+vmx-xsaves', 'vmx-xsaves cannot be had without xsaves, which is withheld'],
    [
      'host,+npt',
      'npt is a part of svm, and this host has vmx, not svm: its processor is GenuineIntel; leave out +npt',
    ],
    ['host,+vmx-pml', 'vmx-pml is a part of vmx, and this host has svm, not vmx: its processor is AuthenticAMD', amd],
    ['qemu64,+vmx,+vmx-pml', 'this host has svm, not vmx', amd],
    ['qemu64,+svm,-npt,+v-vmsave-vmload', 'v_vmsave_vmload cannot be had without npt, which is withheld', amd],
    ['host,-avic,+x2avic', 'x2avic cannot be had without avic', amd],
    ['host,-pause-filter,+pfthreshold', 'pfthreshold cannot be had without pausefilter', amd],
    ['host,-vmx-ept', 'does not let anybody choose what vmx offers', { ...intel, featureMsrs: [] }],
    ['host,+vmx-ept', 'does not offer vmx-ept to guests', { ...intel, featureMsrs: [] }],
  ])('%s', (spec, message, host = intel) => {
    expect(() => cpuOf(spec, host)).toThrow(ConfigError)
    expect(() => cpuOf(spec, host)).toThrow(message)
  })

  test('a host that cannot nest at all is told so', () => {
    const cpuid = cpuOf('host,-vmx').cpuid
    const problem =
      'vmx-pml is a part of vmx, and KVM on this host does not offer vmx to guests: it cannot nest; load kvm_intel'
    expect(() => cpuOf('host,+vmx-pml', { ...intel, cpuid })).toThrow(problem)
    expect(cpuOf('host,+vmx-pml,check', { ...intel, cpuid })).toMatchObject({ missing: ['vmx-pml'] })
  })
})
