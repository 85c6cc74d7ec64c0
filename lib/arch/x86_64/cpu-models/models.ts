import { AMD_MODELS } from './amd.js'
import type { CpuModel } from './cpu-model.js'
import { kvm64, qemu64 } from './generic.js'
import { INTEL_MODELS } from './intel.js'

/** The models that a guest may be given by name, besides `host`. */
export const CPU_MODELS: readonly CpuModel[] = [qemu64, kvm64, ...INTEL_MODELS, ...AMD_MODELS]

export function findCpuModel(name: string): CpuModel | undefined {
  return CPU_MODELS.find(model => model.name === name)
}
