/** What the KVM of this host can give its guests, as far as it keeps its word. */
import { KvmError } from '../../errors.js'
import { cap } from '../../kvm/capabilities.js'
import type { Kvm } from '../../kvm/kvm.js'
import type { CpuidEntry, Msr } from '../../kvm/structs.js'
import { ARCH_CAPABILITIES } from './arch-capabilities.js'
import type { HostFeatures } from './compatibility.js'
import { clearFlag } from './cpuid.js'

/** What of a host decides which CPU its guests can have. */
export interface CpuHost extends HostFeatures {
  /** KVM_CAP_TSC_DEADLINE_TIMER */
  readonly tscDeadlineTimer: boolean
}

/**
 * What this host's KVM can give: KVM_GET_SUPPORTED_CPUID and the feature MSRs, without IA32_ARCH_CAPABILITIES where KVM tells of it and
 * then refuses it.
 */
export function cpuHost(kvm: Kvm): CpuHost {
  const cpuid = kvm.supportedCpuid()
  const featureMsrs = kvm.getFeatureMsrs(kvm.featureMsrIndices())
  const tscDeadlineTimer = kvm.checkExtension(cap.TSC_DEADLINE_TIMER) > 0
  const told = featureMsrs.find(({ index, value }) => index === ARCH_CAPABILITIES && value !== 0n)
  if (!told || takes(kvm, cpuid, told)) return { cpuid, featureMsrs, tscDeadlineTimer }
  clearFlag(cpuid, 'arch_capabilities')
  return { cpuid, featureMsrs: featureMsrs.filter(msr => msr !== told), tscDeadlineTimer }
}

/** Whether a vCPU with all that KVM reports can be given `msr`: it is asked for by trying, as there is no other way. */
function takes(kvm: Kvm, cpuid: readonly CpuidEntry[], msr: Msr): boolean {
  using vm = kvm.createVm()
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid(cpuid)
  try {
    vcpu.setMsrs([msr])
    return true
  } catch (error) {
    if (error instanceof KvmError) return false
    throw error
  }
}
