/**
 * What a VMX capability means nothing without: what VM entry refuses to turn on alone, and what tells of something that is not there.
 * QEMU (target/i386/cpu.c, feature_dependencies) has the part of it that concerns CPUID.
 */
import { VMX_MSRS } from './vmx-capabilities.js'
import { VMX_FEATURE_NAMES, VMX_FEATURES } from './vmx-features.js'

export interface VmxDependency {
  /** A VMX capability, or a CPU flag. */
  readonly base: string
  readonly dependents: readonly string[]
  /** Of the Intel SDM. */
  readonly source: string
}

/** VM entry refuses the dependent control where the base is 0. */
const ENTRY = 'vol. 3, 27.2.1.1'
/** "Only on processors that support" the instruction, register or state. */
const PROCESSOR = 'vol. 3, appendix A.1'
const TABLES = 'vol. 3, appendix A.10'

export const VMX_DEPENDENCIES: readonly VmxDependency[] = [
  depend('vmx', [...VMX_FEATURE_NAMES], PROCESSOR),
  // Without them, the controls of the default1 class are always 1.
  depend(
    'vmx-true-ctls',
    VMX_FEATURES.flatMap(({ optional }) => [...optional.values()]),
    'vol. 3, appendix A.2',
  ),
  depend('vmx-secondary-ctls', namesOf(VMX_MSRS.IA32_VMX_PROCBASED_CTLS2), 'vol. 3, appendix A.3.3'),
  depend('vmx-intr-exit', ['vmx-apicv-vid'], ENTRY),
  depend('vmx-nmi-exit', ['vmx-vnmi'], ENTRY),
  depend('vmx-vnmi', ['vmx-vnmi-pending'], ENTRY),
  depend('vmx-flexpriority', ['vmx-apicv-x2apic', 'vmx-apicv-register', 'vmx-apicv-vid'], ENTRY),
  depend('vmx-apicv-vid', ['vmx-posted-intr'], ENTRY),
  depend('vmx-exit-ack-intr', ['vmx-posted-intr'], ENTRY),
  depend('vmx-ept', ['vmx-unrestricted-guest', 'vmx-pml', 'vmx-eptp-switching'], ENTRY),
  depend('vmx-preemption-timer', ['vmx-exit-save-preemption-timer'], 'vol. 3, 27.2.1.2'),
  depend('vmx-store-lma', ['vmx-unrestricted-guest'], 'vol. 3, appendix A.6'),
  depend(
    'vmx-ept',
    namesOf(VMX_MSRS.IA32_VMX_EPT_VPID_CAP).filter(name => !name.startsWith('vmx-invvpid')),
    TABLES,
  ),
  depend('vmx-eptad', ['vmx-pml'], 'vol. 3, 29.3.6'),
  depend('vmx-invept', ['vmx-invept-single-context', 'vmx-invept-all-context'], TABLES),
  depend('vmx-vpid', ['vmx-invvpid'], TABLES),
  depend(
    'vmx-invvpid',
    namesOf(VMX_MSRS.IA32_VMX_EPT_VPID_CAP).filter(name => name.startsWith('vmx-invvpid-')),
    TABLES,
  ),
  depend('vmx-vmfunc', ['vmx-eptp-switching'], 'vol. 3, appendix A.11'),
  depend('lm', ['vmx-entry-ia32e-mode', 'vmx-exit-host-addr-space-size'], PROCESSOR),
  depend('rdtscp', ['vmx-rdtscp-exit'], PROCESSOR),
  depend('invpcid', ['vmx-invpcid-exit'], PROCESSOR),
  depend('rdrand', ['vmx-rdrand-exit'], PROCESSOR),
  depend('rdseed', ['vmx-rdseed-exit'], PROCESSOR),
  depend('xsaves', ['vmx-xsaves'], PROCESSOR),
  depend('waitpkg', ['vmx-enable-user-wait-pause'], PROCESSOR),
  // KVM itself sees to these two when CPUID is set (nested_vmx_entry_exit_ctls_update).
  depend('mpx', ['vmx-exit-clear-bndcfgs', 'vmx-entry-load-bndcfgs'], PROCESSOR),
  depend('sgx', ['vmx-encls-exit', 'vmx-enclv-exit'], PROCESSOR),
  depend('intel_pt', ['vmx-intel-pt', 'vmx-exit-clear-rtit-ctl', 'vmx-entry-load-rtit-ctl'], PROCESSOR),
  depend('fred', ['vmx-entry-load-fred', 'vmx-nested-exception'], PROCESSOR),
]

function depend(base: string, dependents: readonly string[], source: string): VmxDependency {
  return { base, dependents, source }
}

function namesOf(msr: number): string[] {
  return [...VMX_FEATURES.find(word => word.msr === msr)!.names.values()]
}
