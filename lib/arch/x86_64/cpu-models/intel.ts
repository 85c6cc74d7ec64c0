import { type CpuModel, QEMU_SOURCE, since, words } from './cpu-model.js'
import { COMMON_CACHES, kvm64 } from './generic.js'
import {
  BROADWELL_VMX,
  HASWELL_VMX,
  ICELAKE_SERVER_VMX,
  IVY_BRIDGE_VMX,
  NEHALEM_VMX,
  SAPPHIRE_RAPIDS_VMX,
  SKYLAKE_CLIENT_VMX,
  SKYLAKE_SERVER_VMX,
  WESTMERE_VMX,
} from './intel-vmx.js'

type Facts = Pick<CpuModel, 'name' | 'model' | 'stepping' | 'brand' | 'flags' | 'vmx'> & Partial<CpuModel>

function intel(facts: Facts): CpuModel {
  return {
    vendor: 'GenuineIntel',
    family: 6,
    level: 0xd,
    extendedLevel: 0x80000008,
    archCapabilities: [],
    caches: COMMON_CACHES,
    source: `${QEMU_SOURCE}, ${facts.name}-v1`,
    ...facts,
  }
}

const nehalem = intel({
  name: 'Nehalem',
  model: 26,
  stepping: 3,
  brand: 'Intel Core i7 9xx (Nehalem Class Core i7)',
  level: 0xb,
  flags: since(kvm64, 'ssse3 sse4_1 sse4_2 popcnt lahf_lm'),
  vmx: NEHALEM_VMX,
})

const westmere = intel({
  name: 'Westmere',
  model: 44,
  stepping: 1,
  brand: 'Westmere E56xx/L56xx/X56xx (Nehalem-C)',
  level: 0xb,
  flags: since(nehalem, 'pclmulqdq aes arat'),
  vmx: WESTMERE_VMX,
})

const sandyBridge = intel({
  name: 'SandyBridge',
  model: 42,
  stepping: 1,
  brand: 'Intel Xeon E312xx (Sandy Bridge)',
  flags: since(westmere, 'x2apic tsc_deadline_timer xsave avx xsaveopt rdtscp'),
  vmx: WESTMERE_VMX,
})

const ivyBridge = intel({
  name: 'IvyBridge',
  model: 58,
  stepping: 9,
  brand: 'Intel Xeon E3-12xx v2 (Ivy Bridge)',
  flags: since(sandyBridge, 'f16c rdrand fsgsbase smep erms'),
  vmx: IVY_BRIDGE_VMX,
})

const haswell = intel({
  name: 'Haswell',
  model: 60,
  stepping: 4,
  brand: 'Intel Core Processor (Haswell)',
  flags: since(ivyBridge, 'fma pcid movbe bmi1 hle avx2 bmi2 invpcid rtm abm'),
  vmx: HASWELL_VMX,
})

const broadwell = intel({
  name: 'Broadwell',
  model: 61,
  stepping: 2,
  brand: 'Intel Core Processor (Broadwell)',
  flags: since(haswell, 'rdseed adx smap 3dnowprefetch'),
  vmx: BROADWELL_VMX,
})

const skylakeClient = intel({
  name: 'Skylake-Client',
  model: 94,
  stepping: 3,
  brand: 'Intel Core Processor (Skylake)',
  flags: since(broadwell, 'xsavec xgetbv1'),
  vmx: SKYLAKE_CLIENT_VMX,
})

const skylakeServer = intel({
  name: 'Skylake-Server',
  model: 85,
  stepping: 4,
  brand: 'Intel Xeon Processor (Skylake)',
  flags: since(skylakeClient, 'avx512f avx512dq clflushopt clwb avx512cd avx512bw avx512vl pku pdpe1gb'),
  vmx: SKYLAKE_SERVER_VMX,
})

const cascadelakeServer = intel({
  name: 'Cascadelake-Server',
  model: 85,
  stepping: 6,
  brand: 'Intel Xeon Processor (Cascadelake)',
  flags: since(skylakeServer, 'avx512_vnni ibrs ibpb ssbd'),
  vmx: SKYLAKE_SERVER_VMX,
})

const icelakeServer = intel({
  name: 'Icelake-Server',
  model: 134,
  stepping: 0,
  brand: 'Intel Xeon Processor (Icelake)',
  flags: since(
    cascadelakeServer,
    'avx512vbmi umip avx512_vbmi2 gfni vaes vpclmulqdq avx512_bitalg avx512_vpopcntdq la57 wbnoinvd',
  ),
  vmx: ICELAKE_SERVER_VMX,
})

const sapphireRapids = intel({
  name: 'SapphireRapids',
  model: 143,
  stepping: 4,
  brand: 'Intel Xeon Processor (SapphireRapids)',
  level: 0x20,
  flags: since(
    icelakeServer,
    'avx512ifma sha_ni rdpid bus_lock_detect fsrm serialize tsxldtrk amx_bf16 avx512_fp16 amx_tile amx_int8 ' +
      'arch_capabilities avx_vnni avx512_bf16 fzrm fsrs fsrc xsaves xfd',
  ),
  archCapabilities: words('rdctl-no ibrs-all skip-l1dfl-vmentry mds-no pschange-mc-no taa-no'),
  vmx: SAPPHIRE_RAPIDS_VMX,
})

/** Oldest first. */
export const INTEL_MODELS: readonly CpuModel[] = [
  nehalem,
  westmere,
  sandyBridge,
  ivyBridge,
  haswell,
  broadwell,
  skylakeClient,
  skylakeServer,
  cascadelakeServer,
  icelakeServer,
  sapphireRapids,
]
