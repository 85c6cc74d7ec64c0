/**
 * What VMX offers, by the names that QEMU gives the bits of the capability MSRs (target/i386/cpu.c), which are the usual ones
 * (Intel SDM vol. 3, appendix A). `vmx-invept-single-context` and its like follow the SDM where QEMU has one name twice.
 */
import { VMX_MSRS } from './vmx-capabilities.js'

export interface VmxFeatureWord {
  readonly msr: number
  /** Capabilities of controls have what may be 1 in their high half; the others are plain bits. */
  readonly kind: 'control' | 'bits'
  readonly names: ReadonlyMap<number, string>
  /**
   * Names of "this control may be 0 as well", by its bit: of the controls that were always 1 once, the default1 class (Intel SDM vol. 3,
   * A.2). All others with a name may be 0 on any processor.
   */
  readonly optional: ReadonlyMap<number, string>
}

export const VMX_FEATURES: readonly VmxFeatureWord[] = [
  word(VMX_MSRS.IA32_VMX_BASIC, 'bits', '54:ins-outs 55:true-ctls 56:any-errcode 58:nested-exception'),
  word(
    VMX_MSRS.IA32_VMX_TRUE_PINBASED_CTLS,
    'control',
    '0:intr-exit 3:nmi-exit 5:vnmi 6:preemption-timer 7:posted-intr',
  ),
  word(
    VMX_MSRS.IA32_VMX_TRUE_PROCBASED_CTLS,
    'control',
    '2:vintr-pending 3:tsc-offset 7:hlt-exit 9:invlpg-exit 10:mwait-exit 11:rdpmc-exit 12:rdtsc-exit 15:cr3-load-exit ' +
      '16:cr3-store-exit 17:tertiary-ctls 19:cr8-load-exit 20:cr8-store-exit 21:flexpriority 22:vnmi-pending 23:movdr-exit ' +
      '24:io-exit 25:io-bitmap 27:mtf 28:msr-bitmap 29:monitor-exit 30:pause-exit 31:secondary-ctls',
    '15:cr3-load-noexit 16:cr3-store-noexit',
  ),
  word(
    VMX_MSRS.IA32_VMX_PROCBASED_CTLS2,
    'control',
    '0:apicv-xapic 1:ept 2:desc-exit 3:rdtscp-exit 4:apicv-x2apic 5:vpid 6:wbinvd-exit 7:unrestricted-guest ' +
      '8:apicv-register 9:apicv-vid 10:ple 11:rdrand-exit 12:invpcid-exit 13:vmfunc 14:shadow-vmcs 15:encls-exit ' +
      '16:rdseed-exit 17:pml 20:xsaves 25:tsc-scaling 26:enable-user-wait-pause 28:enclv-exit 30:bus-lock-detection ' +
      '31:instruction-timeout',
  ),
  word(
    VMX_MSRS.IA32_VMX_TRUE_EXIT_CTLS,
    'control',
    '2:exit-save-debugctl 9:exit-host-addr-space-size 12:exit-load-perf-global-ctrl 15:exit-ack-intr 18:exit-save-pat ' +
      '19:exit-load-pat 20:exit-save-efer 21:exit-load-efer 22:exit-save-preemption-timer 23:exit-clear-bndcfgs ' +
      '25:exit-clear-rtit-ctl 28:exit-load-cet-ctl 29:exit-load-pkrs 31:exit-secondary-ctls',
    '2:exit-nosave-debugctl',
  ),
  word(
    VMX_MSRS.IA32_VMX_TRUE_ENTRY_CTLS,
    'control',
    '2:entry-load-debugctl 9:entry-ia32e-mode 13:entry-load-perf-global-ctrl 14:entry-load-pat 15:entry-load-efer ' +
      '16:entry-load-bndcfgs 18:entry-load-rtit-ctl 20:entry-load-cet-ctl 22:entry-load-pkrs 23:entry-load-fred',
    '2:entry-noload-debugctl',
  ),
  word(
    VMX_MSRS.IA32_VMX_MISC,
    'bits',
    '5:store-lma 6:activity-hlt 7:activity-shutdown 8:activity-wait-sipi 14:intel-pt 15:rdmsr-smbase 28:smi-blocking ' +
      '29:vmwrite-vmexit-fields 30:zero-len-inject',
  ),
  word(
    VMX_MSRS.IA32_VMX_EPT_VPID_CAP,
    'bits',
    '0:ept-execonly 6:page-walk-4 7:page-walk-5 8:ept-uc 14:ept-wb 16:ept-2mb 17:ept-1gb 20:invept 21:eptad ' +
      '22:ept-advanced-exitinfo 23:ept-supervisor-shadow-stack 25:invept-single-context 26:invept-all-context 32:invvpid ' +
      '40:invvpid-single-addr 41:invvpid-single-context 42:invvpid-all-context 43:invvpid-single-context-noglobals',
  ),
  word(VMX_MSRS.IA32_VMX_VMFUNC, 'bits', '0:eptp-switching'),
]

/** All of the names. */
export const VMX_FEATURE_NAMES: ReadonlySet<string> = new Set(
  VMX_FEATURES.flatMap(({ names, optional }) => [...names.values(), ...optional.values()]),
)

/** The bits of an MSR that are parts of numbers (Intel SDM vol. 3, appendices A.1 and A.6). */
export function numericVmxBits(msr: number): bigint {
  // BASIC: revision, size, memory type. MISC: timer rate, CR3-target values, length of MSR lists, MSEG revision.
  if (msr === VMX_MSRS.IA32_VMX_BASIC) return 0x003f_1fff_7fff_ffffn
  return msr === VMX_MSRS.IA32_VMX_MISC ? 0xffff_ffff_0fff_001fn : 0n
}

function word(msr: number, kind: 'control' | 'bits', names: string, optional = ''): VmxFeatureWord {
  return { msr, kind, names: bitNames(names), optional: bitNames(optional) }
}

function bitNames(text: string): ReadonlyMap<number, string> {
  const pairs = text.split(' ').filter(pair => pair !== '')
  return new Map(
    pairs.map(pair => {
      const [bit, name] = pair.split(':') as [string, string]
      return [Number(bit), `vmx-${name}`] as const
    }),
  )
}
