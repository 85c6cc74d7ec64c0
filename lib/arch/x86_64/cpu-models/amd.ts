import { type CpuModel, caches, QEMU_SOURCE, since } from './cpu-model.js'
import { COMMON_CACHES, kvm64 } from './generic.js'

type Facts = Omit<CpuModel, 'vendor' | 'vmx' | 'archCapabilities' | 'source'>

function amd(facts: Facts): CpuModel {
  return { vendor: 'AuthenticAMD', vmx: [], archCapabilities: [], source: `${QEMU_SOURCE}, ${facts.name}-v1`, ...facts }
}

const opteronG3 = amd({
  name: 'Opteron_G3',
  family: 16,
  model: 2,
  stepping: 3,
  brand: 'AMD Opteron 23xx (Gen 3 Class Opteron)',
  level: 5,
  extendedLevel: 0x80000008,
  flags: since(kvm64, 'monitor popcnt rdtscp lahf_lm svm abm sse4a misalignsse'),
  caches: COMMON_CACHES,
})

const epyc = amd({
  name: 'EPYC',
  family: 23,
  model: 1,
  stepping: 2,
  brand: 'AMD EPYC Processor',
  level: 0xd,
  extendedLevel: 0x8000001e,
  flags: since(
    opteronG3,
    'pclmulqdq ssse3 fma sse4_1 sse4_2 movbe aes xsave avx f16c rdrand arat fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap ' +
      'clflushopt sha_ni xsaveopt xsavec xgetbv1 mmxext fxsr_opt pdpe1gb cr8_legacy 3dnowprefetch osvw topoext npt nrip_save',
  ),
  caches: caches({ size: 32, ways: 8 }, { size: 64, ways: 4 }, { size: 512, ways: 8 }, { size: 8192, ways: 16 }),
})

const epycRome = amd({
  name: 'EPYC-Rome',
  family: 23,
  model: 49,
  stepping: 0,
  brand: 'AMD EPYC-Rome Processor',
  level: 0xd,
  extendedLevel: 0x8000001e,
  flags: since(epyc, 'clwb umip rdpid ibpb stibp xsaves perfctr_core clzero xsaveerptr wbnoinvd'),
  caches: caches({ size: 32, ways: 8 }, { size: 32, ways: 8 }, { size: 512, ways: 8 }, { size: 16384, ways: 16 }),
})

const epycMilan = amd({
  name: 'EPYC-Milan',
  family: 25,
  model: 1,
  stepping: 1,
  brand: 'AMD EPYC-Milan Processor',
  level: 0xd,
  extendedLevel: 0x8000001e,
  flags: since(epycRome, 'pcid erms invpcid pku fsrm ibrs ssbd svme_addr_chk'),
  caches: caches({ size: 32, ways: 8 }, { size: 32, ways: 8 }, { size: 512, ways: 8 }, { size: 32768, ways: 16 }),
})

const epycGenoa = amd({
  name: 'EPYC-Genoa',
  family: 25,
  model: 17,
  stepping: 0,
  brand: 'AMD EPYC-Genoa Processor',
  level: 0xd,
  extendedLevel: 0x80000022,
  flags: since(
    epycMilan,
    'avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512vbmi avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni ' +
      'avx512_bitalg avx512_vpopcntdq la57 avx512_bf16 stibp_always_on amd_psfd vnmi no_nested_data_bp ' +
      'lfence_always_serializing null_sel_clr_base autoibrs',
  ),
  caches: caches({ size: 32, ways: 8 }, { size: 32, ways: 8 }, { size: 1024, ways: 8 }, { size: 32768, ways: 16 }),
})

/** Oldest first. */
export const AMD_MODELS: readonly CpuModel[] = [opteronG3, epyc, epycRome, epycMilan, epycGenoa]
