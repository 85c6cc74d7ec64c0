import { type CpuModel, caches, QEMU_SOURCE, words } from './cpu-model.js'
import { KVM64_VMX } from './intel-vmx.js'

/** QEMU's caches of every model that has none of its own. */
export const COMMON_CACHES = caches(
  { size: 32, ways: 8 },
  { size: 32, ways: 8 },
  { size: 4096, ways: 16 },
  { size: 16384, ways: 16 },
)

/** What all of the models have. */
export const COMMON_FLAGS = words(
  'fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 pni cx16 syscall nx lm',
)

export const kvm64: CpuModel = {
  name: 'kvm64',
  vendor: 'generic',
  family: 15,
  model: 6,
  stepping: 1,
  brand: 'Common KVM processor',
  level: 0xd,
  extendedLevel: 0x80000008,
  flags: [...COMMON_FLAGS, 'vme'],
  vmx: KVM64_VMX,
  archCapabilities: [],
  caches: COMMON_CACHES,
  source: `${QEMU_SOURCE}, kvm64-v1`,
}

export const qemu64: CpuModel = {
  name: 'qemu64',
  vendor: 'generic',
  family: 15,
  model: 107,
  stepping: 1,
  brand: 'QEMU Virtual CPU version 2.5+',
  level: 0xd,
  extendedLevel: 0x8000000a,
  flags: [...COMMON_FLAGS, 'lahf_lm', 'svm'],
  // QEMU gives nothing with `qemu64,+vmx`: no KVM loads there.
  vmx: 'host',
  archCapabilities: [],
  caches: COMMON_CACHES,
  source: `${QEMU_SOURCE}, qemu64-v1`,
}
