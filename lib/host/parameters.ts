import type { HostSystem } from './system.js'

/**
 * What a parameter is to nesting: nothing nests without it (`needed`); L2 is slower without it (`speed`); it is seen in what guests get or
 * in how they fail (`guest`); nothing (`none`).
 */
export type Bearing = 'needed' | 'speed' | 'guest' | 'none'

/** A parameter of `kvm`, `kvm_intel`, `kvm_amd` as it is set now. */
export interface KvmParameter {
  readonly module: string
  readonly name: string
  /** As the kernel prints it; null where this user may not read it. */
  readonly value: string | null
  /** What it does; null for one that is not known here. */
  readonly meaning: string | null
  readonly nesting: Bearing | null
}

type Table = Readonly<Record<string, readonly [Bearing, string]>>

// Linux: Documentation/admin-guide/kernel-parameters.txt (kvm.*, kvm-intel.*, kvm-amd.*), Documentation/virt/kvm/x86/running-nested-guests.rst,
// and the comments at each module_param in arch/x86/kvm/{x86.c,mmu/mmu.c,vmx/vmx.c,svm/svm.c} and virt/kvm/kvm_main.c.
const kvm: Table = {
  ignore_msrs: ['guest', 'answer unknown MSRs with 0 in place of a fault: some hypervisors in L1 need it'],
  report_ignored_msrs: ['none', 'log the MSRs that ignore_msrs ignores'],
  tdp_mmu: ['speed', 'the scalable page-table code for EPT and NPT of L1'],
  mmio_caching: ['speed', 'remember which pages are MMIO'],
  flush_on_reuse: ['none', 'flush remote TLBs when a page table is used anew'],
  eager_page_split: ['none', 'split huge pages when the dirty log is switched on, not at the write'],
  nx_huge_pages: ['speed', 'no executable huge pages (iTLB multihit): L1 and L2 have smaller pages'],
  nx_huge_pages_recovery_ratio: ['none', 'the share of split huge pages that is put together again at a time'],
  nx_huge_pages_recovery_period_ms: ['none', 'how often that is done'],
  halt_poll_ns: ['speed', 'how long a halted vCPU is polled for before it sleeps'],
  halt_poll_ns_grow: ['none', 'by what factor that time grows'],
  halt_poll_ns_grow_start: ['none', 'from what it grows'],
  halt_poll_ns_shrink: ['none', 'by what factor it shrinks'],
  min_timer_period_us: ['none', 'the shortest period of a guest timer'],
  kvmclock_periodic_sync: ['none', 'correct the drift of kvmclock now and then'],
  tsc_tolerance_ppm: ['guest', 'how far off a TSC frequency may be before it is scaled'],
  lapic_timer_advance: ['none', 'let the TSC-deadline timer come early enough to hide its cost'],
  lapic_timer_advance_ns: ['none', 'by how much (-1: found out as it runs)'],
  vector_hashing: ['none', 'spread lowest-priority interrupts by their vector'],
  enable_vmware_backdoor: ['guest', "VMware's I/O port; it intercepts #GP, which costs L1"],
  force_emulation_prefix: ['none', 'a prefix that has KVM emulate an instruction: for its tests'],
  pi_inject_timer: ['none', 'deliver timers by posted interrupts from another processor'],
  enable_pmu: ['guest', 'performance counters for guests'],
  mitigate_smt_rsb: ['none', 'mitigate cross-thread return predictions (AMD)'],
  allow_unsafe_mappings: [
    'guest',
    'map memory that is no page of the kernel, without notification; L1 control blocks may lie there',
  ],
  enable_virt_at_load: ['none', 'switch virtualization on when the module is loaded, not with the first VM'],
}

const kvmIntel: Table = {
  nested: ['needed', 'guests may have vmx'],
  ept: ['speed', 'extended page tables; without them KVM shadows, and L1 gets none either'],
  unrestricted_guest: ['speed', 'run real mode on the processor; L1 gets it for its L2s'],
  eptad: ['speed', 'accessed and dirty bits in EPT'],
  vpid: ['speed', 'tagged TLBs: no flush at each entry'],
  pml: ['none', 'the processor logs dirty pages'],
  enable_shadow_vmcs: ['speed', "L1's VMREAD and VMWRITE do not exit: the largest gain for L2"],
  nested_early_check: ['guest', 'have the processor check VMCS12 before L2 is entered: slow, for faults in L1'],
  enable_apicv: ['speed', 'the processor virtualizes the APIC'],
  enable_ipiv: ['speed', 'the processor delivers IPIs between vCPUs'],
  enable_device_posted_irqs: ['speed', 'devices that are passed through interrupt without an exit'],
  flexpriority: ['speed', 'the processor virtualizes the task priority'],
  preemption_timer: ['guest', "the APIC timer by VMX's own timer; L1 gets it too"],
  vnmi: ['guest', 'the processor virtualizes NMIs'],
  emulate_invalid_guest_state: ['guest', 'emulate what cannot be entered without unrestricted_guest'],
  fasteoi: ['none', 'decode writes to the EOI register quickly'],
  enlightened_vmcs: ['none', "use Hyper-V's VMCS, where this host is a guest of it"],
  allow_smaller_maxphyaddr: ['guest', 'guests may have fewer physical address bits than the host'],
  vmentry_l1d_flush: ['speed', 'flush the L1 data cache at entries (L1TF)'],
  ple_gap: ['none', 'PAUSE-loop exiting: the gap in a loop'],
  ple_window: ['none', 'how long a loop may go on'],
  ple_window_grow: ['none', 'how that grows'],
  ple_window_shrink: ['none', 'how that shrinks'],
  ple_window_max: ['none', 'its maximum'],
  sgx: ['guest', 'SGX for guests'],
  pt_mode: ['guest', 'Intel PT: of the host (0) or of guests too (1)'],
  tdx: ['none', 'trust domains, which cannot nest'],
  dump_invalid_vmcs: ['none', 'log a VMCS that the processor refuses'],
  error_on_inconsistent_vmcs_config: ['none', 'refuse to load where processors differ'],
}

const kvmAmd: Table = {
  nested: ['needed', 'guests may have svm'],
  npt: ['speed', 'nested page tables; without them KVM shadows, and L1 gets none either'],
  nrips: ['speed', 'the processor tells where the next instruction is; L1 gets it too'],
  vgif: ['speed', "L1's STGI and CLGI do not exit"],
  vls: ['speed', "L1's VMLOAD and VMSAVE do not exit"],
  lbrv: ['guest', 'last-branch records for guests'],
  tsc_scaling: ['guest', 'other TSC frequencies; needed to restore on a host of another frequency'],
  avic: ['speed', 'the processor virtualizes the APIC (not for L2)'],
  force_avic: ['none', 'AVIC although the processor does not announce it'],
  enable_ipiv: ['speed', 'the processor delivers IPIs between vCPUs'],
  enable_device_posted_irqs: ['speed', 'devices that are passed through interrupt without an exit'],
  vnmi: ['guest', 'the processor virtualizes NMIs'],
  intercept_smi: ['guest', 'SMIs exit'],
  pause_filter_count: ['none', 'how many PAUSEs may be before an exit'],
  pause_filter_count_grow: ['none', 'how that grows'],
  pause_filter_count_shrink: ['none', 'how that shrinks'],
  pause_filter_count_max: ['none', 'its maximum'],
  pause_filter_thresh: ['none', 'how far apart PAUSEs of one loop may be'],
  sev: ['none', 'encrypted guests, which cannot nest'],
  sev_es: ['none', 'with encrypted registers'],
  sev_snp: ['none', 'with memory integrity'],
  debug_swap: ['none', 'debug registers of encrypted guests'],
  ciphertext_hiding_asids: ['none', 'address-space ids with hidden ciphertext'],
  dump_invalid_vmcb: ['none', 'log a VMCB that the processor refuses'],
}

const tables: Readonly<Record<string, Table>> = { kvm, kvm_intel: kvmIntel, kvm_amd: kvmAmd }

/** Every parameter of the KVM modules that this kernel has, those of `vendor` modules too that are not known here. */
export function readParameters(system: HostSystem, vendor: readonly string[]): KvmParameter[] {
  const modules = [...new Set(['kvm', ...vendor])]
  return modules.flatMap(module => {
    const directory = `/sys/module/${module}/parameters`
    return system.list(directory).map(name => {
      const [nesting, meaning] = tables[module]?.[name] ?? [null, null]
      return { module, name, value: system.read(`${directory}/${name}`)?.trim() ?? null, meaning, nesting }
    })
  })
}
