/** Why a VM exit happened, in words: basic exit reasons (Intel SDM vol. 3, appendix C) and their qualification (section 29.2.1). */
import { bitNames } from './bits.js'
import { errorCodeText, exceptionName, interruptionText, PAGE_FAULT } from './events.js'
import type { Vmcs12 } from './vmcs12.js'

/** Basic exit reasons by number; the gaps are reserved. */
const reasons: readonly (string | undefined)[] = [
  'exception or NMI',
  'external interrupt',
  'triple fault',
  'INIT signal',
  'start-up IPI',
  'I/O SMI',
  'other SMI',
  'interrupt window',
  'NMI window',
  'task switch',
  'CPUID',
  'GETSEC',
  'HLT',
  'INVD',
  'INVLPG',
  'RDPMC',
  'RDTSC',
  'RSM',
  'VMCALL',
  'VMCLEAR',
  'VMLAUNCH',
  'VMPTRLD',
  'VMPTRST',
  'VMREAD',
  'VMRESUME',
  'VMWRITE',
  'VMXOFF',
  'VMXON',
  'control-register access',
  'MOV DR',
  'I/O instruction',
  'RDMSR',
  'WRMSR',
  'VM-entry failure due to invalid guest state',
  'VM-entry failure due to MSR loading',
  undefined,
  'MWAIT',
  'monitor trap flag',
  undefined,
  'MONITOR',
  'PAUSE',
  'VM-entry failure due to machine-check event',
  undefined,
  'TPR below threshold',
  'APIC access',
  'virtualized EOI',
  'access to GDTR or IDTR',
  'access to LDTR or TR',
  'EPT violation',
  'EPT misconfiguration',
  'INVEPT',
  'RDTSCP',
  'VMX-preemption timer expired',
  'INVVPID',
  'WBINVD or WBNOINVD',
  'XSETBV',
  'APIC write',
  'RDRAND',
  'INVPCID',
  'VMFUNC',
  'ENCLS',
  'RDSEED',
  'page-modification log full',
  'XSAVES',
  'XRSTORS',
  'PCONFIG',
  'SPP-related event',
  'UMWAIT',
  'TPAUSE',
  'LOADIWKEY',
  'ENCLV',
  undefined,
  'ENQCMD PASID translation failure',
  'ENQCMDS PASID translation failure',
  'bus lock',
  'instruction timeout',
  'SEAMCALL',
  'TDCALL',
  'RDMSRLIST',
  'WRMSRLIST',
]

/** Bits of the exit-reason field above the basic reason (Intel SDM vol. 3, table 25-19). */
const modifiers = {
  'shadow stack busy': 25,
  'bus lock': 26,
  'in enclave mode': 27,
  'pending MTF VM exit': 28,
  'from VMX root operation': 29,
  'VM-entry failure': 31,
} as const

/** The exit-reason field in words. */
export function exitReasonText(field: bigint): string {
  const basic = Number(field & 0xffffn)
  const more = bitNames(modifiers, field & ~0xffffn)
  return [reasons[basic] ?? `reason ${basic}`, ...more].join(', ')
}

const registers = 'RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15'.split(' ')

/** A VMCS without an exit yet has reason 0 and no valid interruption information: nothing is to be said of it. */
export function exitQualificationText({ fields: f }: Vmcs12): string | undefined {
  const q = f.exitQualification
  const has = (bit: number) => ((q >> BigInt(bit)) & 1n) !== 0n
  const bits = (high: number, low: number) => Number((q >> BigInt(low)) & ((1n << BigInt(high - low + 1)) - 1n))
  switch (Number(f.exitReason & 0xffffn)) {
    case 0:
      return exceptionText(f)
    case 1:
      return interruptionText(f.vmExitInterruptionInformation, 0n)
    case 4:
    case 45:
      return `vector ${hex(q & 0xffn)}`
    case 9:
      return `${['CALL', 'IRET', 'JMP', 'task gate'][bits(31, 30)]} to TSS selector ${hex(q & 0xffffn)}`
    case 14:
      return `linear address ${hex(q)}`
    case 28:
      return crAccessText(q)
    case 29: {
      const gpr = registers[bits(11, 8)]!
      return has(4) ? `MOV ${gpr}, DR${bits(2, 0)}` : `MOV DR${bits(2, 0)}, ${gpr}`
    }
    case 30:
      return ioText(q)
    case 33:
      return { 2: 'PDPTEs', 3: 'NMI injection', 4: 'VMCS link pointer' }[Number(q)] ?? (q ? hex(q) : undefined)
    case 34:
      return `entry ${q} of the list of MSRs`
    case 44:
      return `${apicAccess[bits(15, 12)] ?? `access type ${bits(15, 12)}`} at offset ${hex(q & 0xfffn)}`
    case 48:
      return `${eptViolationText(q)} of guest-physical address ${hex(f.guestPhysicalAddress)}${
        has(7) ? `, ${has(8) ? 'translating' : 'walking to'} linear address ${hex(f.guestLinearAddress)}` : ''
      }`
    case 49:
      return `guest-physical address ${hex(f.guestPhysicalAddress)}`
    case 56:
      return `offset ${hex(q & 0xfffn)}`
    default:
      return undefined
  }
}

/** Table 29-2 and, for #DB, table 29-1. */
function exceptionText(f: Vmcs12['fields']): string {
  const info = f.vmExitInterruptionInformation
  const text = interruptionText(info, f.vmExitInterruptionErrorCode)
  const vector = Number(info & 0xffn)
  if (text === 'none' || ((info >> 8n) & 7n) !== 3n) return text
  if (vector === PAGE_FAULT) {
    return `${exceptionName(vector)} at ${hex(f.exitQualification)}: ${errorCodeText(vector, f.vmExitInterruptionErrorCode)}`
  }
  if (vector !== 1) return text
  const causes = bitNames({ B0: 0, B1: 1, B2: 2, B3: 3, BLD: 11, BD: 13, BS: 14, RTM: 16 }, f.exitQualification)
  return causes.length ? `${text} (${causes.join(', ')})` : text
}

/** Table 29-3 */
function crAccessText(q: bigint): string {
  const cr = `CR${q & 0xfn}`
  const gpr = registers[Number((q >> 8n) & 0xfn)]!
  switch (Number((q >> 4n) & 3n)) {
    case 0:
      return `MOV ${cr}, ${gpr}`
    case 1:
      return `MOV ${gpr}, ${cr}`
    case 2:
      return 'CLTS'
    default:
      return `LMSW ${hex((q >> 16n) & 0xffffn)}${q & 0x40n ? ' from memory' : ''}`
  }
}

/** Table 29-5 */
function ioText(q: bigint): string {
  const instruction = `${q & 8n ? 'IN' : 'OUT'}${q & 0x10n ? 'S' : ''}`
  const size = Number(q & 7n) + 1
  const port = `port ${hex((q >> 16n) & 0xffffn)}${q & 0x40n ? ' (immediate)' : ''}`
  return `${q & 0x20n ? 'REP ' : ''}${instruction}, ${size} byte${size > 1 ? 's' : ''}, ${port}`
}

/** Table 29-6 */
const apicAccess: Readonly<Record<number, string>> = {
  0: 'linear read',
  1: 'linear write',
  2: 'linear instruction fetch',
  3: 'linear access during event delivery',
  4: 'linear monitor',
  10: 'guest-physical access during event delivery',
  11: 'guest-physical monitor or trace',
  15: 'guest-physical fetch or access during an instruction',
}

/** Table 29-7: what was tried, and what the EPT entries allow. */
function eptViolationText(q: bigint): string {
  const access = bitNames({ read: 0, write: 1, fetch: 2 }, q & 7n).join('+') || 'access'
  const allowed = bitNames({ readable: 3, writable: 4, executable: 5, 'user-executable': 6 }, q & 0x78n)
  const how = allowed.length ? `is ${allowed.join(', ')}` : 'is not present'
  const more = bitNames({ 'NMI unblocking due to IRET': 12, 'shadow stack': 13, asynchronous: 16 }, q & 0x1_3000n)
  return [`${access} (the page ${how})`, ...more].join(', ')
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`
}
