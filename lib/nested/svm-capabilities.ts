/** What a processor's svm offers: CPUID leaf 0x8000000a (AMD APM vol. 3, appendix E.4.9). */
export interface SvmCapabilities {
  readonly revision: number
  /** How many address-space identifiers there are. */
  readonly asids: number
  /** Feature bits, undecoded. The names of the bits are flags of the CPU: `npt`, `nrip_save`, `vgif`, ... */
  readonly features: number
}

/** The leaf that tells of svm. */
export const SVM_LEAF = 0x8000000a

/** Decodes leaf 0x8000000a. */
export function decodeSvmLeaf(leaf: {
  readonly eax: number
  readonly ebx: number
  readonly edx: number
}): SvmCapabilities {
  return { revision: leaf.eax & 0xff, asids: leaf.ebx, features: leaf.edx }
}
