/** Why a #VMEXIT happened, in words: exit codes (AMD APM vol. 2, appendix C), EXITINFO1 and EXITINFO2 (chapter 15). */
import { bitNames } from './bits.js'
import { INTERCEPTS } from './controls-svm.js'
import { errorCodeText, exceptionName, PAGE_FAULT, pageFaultText } from './events.js'
import type { Vmcb12 } from './vmcb12.js'

const NPF = 0x400
const EXCEPTION = 0x40
const special: Readonly<Record<number, string>> = {
  [NPF]: 'NPF',
  1025: 'AVIC_INCOMPLETE_IPI',
  1026: 'AVIC_NOACCEL',
  1027: 'VMGEXIT',
}

/** -1 to -4 */
const negative = [undefined, 'INVALID', 'BUSY', 'IDLE_REQUIRED', 'INVALID_PMC']

/** EXITCODE in words, as the APM spells it without `VMEXIT_`. */
export function exitCodeText(exitCode: bigint): string {
  // Older kernels keep only its low half: all ones of 32 bits are all ones.
  const code = BigInt.asIntN(64, exitCode === 0xffff_ffffn ? -1n : exitCode)
  if (code < 0n) return negative[Number(-code)] ?? `code ${code}`
  const n = Number(code)
  if (n < 0x20) return `CR${n % 16}_${n < 16 ? 'READ' : 'WRITE'}`
  if (n < 0x40) return `DR${n % 16}_${n < 0x30 ? 'READ' : 'WRITE'}`
  if (n < 0x60) return `EXCP${n - EXCEPTION}`
  for (const [table, first] of vectors) {
    const name = Object.entries(table).find(([, bit]) => first + bit === n)?.[0]
    if (name) return name
  }
  return special[n] ?? `code 0x${n.toString(16)}`
}

const vectors = [
  [INTERCEPTS.interceptVector3, 0x60],
  [INTERCEPTS.interceptVector4, 0x80],
  [INTERCEPTS.interceptVector5, 0xa0],
] as const

const registers = 'RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15'.split(' ')

/** What EXITINFO1 and EXITINFO2 say of that exit; undefined where they say nothing. */
export function exitInfoText({ fields: f }: Vmcb12): string | undefined {
  const name = exitCodeText(f.exitCode)
  const vector = Number(f.exitCode) - EXCEPTION
  if (name.startsWith('EXCP')) {
    if (vector === PAGE_FAULT) return `${exceptionName(vector)} at ${hex(f.exitInfo2)}: ${pageFaultText(f.exitInfo1)}`
    return [8, 10, 11, 12, 13, 17, 21].includes(vector)
      ? `${exceptionName(vector)}, ${errorCodeText(vector, f.exitInfo1)}`
      : exceptionName(vector)
  }
  // Decode assists (section 15.10.1): bit 63 says that bits 3:0 have the register.
  if (/^CR\d+_/.test(name)) {
    return f.exitInfo1 >> 63n ? `MOV with ${registers[Number(f.exitInfo1 & 0xfn)]}` : undefined
  }
  if (/^DR\d+_/.test(name)) return undefined
  switch (name) {
    case 'NPF':
      return nestedPageFaultText(f.exitInfo1, f.exitInfo2)
    case 'IOIO':
      return ioText(f.exitInfo1, f.exitInfo2)
    case 'MSR':
      return f.exitInfo1 & 1n ? 'WRMSR' : 'RDMSR'
    case 'SWINT':
      return `vector ${hex(f.exitInfo1 & 0xffn)}`
    case 'INVLPG':
    case 'INVLPGA':
      return `linear address ${hex(f.exitInfo1)}`
    case 'TASK_SWITCH':
      return taskSwitchText(f.exitInfo1, f.exitInfo2)
    default:
      return undefined
  }
}

/** Section 15.25.6: an error code as of a page fault, and where the walk had got to. */
function nestedPageFaultText(info1: bigint, info2: bigint): string {
  const where = bitNames(
    { 'for the final address': 32, 'for the guest page tables': 33, 'supervisor shadow stack': 37 },
    info1 & ~0xffff_ffffn,
  )
  return [`guest-physical address ${hex(info2)}: ${pageFaultText(info1 & 0xffff_ffffn)}`, ...where].join(', ')
}

/** Section 15.10.2 */
function ioText(info1: bigint, next: bigint): string {
  const instruction = `${info1 & 8n ? 'REP ' : ''}${info1 & 1n ? 'IN' : 'OUT'}${info1 & 4n ? 'S' : ''}`
  const size = info1 & 0x10n ? '1 byte' : info1 & 0x20n ? '2 bytes' : info1 & 0x40n ? '4 bytes' : 'no size'
  return `${instruction}, ${size}, port ${hex((info1 >> 16n) & 0xffffn)}, next rIP ${hex(next)}`
}

/** Section 15.14.1 */
function taskSwitchText(info1: bigint, info2: bigint): string {
  const cause = (info2 >> 36n) & 1n ? 'IRET' : (info2 >> 38n) & 1n ? 'JMP' : 'CALL or task gate'
  const code = (info2 >> 44n) & 1n ? `, error code ${hex(info2 & 0xffff_ffffn)}` : ''
  return `${cause} to TSS selector ${hex(info1 & 0xffffn)}${code}`
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`
}
