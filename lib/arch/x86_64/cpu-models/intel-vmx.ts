/**
 * What vmx offers on each generation, as QEMU's models have it (target/i386/cpu.c, builtin_x86_defs, FEAT_VMX_*), version 1 of each;
 * what of it is told in CPUID as well (RDTSCP, say) a model only has with that flag. QEMU's words leave to others what is here by name:
 * that a control of the default1 class may be 1, EPT's memory type, and 64-bit hosts (target/i386/kvm/kvm.c, kvm_msr_entry_add_vmx).
 */
import { words } from './cpu-model.js'

function vmx(text: string): string[] {
  return words(text).map(name => `vmx-${name}`)
}

function but(older: readonly string[], text: string): string[] {
  const gone = vmx(text)
  return older.filter(name => !gone.includes(name))
}

/** Prescott: no secondary controls, and with that no EPT. */
export const KVM64_VMX = vmx(
  'intr-exit nmi-exit vintr-pending tsc-offset hlt-exit invlpg-exit mwait-exit rdpmc-exit rdtsc-exit cr3-load-exit ' +
    'cr3-store-exit cr8-load-exit cr8-store-exit flexpriority movdr-exit io-exit io-bitmap monitor-exit pause-exit ' +
    'exit-save-debugctl exit-host-addr-space-size exit-ack-intr entry-load-debugctl entry-ia32e-mode activity-hlt',
)

export const NEHALEM_VMX = [
  ...KVM64_VMX,
  ...vmx(
    'ins-outs true-ctls vnmi preemption-timer cr3-load-noexit cr3-store-noexit vnmi-pending mtf msr-bitmap secondary-ctls ' +
      'apicv-xapic ept desc-exit rdtscp-exit apicv-x2apic vpid wbinvd-exit exit-nosave-debugctl exit-load-perf-global-ctrl ' +
      'exit-save-pat exit-load-pat exit-save-efer exit-load-efer exit-save-preemption-timer entry-noload-debugctl ' +
      'entry-load-perf-global-ctrl entry-load-pat entry-load-efer ept-execonly page-walk-4 ept-wb ept-2mb ept-1gb invept ' +
      'invept-single-context invept-all-context invvpid invvpid-single-addr invvpid-single-context invvpid-all-context ' +
      'invvpid-single-context-noglobals',
  ),
]

export const WESTMERE_VMX = [...NEHALEM_VMX, ...vmx('unrestricted-guest store-lma')]

export const IVY_BRIDGE_VMX = [...WESTMERE_VMX, ...vmx('posted-intr apicv-register apicv-vid rdrand-exit')]

export const HASWELL_VMX = [
  ...IVY_BRIDGE_VMX,
  ...vmx('invpcid-exit vmfunc shadow-vmcs vmwrite-vmexit-fields eptad eptp-switching'),
]

export const BROADWELL_VMX = [...HASWELL_VMX, ...vmx('rdseed-exit pml')]

export const SKYLAKE_CLIENT_VMX = but(BROADWELL_VMX, 'posted-intr apicv-x2apic apicv-register apicv-vid')

export const SKYLAKE_SERVER_VMX = but(BROADWELL_VMX, 'eptp-switching')

export const ICELAKE_SERVER_VMX = but(SKYLAKE_SERVER_VMX, 'rdseed-exit pml')

export const SAPPHIRE_RAPIDS_VMX = [...SKYLAKE_SERVER_VMX, ...vmx('xsaves page-walk-5 eptp-switching')]
