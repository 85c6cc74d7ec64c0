/** What vmx offers to a guest: the capability MSRs of its vCPUs. */
import { ConfigError, KvmError } from '../../errors.js'
import type { Msr } from '../../kvm/structs.js'
import type { Vcpu } from '../../kvm/vcpu.js'
import { WRITABLE_VMX_MSRS } from '../../nested/vmx-capabilities.js'
import { VMX_FEATURE_NAMES } from '../../nested/vmx-features.js'
import {
  impossibleControls,
  vmxBitNames,
  vmxFeaturesOf,
  vmxMsrName,
  withoutNamelessVmx,
  withoutVmxFeatures,
} from '../../nested/vmx-switch.js'
import type { HostFeatures } from './compatibility.js'
import type { CpuSpec } from './cpu-spec.js'
import { withDependents } from './cpuid.js'

/** What of a machine's processor concerns vmx. */
export interface VmxCpu {
  readonly vmxMsrs?: readonly Msr[]
  readonly vmxSwitched?: ReadonlySet<string>
}

/** Whether KVM on this host lets user space choose what vmx offers (Linux 4.17). */
export function choosesVmx({ featureMsrs }: Pick<HostFeatures, 'featureMsrs'>): boolean {
  return featureMsrs.some(({ index }) => WRITABLE_VMX_MSRS.includes(index))
}

/**
 * The capabilities that KVM on this host offers, without `withheld` and what depends on it.
 * @param exact nor has the guest what has no name yet, and KVM must have taken all
 * @throws {ConfigError} `cpu`: this KVM does not let user space choose, or a control could be neither on nor off
 */
export function vmxCpu(
  { featureMsrs }: Pick<HostFeatures, 'featureMsrs'>,
  spec: Pick<CpuSpec, 'text' | 'model' | 'demanded' | 'withheld'>,
  withheld: ReadonlySet<string>,
  exact = false,
): VmxCpu {
  const offered = new Map(
    featureMsrs.filter(({ index }) => WRITABLE_VMX_MSRS.includes(index)).map(({ index, value }) => [index, value]),
  )
  const chosen = spec.withheld.find(name => VMX_FEATURE_NAMES.has(name))
  if (chosen && offered.size === 0) {
    const problem = `KVM on this host does not let anybody choose what vmx offers: it has no feature MSRs`
    throw new ConfigError('cpu', spec.text, problem, `leave out -${chosen}, or use Linux 4.17 or newer`)
  }
  const left = withoutVmxFeatures(offered, withheld)
  const cut = exact ? withoutNamelessVmx(left) : left
  const before = new Set(impossibleControls(offered))
  const control = impossibleControls(cut).find(name => !before.has(name))
  if (control !== undefined) throw neitherOnNorOff(control, spec)
  const switched = exact
    ? [...VMX_FEATURE_NAMES]
    : [...spec.demanded, ...withheld].filter(name => VMX_FEATURE_NAMES.has(name))
  return {
    vmxMsrs: [...cut].map(([index, value]) => ({ index, value })),
    ...(switched.length > 0 && { vmxSwitched: new Set(switched) }),
  }
}

function neitherOnNorOff(
  control: string,
  { text, model, withheld }: Pick<CpuSpec, 'text' | 'model' | 'withheld'>,
): ConfigError {
  const problem = `${control} would be neither on nor off: `
  if (model === 'host' || withDependents(withheld).has(control)) {
    const remedy = `leave out -${control}, or what makes it be on always`
    return new ConfigError('cpu', text, `${problem}it is withheld, and cannot be left out either`, remedy)
  }
  const why = `${model.name} does not have it, and KVM on this host has it on always`
  return new ConfigError('cpu', text, problem + why, `add +${control}`)
}

/**
 * Gives a vCPU its capabilities, after its CPUID and before it is in VMX operation.
 * @throws {KvmError} KVM refuses an MSR, or changes what was chosen: names the MSR and the bits
 */
export function giveVmxMsrs(vcpu: Vcpu, { vmxMsrs = [], vmxSwitched }: VmxCpu): void {
  for (const { index, value } of vmxMsrs) {
    try {
      vcpu.setMsrs([{ index, value }])
    } catch (error) {
      if (!(error instanceof KvmError)) throw error
      const now = vcpu.getMsrs([index])[0]!.value
      const bits = vmxBitNames(index, now ^ value).join(', ')
      throw new KvmError(
        error.ioctl,
        error.errno,
        `${place(index)} is ${hex(now)} and does not take ${hex(value)}: ${bits}`,
      )
    }
  }
  if (!vmxSwitched) return
  // Some kernels make some of it from CPUID, whatever was written (nested_vmx_entry_exit_ctls_update).
  for (const { index, value } of vmxMsrs) {
    const has = vcpu.getMsrs([index])[0]!.value
    const wrong = [...vmxSwitched].filter(name => told(index, has).has(name) !== told(index, value).has(name))
    if (wrong.length === 0) continue
    throw new KvmError(
      'KVM_SET_MSRS',
      EINVAL,
      `KVM made ${place(index)} ${hex(has)} of ${hex(value)}: it decides of ${wrong.join(', ')} itself`,
    )
  }
}

const EINVAL = 22

function told(index: number, value: bigint): ReadonlySet<string> {
  return new Set(vmxFeaturesOf(new Map([[index, value]])))
}

function place(index: number): string {
  return `${vmxMsrName(index)} (0x${index.toString(16)})`
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`
}
