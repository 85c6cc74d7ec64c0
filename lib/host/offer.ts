import type { Extension } from './modules.js'

/** The extensions in a CPUID table (KVM_GET_SUPPORTED_CPUID: what guests can have). */
export function offeredExtensions(cpuid: readonly { function: number; ecx: number }[]): Extension[] {
  const ecx = (leaf: number) => cpuid.find(entry => entry.function === leaf)?.ecx ?? 0
  const found: Extension[] = []
  // Intel SDM vol. 2, CPUID leaf 1: ECX bit 5 is VMX. AMD APM vol. 3, leaf 0x80000001: ECX bit 2 is SVM.
  if (ecx(0x1) & (1 << 5)) found.push('vmx')
  if (ecx(0x8000_0001) & (1 << 2)) found.push('svm')
  return found
}
