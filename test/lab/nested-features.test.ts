import { expect, it } from 'vitest'
import { factsOfModel, missingOf } from '../../lib/arch/x86_64/cpu-compare.js'
import { cpuHost } from '../../lib/arch/x86_64/cpu-host.js'
import { extensionWith, parseCpuSpec } from '../../lib/arch/x86_64/cpu-spec.js'
import { flagsOf } from '../../lib/arch/x86_64/cpuid.js'
import { machineCpu } from '../../lib/arch/x86_64/machine-cpu.js'
import { giveVmxMsrs } from '../../lib/arch/x86_64/vmx-cpu.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import { decodeCpuid } from '../../lib/kvm/tables.js'
import type { Vcpu } from '../../lib/kvm/vcpu.js'
import { WRITABLE_VMX_MSRS } from '../../lib/nested/vmx-capabilities.js'
import { vmxFeaturesOf } from '../../lib/nested/vmx-switch.js'
import { kvmProbe } from '../guests/kvm-probe.js'
import { station } from '../guests/l1-layout.js'
import { hostExtension, L1Run, undisturbed } from './l1-run.js'
import { BOOT, linuxMachine } from './linux.js'

const extension = hostExtension()
const quick = { rounds: 32, period: 16, nestedPaging: false, interrupt: 'none' } as const

/** What svm or vmx offers to a vCPU, as KVM has it. */
function offeredTo(vcpu: Vcpu): Set<string> {
  if (extension === 'svm') {
    return new Set(flagsOf(decodeCpuid(vcpu.configuredCpuid)).filter(flag => extensionWith(flag) === 'svm'))
  }
  return new Set(vmxFeaturesOf(new Map(vcpu.getMsrs(WRITABLE_VMX_MSRS).map(({ index, value }) => [index, value]))))
}

/** What it offers to guests of this host. */
function offeredHere(): string[] {
  using run = new L1Run(quick, 'host')
  return [...offeredTo(run.vcpu)]
}

/** What the small hypervisor cannot do without. */
const NEEDED: readonly string[] = [
  'vmx-intr-exit',
  'vmx-hlt-exit',
  'vmx-msr-bitmap',
  'vmx-exit-host-addr-space-size',
  'vmx-entry-ia32e-mode',
]

it('L2 runs with each feature switched off, and with all that can be', () => {
  const here = offeredHere()
  expect(here).toEqual(expect.arrayContaining(extension === 'svm' ? ['npt', 'vgif'] : ['vmx-ept', 'vmx-vpid']))
  const optional = here.filter(name => !NEEDED.includes(name))
  const paged = { ...quick, nestedPaging: true }
  const expected = { shadow: undisturbed(quick), nested: undisturbed(paged) }
  // Controls that must be 1 are so with their counterpart alone.
  const all = optional.filter(name => !/-exit-save-debugctl|-entry-load-debugctl|-cr3-(load|store)-exit/.test(name))
  const nested = (name: string) => !/^(npt|vmx-ept|vmx-secondary-ctls|vmx-page-walk-4|vmx-ept-wb)$/.test(name)
  for (const names of [...optional.map(name => [name]), all]) {
    const options = names.every(nested) ? paged : quick
    using run = new L1Run(options, `host${names.map(name => `,-${name}`).join('')}`)
    const left = offeredTo(run.vcpu)
    expect([names, names.filter(name => left.has(name))]).toEqual([names, []])
    expect([names, run.finish()]).toEqual([names, expected[options === paged ? 'nested' : 'shadow']])
  }
})

it('an L1 with less is saved in L2, and has no more where it is restored', () => {
  const cpu = extension === 'svm' ? 'host,-npt,-nrip-save' : 'host,-vmx-ept,-vmx-cr3-load-noexit'
  using run = new L1Run(quick, cpu)
  const before = offeredTo(run.vcpu)
  run.runTo(station.l2)
  run.move()
  expect(offeredTo(run.vcpu)).toEqual(before)
  expect(before).not.toContain(extension === 'svm' ? 'npt' : 'vmx-ept')
  expect(run.finish()).toBe(undisturbed(quick))
})

if (extension === 'vmx')
  it('a model has its own of vmx and no more, and L2 runs with that', () => {
    const paged = { ...quick, nestedPaging: true }
    for (const name of ['SandyBridge', 'Broadwell', 'SapphireRapids']) {
      const spec = parseCpuSpec(`${name},+vmx,check`)
      using run = new L1Run(paged, spec.text)
      const missing = missingOf(cpuHost(run.kvm), spec)
      const own = factsOfModel(spec).vmx!.filter(feature => !missing.includes(feature))
      expect([name, [...offeredTo(run.vcpu)]]).toEqual([name, own])
      expect([name, run.finish()]).toEqual([name, undisturbed(paged)])
    }
  })

if (extension === 'vmx')
  it('an MSR that KVM does not take is named, with its bits', () => {
    using kvm = Kvm.open()
    const { cpuid, vmxMsrs = [] } = machineCpu(cpuHost(kvm), parseCpuSpec('host'))
    using vm = kvm.createVm()
    using vcpu = vm.createVcpu(0)
    vcpu.setCpuid(cpuid)
    // No KVM has this one for L1: bit 18, EPT-violation #VE; nor enclv, whose name is known.
    const beyond = (1n << 50n) | (1n << 60n)
    const bad = vmxMsrs.map(m => (m.index === 0x48b ? { ...m, value: m.value | beyond } : m))
    expect(() => giveVmxMsrs(vcpu, { vmxMsrs: bad })).toThrow(
      /^KVM_SET_MSRS: EINVAL \(IA32_VMX_PROCBASED_CTLS2 \(0x48b\) is 0x\w+ and does not take 0x\w+: bit 50, vmx-enclv-exit \(bit 60\)\)$/,
    )
    // As a kernel does that makes some of it from CPUID: what was chosen is not what the vCPU has.
    const own = vmxMsrs.find(m => m.index === 0x48b)!
    const chosen = {
      vmxMsrs: [{ ...own, value: own.value & ~(2n << 32n) }, own],
      vmxSwitched: new Set(['vmx-ept', 'vmx-vpid']),
    }
    expect(() => giveVmxMsrs(vcpu, chosen)).toThrow(
      /KVM made IA32_VMX_PROCBASED_CTLS2 \(0x48b\) 0x\w+ of 0x\w+: it decides of vmx-ept itself/,
    )
    expect(() => giveVmxMsrs(vcpu, { ...chosen, vmxMsrs: [own] })).not.toThrow()
  })

const SVM_FLAGS = 'svm npt nrip_save decodeassists v_vmsave_vmload'.split(' ')
const MODULE = extension === 'svm' ? 'kvm_amd' : 'kvm_intel'

/** Boots a stock Linux as L1, whose KVM runs an L2; gives what it sees of its extension, and the parameters that its KVM made of that. */
async function linuxWith(cpu: string): Promise<{ flags: string[]; parameters: Record<string, boolean> }> {
  const names = Object.keys(extension === 'svm' ? SVM_PARAMETERS : VMX_PARAMETERS)
  const script = `
echo "saw=$(grep -m1 '${extension === 'svm' ? '^flags' : '^vmx flags'}' /proc/cpuinfo)."
for name in ${names.join(' ')}; do echo "$name=$(cat /sys/module/${MODULE}/parameters/$name)"; done
/probe
echo "ended with $?."
poweroff -f`
  const files = [{ type: 'file' as const, path: '/probe', data: kvmProbe(), mode: 0o755 }]
  await using machine = await linuxMachine(script, { cpu, modules: [MODULE], files })
  await machine.start()
  const { groups, before } = await machine.console.expect(/saw=([^.]*)\.([\s\S]*?)ended with (\d+)\./, BOOT)
  expect([cpu, before.includes('insmod'), groups[2]]).toEqual([cpu, false, '0'])
  expect(groups[1]).toContain('L2 runs.')
  expect(await machine.wait()).toEqual({ reason: 'shutdown' })
  const told = [...groups[1]!.matchAll(/^(\w+)=(\w)/gm)].map(([, name, value]) => [name!, /[Y1]/.test(value!)])
  const flags = groups[0]!.split(/\s+/)
  return {
    flags: extension === 'svm' ? flags.filter(flag => SVM_FLAGS.includes(flag)) : flags,
    parameters: Object.fromEntries(told),
  }
}

const SVM_PARAMETERS = { npt: true, vgif: true }
const VMX_PARAMETERS = {
  ...{ ept: true, unrestricted_guest: true, vpid: true, flexpriority: true, preemption_timer: true },
  ...{ enable_shadow_vmcs: true, pml: true, eptad: true },
}

const linux = { timeout: 2 * BOOT.timeout }

if (extension === 'svm')
  it('Linux as L1 sees which features of svm it has, and runs L2 with those', linux, async () => {
    const shadow = await linuxWith('host,-npt')
    expect(shadow).toEqual({ flags: ['svm'], parameters: { npt: false, vgif: true } })
    // A model's own: EPYC has no vgif, and this host no nrip_save.
    const model = await linuxWith('EPYC,+svm,check')
    expect(model).toEqual({ flags: ['svm', 'npt'], parameters: { npt: true, vgif: false } })
  })

if (extension === 'vmx')
  it('Linux as L1 sees what vmx offers it, and runs L2 with that', { timeout: 3 * BOOT.timeout }, async () => {
    // A model's own: Nehalem lacks some of what this host has.
    const model = await linuxWith('Nehalem,+vmx,check')
    const newer = { unrestricted_guest: false, enable_shadow_vmcs: false, pml: false, eptad: false }
    expect(model.parameters).toEqual({ ...VMX_PARAMETERS, ...newer })
    expect(model.flags).toEqual(expect.arrayContaining(['ept', 'vpid', 'vnmi', 'flexpriority', 'preemption_timer']))
    const later = [
      'unrestricted_guest',
      'ept_ad',
      'pml',
      'shadow_vmcs',
      'posted_intr',
      'vapic_reg',
      'vid',
      'tsc_scaling',
    ]
    expect(model.flags.filter(flag => later.includes(flag))).toEqual([])

    const shadow = await linuxWith('host,-vmx-ept,-vmx-vnmi,-vmx-preemption-timer')
    const gone = { ept: false, unrestricted_guest: false, pml: false, eptad: false, preemption_timer: false }
    expect(shadow.parameters).toEqual({ ...VMX_PARAMETERS, ...gone })
    expect(shadow.flags).toEqual(expect.arrayContaining(['vpid', 'flexpriority']))
    const flags = ['ept', 'ept_ad', 'ept_1gb', 'unrestricted_guest', 'pml', 'vnmi', 'preemption_timer']
    expect(shadow.flags.filter(flag => flags.includes(flag))).toEqual([])

    const restricted = await linuxWith('host,-vmx-unrestricted-guest,-vmx-vpid,-vmx-flexpriority,-vmx-shadow-vmcs')
    expect(restricted.parameters).toEqual({
      ...VMX_PARAMETERS,
      ...{ unrestricted_guest: false, vpid: false, flexpriority: false, enable_shadow_vmcs: false },
    })
    expect(restricted.flags).toEqual(expect.arrayContaining(['ept', 'pml', 'vnmi', 'preemption_timer']))
  })
