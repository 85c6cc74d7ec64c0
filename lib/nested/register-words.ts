/** Registers that both control blocks have, in words. */
import { bitNames } from './bits.js'
import { exceptionName } from './events.js'

/** Intel SDM vol. 3, section 2.5 */
const CR0 = { PE: 0, MP: 1, EM: 2, TS: 3, ET: 4, NE: 5, WP: 16, AM: 18, NW: 29, CD: 30, PG: 31 } as const
const CR4 = {
  VME: 0,
  PVI: 1,
  TSD: 2,
  DE: 3,
  PSE: 4,
  PAE: 5,
  MCE: 6,
  PGE: 7,
  PCE: 8,
  OSFXSR: 9,
  OSXMMEXCPT: 10,
  UMIP: 11,
  LA57: 12,
  VMXE: 13,
  SMXE: 14,
  FSGSBASE: 16,
  PCIDE: 17,
  OSXSAVE: 18,
  KL: 19,
  SMEP: 20,
  SMAP: 21,
  PKE: 22,
  CET: 23,
  PKS: 24,
  UINTR: 25,
  LAM_SUP: 28,
  FRED: 32,
} as const
/** AMD APM vol. 2, section 3.1.7 */
const EFER = {
  SCE: 0,
  LME: 8,
  LMA: 10,
  NXE: 11,
  SVME: 12,
  LMSLE: 13,
  FFXSR: 14,
  TCE: 15,
  MCOMMIT: 17,
  INTWB: 18,
  UAIE: 20,
  AIBRSE: 21,
} as const
/** Intel SDM vol. 1, section 3.4.3; bit 1 is always 1. */
const RFLAGS = {
  CF: 0,
  PF: 2,
  AF: 4,
  ZF: 6,
  SF: 7,
  TF: 8,
  IF: 9,
  DF: 10,
  OF: 11,
  NT: 14,
  RF: 16,
  VM: 17,
  AC: 18,
  VIF: 19,
  VIP: 20,
  ID: 21,
} as const

export const cr0Text = (value: bigint): string => words(bitNames(CR0, value))
export const cr4Text = (value: bigint): string => words(bitNames(CR4, value))
export const eferText = (value: bigint): string => words(bitNames(EFER, value))

export function rflagsText(value: bigint): string {
  const iopl = (value >> 12n) & 3n
  return words([...bitNames(RFLAGS, value, 0x3002n), ...(iopl ? [`IOPL ${iopl}`] : [])])
}

/** Which exceptions exit. */
export function exceptionBitmapText(value: bigint): string {
  const vectors = [...Array(32).keys()].filter(n => (value >> BigInt(n)) & 1n)
  return words(vectors.map(exceptionName))
}

/** What a bitmap of names amounts to. */
export function words(names: readonly string[]): string {
  return names.length ? names.join(', ') : 'none'
}

/** Access rights as a VMCS has them: the descriptor's bits 7:0 and 15:12, and bit 16 (Intel SDM vol. 3, table 25-2). */
export function accessRightsText(rights: bigint): string {
  return (rights >> 16n) & 1n ? 'unusable' : segmentText(rights & 0xffn, (rights >> 12n) & 0xfn)
}

/** Attributes as a VMCB has them: 12 bits without a gap (AMD APM vol. 2, section 15.5.1). */
export function attributesText(attributes: bigint): string {
  return segmentText(attributes & 0xffn, attributes >> 8n)
}

/** `type`: bits 7:0 of a descriptor's second half above its base; `flags`: AVL, L, D/B, G. */
function segmentText(type: bigint, flags: bigint): string {
  if (((type >> 7n) & 1n) === 0n) return 'not present'
  const kind = (type >> 4n) & 1n ? ((type >> 3n) & 1n ? 'code' : 'data') : `system type ${type & 0xfn}`
  const size = flags & 2n ? '64-bit' : flags & 4n ? '32-bit' : '16-bit'
  return `${kind}, DPL ${(type >> 5n) & 3n}, ${size}${flags & 8n ? ', granular' : ''}`
}
