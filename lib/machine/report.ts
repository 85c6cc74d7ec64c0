import { translate } from '../arch/x86_64/paging.js'
import { CR0_PG, CR4_LA57 } from '../arch/x86_64/segments.js'
import type { VcpuExit } from '../kvm/exit.js'
import type { KvmRegs, KvmSregs } from '../kvm/structs.js'
import type { Vcpu } from '../kvm/vcpu.js'
import type { GuestMemory } from '../memory/guest-memory.js'

const CODE_BYTES = 16

/** What there is to tell of a crash beside its vCPU. */
export interface CrashFacts {
  readonly exit?: VcpuExit
  /** The console's last lines. */
  readonly tail: string
}

/**
 * What a crash is about, for people: the exit's facts, the vCPU's registers, the code at its instruction pointer, and what the
 * guest said last.
 */
export function crashReport(vcpu: Vcpu, memory: GuestMemory, { exit, tail }: CrashFacts): string {
  const lines = [`vCPU ${vcpu.id}`]
  if (exit) lines.push(`exit  ${exitFacts(exit)}`)
  try {
    const regs = vcpu.getRegs()
    const sregs = vcpu.getSregs()
    lines.push(...registerLines(regs, sregs), `code  ${codeAt(memory, regs, sregs)}`)
  } catch (error) {
    lines.push(`registers cannot be read: ${(error as Error).message}`)
  }
  if (tail) lines.push("the console's last lines:", tail)
  return lines.join('\n')
}

/** The exit on one line: `internal-error suberror=1 data=[0x1] instruction=0f 0b`. */
export function exitFacts(exit: VcpuExit): string {
  const { reason, ...facts } = exit
  const shown = Object.entries(facts).map(([name, value]) => `${name}=${show(value)}`)
  return [reason, ...shown].join(' ')
}

function show(value: unknown): string {
  if (typeof value === 'bigint') return `0x${value.toString(16)}`
  if (value instanceof Uint8Array)
    return Buffer.from(value)
      .toString('hex')
      .replace(/..(?=.)/g, '$& ')
  if (Array.isArray(value)) return `[${value.map(show).join(' ')}]`
  if (typeof value === 'object' && value !== null) {
    return `{${Object.entries(value)
      .map(([name, inner]) => `${name}=${show(inner)}`)
      .join(' ')}}`
  }
  return String(value)
}

function registerLines(regs: KvmRegs, sregs: KvmSregs): string[] {
  const names = [
    'rax',
    'rbx',
    'rcx',
    'rdx',
    'rsi',
    'rdi',
    'rbp',
    'rsp',
    'r8',
    'r9',
    'r10',
    'r11',
    'r12',
    'r13',
    'r14',
    'r15',
  ] as const
  const lines: string[] = []
  for (let i = 0; i < names.length; i += 4) {
    lines.push(
      names
        .slice(i, i + 4)
        .map(name => `${name.padEnd(3)} ${hex(regs[name], 16)}`)
        .join('  '),
    )
  }
  lines.push(`rip ${hex(regs.rip, 16)}  rflags ${hex(regs.rflags, 8)}`)
  lines.push(
    `cr0 ${hex(sregs.cr0, 8)}  cr2 ${hex(sregs.cr2, 16)}  cr3 ${hex(sregs.cr3, 16)}  cr4 ${hex(sregs.cr4, 8)}  efer ${hex(sregs.efer, 8)}`,
  )
  for (const name of ['cs', 'ss', 'ds', 'es', 'fs', 'gs', 'tr', 'ldt'] as const) {
    const { selector, base, limit, type, dpl, l, db, unusable } = sregs[name]
    const kind = unusable ? 'unusable' : `type ${type} dpl ${dpl}${l ? ' 64-bit' : db ? ' 32-bit' : ' 16-bit'}`
    lines.push(
      `${name.padEnd(3)} ${hex(BigInt(selector), 4)}  base ${hex(base, 16)}  limit ${hex(BigInt(limit), 8)}  ${kind}`,
    )
  }
  lines.push(
    `gdt ${hex(sregs.gdt.base, 16)}+${hex(BigInt(sregs.gdt.limit), 4)}  idt ${hex(sregs.idt.base, 16)}+${hex(BigInt(sregs.idt.limit), 4)}`,
  )
  return lines
}

function codeAt(memory: GuestMemory, regs: KvmRegs, sregs: KvmSregs): string {
  const linear = regs.rip + sregs.cs.base
  const paged = (sregs.cr0 & CR0_PG) !== 0n
  const mode = { la57: (sregs.cr4 & CR4_LA57) !== 0n }
  const physical = paged ? translate(memory, sregs.cr3, linear, mode)?.physicalAddress : linear
  if (physical === undefined || !memory.contains(Number(physical), CODE_BYTES)) return 'not in guest memory'
  return show(memory.read(Number(physical), CODE_BYTES))
}

function hex(value: bigint, digits: number): string {
  return value.toString(16).padStart(digits, '0')
}
