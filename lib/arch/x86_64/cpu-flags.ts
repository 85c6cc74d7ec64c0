import { VMX_DEPENDENCIES } from '../../nested/vmx-dependents.js'

/** The four registers that CPUID answers in. */
export type CpuidRegister = 'eax' | 'ebx' | 'ecx' | 'edx'

/** The bit of CPUID that tells of a feature. */
export interface FlagLocation {
  readonly leaf: number
  readonly index: number
  readonly register: CpuidRegister
  readonly bit: number
}

/**
 * CPU flags by the names of Linux's /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h), and where CPUID has them (Intel SDM
 * vol. 2A, CPUID; AMD APM vol. 3, appendix E). Intel and AMD have different bits for some: a flag may have several.
 */
export const CPU_FLAGS: ReadonlyMap<string, readonly FlagLocation[]> = table([
  [
    0x1,
    0,
    'edx',
    'fpu:0 vme:1 de:2 pse:3 tsc:4 msr:5 pae:6 mce:7 cx8:8 apic:9 sep:11 mtrr:12 pge:13 mca:14 cmov:15 pat:16 pse36:17 ' +
      'pn:18 clflush:19 dts:21 acpi:22 mmx:23 fxsr:24 sse:25 sse2:26 ss:27 ht:28 tm:29 ia64:30 pbe:31',
  ],
  [
    0x1,
    0,
    'ecx',
    'pni:0 pclmulqdq:1 dtes64:2 monitor:3 ds_cpl:4 vmx:5 smx:6 est:7 tm2:8 ssse3:9 cid:10 sdbg:11 fma:12 cx16:13 xtpr:14 ' +
      'pdcm:15 pcid:17 dca:18 sse4_1:19 sse4_2:20 x2apic:21 movbe:22 popcnt:23 tsc_deadline_timer:24 aes:25 xsave:26 ' +
      'avx:28 f16c:29 rdrand:30 hypervisor:31',
  ],
  [
    0x6,
    0,
    'eax',
    'dtherm:0 ida:1 arat:2 pln:4 pts:6 hwp:7 hwp_notify:8 hwp_act_window:9 hwp_epp:10 hwp_pkg_req:11 hfi:19',
  ],
  [0x6, 0, 'ecx', 'aperfmperf:0 epb:3'],
  [
    0x7,
    0,
    'ebx',
    'fsgsbase:0 tsc_adjust:1 sgx:2 bmi1:3 hle:4 avx2:5 smep:7 bmi2:8 erms:9 invpcid:10 rtm:11 cqm:12 mpx:14 rdt_a:15 ' +
      'avx512f:16 avx512dq:17 rdseed:18 adx:19 smap:20 avx512ifma:21 clflushopt:23 clwb:24 intel_pt:25 avx512pf:26 ' +
      'avx512er:27 avx512cd:28 sha_ni:29 avx512bw:30 avx512vl:31',
  ],
  [
    0x7,
    0,
    'ecx',
    'avx512vbmi:1 umip:2 pku:3 ospke:4 waitpkg:5 avx512_vbmi2:6 gfni:8 vaes:9 vpclmulqdq:10 avx512_vnni:11 ' +
      'avx512_bitalg:12 tme:13 avx512_vpopcntdq:14 la57:16 rdpid:22 bus_lock_detect:24 cldemote:25 movdiri:27 ' +
      'movdir64b:28 enqcmd:29 sgx_lc:30',
  ],
  [
    0x7,
    0,
    'edx',
    'avx512_4vnniw:2 avx512_4fmaps:3 fsrm:4 uintr:5 avx512_vp2intersect:8 srbds_ctrl:9 md_clear:10 rtm_always_abort:11 ' +
      'tsx_force_abort:13 serialize:14 hybrid_cpu:15 tsxldtrk:16 pconfig:18 ' +
      'arch_lbr:19 ibt:20 amx_bf16:22 avx512_fp16:23 amx_tile:24 amx_int8:25 ibrs:26 ibpb:26 stibp:27 flush_l1d:28 ' +
      'arch_capabilities:29 core_capabilities:30 ssbd:31',
  ],
  [
    0x7,
    1,
    'eax',
    'sha512:0 sm3:1 sm4:2 rao_int:3 avx_vnni:4 avx512_bf16:5 lass:6 cmpccxadd:7 arch_perfmon_ext:8 fzrm:10 fsrs:11 fsrc:12 ' +
      'fred:17 lkgs:18 wrmsrns:19 amx_fp16:21 hreset:22 avx_ifma:23 lam:26',
  ],
  [
    0x7,
    1,
    'edx',
    'avx_vnni_int8:4 avx_ne_convert:5 amx_complex:8 avx_vnni_int16:10 prefetchi:14 user_msr:15 avx10:19 apx_f:21',
  ],
  [0x7, 2, 'edx', 'intel_psfd:0 ipred_ctrl:1 rrsba_ctrl:2 ddpd_u:3 bhi_ctrl:4 mcdt_no:5'],
  [0xd, 1, 'eax', 'xsaveopt:0 xsavec:1 xgetbv1:2 xsaves:3 xfd:4'],
  [
    0x80000001,
    0,
    'edx',
    'syscall:11 mp:19 nx:20 mmxext:22 fxsr_opt:25 pdpe1gb:26 rdtscp:27 lm:29 3dnowext:30 3dnow:31',
  ],
  [
    0x80000001,
    0,
    'ecx',
    'lahf_lm:0 cmp_legacy:1 svm:2 extapic:3 cr8_legacy:4 abm:5 sse4a:6 misalignsse:7 3dnowprefetch:8 osvw:9 ibs:10 xop:11 ' +
      'skinit:12 wdt:13 lwp:15 fma4:16 tce:17 nodeid_msr:19 tbm:21 topoext:22 perfctr_core:23 perfctr_nb:24 bpext:26 ' +
      'ptsc:27 perfctr_llc:28 mwaitx:29',
  ],
  [0x80000007, 0, 'ebx', 'overflow_recov:0 succor:1 smca:3'],
  [0x80000007, 0, 'edx', 'hw_pstate:7 constant_tsc:8 nonstop_tsc:8 cpb:9 proc_feedback:11 acc_power:12 rapl:14'],
  [
    0x80000008,
    0,
    'ebx',
    'clzero:0 irperf:1 xsaveerptr:2 rdpru:4 wbnoinvd:9 ibpb:12 ibrs:14 stibp:15 stibp_always_on:17 ibrs_same_mode:19 ' +
      'amd_ppin:23 ssbd:24 virt_ssbd:25 amd_ssb_no:26 cppc:27 amd_psfd:28 btc_no:29 ibpb_ret:30 brs:31',
  ],
  [
    0x8000000a,
    0,
    'edx',
    'npt:0 lbrv:1 svm_lock:2 nrip_save:3 tsc_scale:4 vmcb_clean:5 flushbyasid:6 decodeassists:7 pausefilter:10 ' +
      'pfthreshold:12 avic:13 v_vmsave_vmload:15 vgif:16 x2avic:18 v_spec_ctrl:20 vnmi:25 svme_addr_chk:28 ' +
      'bus_lock_threshold:29 idle_hlt:30',
  ],
  [0x8000001f, 0, 'eax', 'sme:0 sev:1 sev_es:3'],
  [
    0x80000021,
    0,
    'eax',
    'no_nested_data_bp:0 lfence_always_serializing:2 null_sel_clr_base:6 autoibrs:8 no_smm_ctl_msr:9',
  ],
  [0x80000022, 0, 'eax', 'perfmon_v2:0 amd_lbr_v2:1'],
  // KVM's own, by QEMU's names (the kernel's Documentation/virt/kvm/x86/cpuid.rst)
  [
    0x40000001,
    0,
    'eax',
    'kvmclock-old:0 kvm-nopiodelay:1 kvm-mmu:2 kvmclock:3 kvm-asyncpf:4 kvm-steal-time:5 kvm-pv-eoi:6 kvm-pv-unhalt:7 ' +
      'kvm-pv-tlb-flush:9 kvm-asyncpf-vmexit:10 kvm-pv-ipi:11 kvm-poll-control:12 kvm-pv-sched-yield:13 ' +
      'kvm-asyncpf-int:14 kvm-msi-ext-dest-id:15 kvm-hc-map-gpa-range:16 kvm-migration-control:17 kvmclock-stable-bit:24',
  ],
])

/**
 * Flags that mean nothing without another one, and go with it when it is withheld (Intel SDM vol. 1, chapters 13 to 15; Linux
 * has the same list in arch/x86/kernel/cpu/cpuid-deps.c), and VMX capabilities, which are no flags of CPUID (`VMX_DEPENDENCIES`).
 */
export const CPU_FLAG_DEPENDENTS: ReadonlyMap<string, readonly string[]> = merged([
  ['fxsr', ['sse', 'fxsr_opt']],
  ['sse', ['sse2']],
  ['sse2', ['pni', 'aes', 'pclmulqdq', 'sha_ni', 'gfni']],
  ['pni', ['ssse3', 'sse4a']],
  ['ssse3', ['sse4_1']],
  ['sse4_1', ['sse4_2']],
  ['xsave', ['xsaveopt', 'xsavec', 'xgetbv1', 'xsaves', 'avx', 'pku', 'mpx', 'amx_tile']],
  ['avx', ['fma', 'f16c', 'avx2', 'xop', 'fma4', 'vaes', 'vpclmulqdq', 'avx_vnni']],
  ['avx2', ['avx512f']],
  ['avx512f', [...CPU_FLAGS.keys()].filter(name => name.startsWith('avx512') && name !== 'avx512f')],
  ['avx512bw', ['avx512vbmi', 'avx512_vbmi2', 'avx512_bitalg', 'avx512_fp16']],
  ['xsaves', ['xfd']],
  ['xgetbv1', ['xfd']],
  ['xfd', ['amx_tile']],
  ['amx_tile', ['amx_bf16', 'amx_int8']],
  ['svm', ['skinit', ...flagsOfLeaf(0x8000000a)]],
  // Linux, arch/x86/kvm/svm: svm_hardware_setup, avic_hardware_setup
  ['npt', ['v_vmsave_vmload', 'avic']],
  ['avic', ['x2avic']],
  ['pausefilter', ['pfthreshold']],
  ['pku', ['ospke']],
  ...VMX_DEPENDENCIES.map(({ base, dependents }) => [base, dependents] as const),
])

/** A base may stand in several rows. */
function merged(rows: readonly (readonly [string, readonly string[]])[]): ReadonlyMap<string, readonly string[]> {
  const all = new Map<string, readonly string[]>()
  for (const [base, dependents] of rows) all.set(base, [...new Set([...(all.get(base) ?? []), ...dependents])])
  return all
}

/** The flag names that live in one leaf. */
function flagsOfLeaf(leaf: number): string[] {
  return [...CPU_FLAGS].filter(([, locations]) => locations.some(l => l.leaf === leaf)).map(([name]) => name)
}

/** `row`: leaf, index, register and `name:bit` pairs. */
function table(rows: readonly (readonly [number, number, CpuidRegister, string])[]): Map<string, FlagLocation[]> {
  const flags = new Map<string, FlagLocation[]>()
  for (const [leaf, index, register, bits] of rows) {
    for (const pair of bits.split(' ')) {
      const [name, bit] = pair.split(':') as [string, string]
      const location = { leaf, index, register, bit: Number(bit) }
      const known = flags.get(name)
      if (known) known.push(location)
      else flags.set(name, [location])
    }
  }
  return flags
}
