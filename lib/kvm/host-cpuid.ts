import { addon } from './binding.js'

/** The registers that CPUID returns, unsigned 32-bit. */
export interface CpuidRegisters {
  eax: number
  ebx: number
  ecx: number
  edx: number
}

/**
 * The CPUID instruction on the processor that runs this process: what this host, itself perhaps a guest, is given. What
 * its KVM can give on is `kvm.supportedCpuid()` (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).
 */
export function hostCpuid(leaf: number, index = 0): CpuidRegisters {
  const [eax, ebx, ecx, edx] = addon.cpuid(leaf, index)
  return { eax, ebx, ecx, edx }
}

const HYPERVISOR_PRESENT = 1 << 31
const HYPERVISOR_LEAF = 0x4000_0000

/**
 * The signature in the hypervisor leaf (`KVMKVMKVM`, `TCGTCGTCGTCG`, `Microsoft Hv`, ...), or undefined on bare metal:
 * CPUID 0x40000000, where leaf 1 says that a hypervisor is there.
 */
export function hypervisorSignature(): string | undefined {
  if (!(hostCpuid(1).ecx & HYPERVISOR_PRESENT)) return undefined
  const { ebx, ecx, edx } = hostCpuid(HYPERVISOR_LEAF)
  const text = Buffer.from(Uint32Array.of(ebx, ecx, edx).buffer).toString('latin1')
  return text.replace(/\0+$/, '')
}
