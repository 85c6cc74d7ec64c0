/** The control area of a VMCB as named bits (AMD APM vol. 2, appendix B, table B-1). */
import { bitNames } from './bits.js'
import type { Vmcb12 } from './vmcb12.js'

/**
 * The names of intercepts, which are those of their exit codes as well (AMD APM vol. 2, appendix C): bit n of vector 3 is exit
 * code 0x60 + n, of vector 4 it is 0x80 + n, of vector 5 0xa0 + n.
 */
const VECTOR3 =
  'INTR NMI SMI INIT VINTR CR0_SEL_WRITE IDTR_READ GDTR_READ LDTR_READ TR_READ IDTR_WRITE GDTR_WRITE LDTR_WRITE TR_WRITE ' +
  'RDTSC RDPMC PUSHF POPF CPUID RSM IRET SWINT INVD PAUSE HLT INVLPG INVLPGA IOIO MSR TASK_SWITCH FERR_FREEZE SHUTDOWN'
const VECTOR4 =
  'VMRUN VMMCALL VMLOAD VMSAVE STGI CLGI SKINIT RDTSCP ICEBP WBINVD MONITOR MWAIT MWAIT_CONDITIONAL XSETBV RDPRU EFER_WRITE_TRAP'
const VECTOR5 = 'INVLPGB INVLPGB_ILLEGAL INVPCID MCOMMIT TLBSYNC BUSLOCK IDLE_HLT'

function table(names: string): Record<string, number> {
  return Object.fromEntries(names.split(' ').map((name, bit) => [name, bit]))
}

const crWriteTraps = Object.fromEntries(Array.from({ length: 16 }, (_, n) => [`CR${n}_WRITE_TRAP`, 16 + n]))

export const INTERCEPTS = {
  interceptVector3: table(VECTOR3),
  interceptVector4: { ...table(VECTOR4), ...crWriteTraps },
  interceptVector5: table(VECTOR5),
} as const

/** Offset 060h; V_TPR is bits 7:0, V_INTR_PRIO bits 19:16. */
export const VIRTUAL_INTERRUPT = {
  V_IRQ: 8,
  VGIF: 9,
  V_NMI: 11,
  V_NMI_MASK: 12,
  V_IGN_TPR: 20,
  V_INTR_MASKING: 24,
  'VGIF enabled': 25,
  V_NMI_ENABLE: 26,
  'x2AVIC enable': 30,
  'AVIC enable': 31,
} as const
const V_TPR = 0xffn
const V_INTR_PRIO = 0xfn << 16n

/** Offset 090h */
export const NESTED_CONTROL = {
  NP_ENABLE: 0,
  'enable SEV': 1,
  'enable SEV-ES': 2,
  'guest mode execute trap': 3,
  SSSCheckEn: 4,
  'virtual transparent encryption': 5,
  'enable read-only guest page tables': 6,
  'enable INVLPGB/TLBSYNC': 7,
} as const

/** Offset 0B8h */
export const VIRTUALIZATION_EXTENSIONS = {
  LBR_VIRTUALIZATION_ENABLE: 0,
  'virtualized VMSAVE/VMLOAD': 1,
  'IBS virtualization': 2,
  'PMC virtualization': 3,
} as const

/** Offset 068h */
export const INTERRUPT_SHADOW = { INTERRUPT_SHADOW: 0, GUEST_INTERRUPT_MASK: 1 } as const

/** Offset 0C0h (AMD APM vol. 2, section 15.15.3) */
export const CLEAN_BITS = table('I IOPM ASID TPR NP CRx DRx DT SEG CR2 LBR AVIC CET')

/** Offset 05Ch (AMD APM vol. 2, section 15.16.2) */
export function tlbControlText(value: bigint): string {
  if (value === 0n) return 'do nothing'
  if (value === 1n) return 'flush the entire TLB'
  if (value === 3n) return "flush this guest's TLB entries"
  if (value === 7n) return "flush this guest's non-global TLB entries"
  return 'reserved'
}

/** Everything that L1 intercepts, by the names of the exit codes. */
export function interceptNames({ fields }: Vmcb12): string[] {
  const numbered = (value: bigint, name: (n: number) => string) =>
    bitNames({}, value).map(bit => name(Number(bit.slice('bit '.length))))
  return [
    ...numbered(fields.interceptCrReads, n => `CR${n}_READ`),
    ...numbered(fields.interceptCrWrites, n => `CR${n}_WRITE`),
    ...numbered(fields.interceptDrReads, n => `DR${n}_READ`),
    ...numbered(fields.interceptDrWrites, n => `DR${n}_WRITE`),
    ...numbered(fields.interceptExceptions, n => `EXCP${n}`),
    ...(Object.keys(INTERCEPTS) as (keyof typeof INTERCEPTS)[]).flatMap(field =>
      bitNames(INTERCEPTS[field], fields[field]).map(name => (name.startsWith('bit') ? `${field} ${name}` : name)),
    ),
  ]
}

/** Offset 060h in words. */
export function virtualInterruptNames(value: bigint): string[] {
  const tpr = value & V_TPR
  const priority = (value & V_INTR_PRIO) >> 16n
  return [
    ...(tpr ? [`V_TPR ${tpr}`] : []),
    ...(priority ? [`V_INTR_PRIO ${priority}`] : []),
    ...bitNames(VIRTUAL_INTERRUPT, value, V_TPR | V_INTR_PRIO),
  ]
}
