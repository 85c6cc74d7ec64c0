/** The saved state of a vCPU and of its VM as fields for people; nothing in it is believed to be as long as it should be. */
import { createHash } from 'node:crypto'
import { msrName } from '../arch/x86_64/msr-names.js'
import * as k from '../kvm/structs.js'
import { decodeMsrs } from '../kvm/tables.js'
import type { DescribedField, Section } from '../nested/describe.js'
import { cr0Text, cr4Text, eferText, rflagsText, words } from '../nested/register-words.js'
import type { Blobs, Json } from '../snapshot/format.js'

/** Fields of one section that are told one by one: a manifest may hold millions. */
const MOST = 2000
/** Characters of one text. */
const LONGEST = 2000

type Decoder = (bytes: Uint8Array) => DescribedField[]

/** The blobs that are told field by field, in the order in which people look for them. */
const VCPU: Readonly<Record<string, readonly [title: string, decode: Decoder]>> = {
  KVM_GET_REGS: ['General registers', bytes => generalRegisters(k.kvm_regs.decode(bytes))],
  KVM_GET_SREGS2: ['System registers', bytes => systemRegisters(k.kvm_sregs2.decode(bytes))],
  KVM_GET_VCPU_EVENTS: ['Events', bytes => events(k.kvm_vcpu_events.decode(bytes))],
  KVM_GET_MP_STATE: ['Activity', bytes => activity(k.kvm_mp_state.decode(bytes).mp_state)],
  KVM_GET_DEBUGREGS: ['Debug registers', bytes => debugRegisters(k.kvm_debugregs.decode(bytes))],
  KVM_GET_XCRS: ['Extended control registers', bytes => extendedControl(k.kvm_xcrs.decode(bytes))],
  KVM_GET_XSAVE2: ['FPU and vector registers', digest('xsave', 'XSAVE area')],
  KVM_GET_TSC_KHZ: ['TSC frequency', bytes => [field('tscKhz', 'kHz', `${view(bytes).getUint32(0, true)}`)]],
  KVM_VCPU_TSC_OFFSET: ['TSC offset to the host', tscOffset],
  KVM_GET_LAPIC: ['Local APIC', bytes => localApic(k.kvm_lapic_state.decode(bytes).regs)],
  KVM_GET_MSRS: ['MSRs', bytes => modelSpecific(bytes)],
  KVM_SET_CPUID2: ['CPUID', digest('cpuid', 'Table')],
}

const VM: Readonly<Record<string, readonly [title: string, decode: Decoder]>> = {
  KVM_GET_CLOCK: ['Clock', bytes => clock(k.kvm_clock_data.decode(bytes))],
}

/** Told elsewhere, with all that belongs to it. */
const NESTED = 'KVM_GET_NESTED_STATE'

export function vcpuSections(state: Blobs): Section[] {
  return sections(state, VCPU)
}

export function vmSections(vm: Blobs): Section[] {
  return sections(vm, VM)
}

/** Each member of a JSON value as a field, by its path. */
export function jsonSection(title: string, value: Json): Section {
  const fields: DescribedField[] = []
  const visit = (name: string, value: Json): void => {
    if (fields.length >= MOST) return
    const plain = typeof value !== 'object' || value === null
    // A list of numbers is a row of bytes or the like: one value.
    if (plain || (Array.isArray(value) && value.every(item => typeof item !== 'object'))) {
      fields.push(field(name, name, short(typeof value === 'string' ? value : JSON.stringify(value))))
    } else for (const [key, member] of Object.entries(value)) visit(short(name ? `${name}.${key}` : key), member)
  }
  visit('', value)
  return capped({ title, fields })
}

function sections(blobs: Blobs, table: typeof VCPU): Section[] {
  const known = Object.entries(table).flatMap(([name, [title, decode]]) => {
    const bytes = blobs[name]
    return bytes ? [capped({ title, fields: attempt(name, bytes, decode) })] : []
  })
  const others = Object.entries(blobs).filter(([name]) => name !== NESTED && !Object.hasOwn(table, name))
  const fields = others.flatMap(([name, bytes]) => digest(name, name)(bytes))
  return fields.length > 0 ? [...known, capped({ title: 'Other state', fields })] : known
}

/** What is shorter than its struct is told as what it is. */
function attempt(name: string, bytes: Uint8Array, decode: Decoder): DescribedField[] {
  try {
    return decode(bytes)
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    return [field(name, name, `${bytes.length} bytes that cannot be read: ${error.message}`)]
  }
}

function capped({ title, fields }: Section): Section {
  if (fields.length <= MOST) return { title, fields }
  const more = field('more', 'More', `${fields.length - MOST} further fields`)
  return { title, fields: [...fields.slice(0, MOST), more] }
}

function field(name: string, label: string, value: bigint | string, meaning?: string): DescribedField {
  return { name, label, value, ...(meaning !== undefined && { meaning }) }
}

function generalRegisters(regs: k.KvmRegs): DescribedField[] {
  return Object.entries(regs).map(([name, value]) =>
    field(name, name.toUpperCase(), value, name === 'rflags' ? rflagsText(value) : undefined),
  )
}

function systemRegisters(sregs: k.KvmSregs2): DescribedField[] {
  const { cr0, cr2, cr3, cr4, cr8, efer, apic_base, gdt, idt, pdptrs, flags } = sregs
  const segments = (['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'tr', 'ldt'] as const).flatMap(name => {
    const { selector, base, limit, ...attributes } = sregs[name]
    const label = name.toUpperCase()
    return [
      field(`${name}.selector`, `${label} selector`, BigInt(selector), segmentText(attributes)),
      field(`${name}.base`, `${label} base`, base),
      field(`${name}.limit`, `${label} limit`, BigInt(limit)),
    ]
  })
  const tables = Object.entries({ gdt, idt }).flatMap(([name, { base, limit }]) => [
    field(`${name}.base`, `${name.toUpperCase()}R base`, base),
    field(`${name}.limit`, `${name.toUpperCase()}R limit`, BigInt(limit)),
  ])
  const valid = (flags & BigInt(k.KVM_SREGS2_FLAGS_PDPTRS_VALID)) !== 0n
  return [
    field('cr0', 'CR0', cr0, cr0Text(cr0)),
    field('cr2', 'CR2', cr2),
    field('cr3', 'CR3', cr3),
    field('cr4', 'CR4', cr4, cr4Text(cr4)),
    field('cr8', 'CR8', cr8),
    field('efer', 'EFER', efer, eferText(efer)),
    field('apicBase', 'APIC base', apic_base, apicBaseText(apic_base)),
    ...segments,
    ...tables,
    ...(valid ? pdptrs.map((value, i) => field(`pdptr${i}`, `PDPTE${i}`, value)) : []),
  ]
}

function segmentText(s: Omit<k.KvmSegment, 'selector' | 'base' | 'limit' | 'padding'>): string {
  if (s.unusable || !s.present) return s.unusable ? 'unusable' : 'not present'
  const kind = s.s ? (s.type & 8 ? 'code' : 'data') : `system type ${s.type}`
  return `${kind}, DPL ${s.dpl}, ${s.l ? '64-bit' : s.db ? '32-bit' : '16-bit'}${s.g ? ', granular' : ''}`
}

/** Intel SDM vol. 3, section 12.4.4 */
function apicBaseText(value: bigint): string {
  const bits = [
    ['BSP', 8n],
    ['x2APIC', 10n],
    ['enabled', 11n],
  ] as const
  return words(bits.filter(([, bit]) => (value >> bit) & 1n).map(([name]) => name))
}

function events(e: k.KvmVcpuEvents): DescribedField[] {
  const { exception, interrupt, nmi, smi } = e
  const yes = (flag: number) => (flag ? 'yes' : 'no')
  const code = exception.has_error_code ? `, error code 0x${exception.error_code.toString(16)}` : ''
  const which = `vector ${exception.nr}${code}`
  const shadow = [...(interrupt.shadow & 2 ? ['STI'] : []), ...(interrupt.shadow & 1 ? ['MOV SS'] : [])]
  return [
    field('exception.injected', 'Exception injected', exception.injected ? which : 'no'),
    field('exception.pending', 'Exception pending', exception.pending ? which : 'no'),
    field('exception.payload', 'Its payload', e.exception_has_payload ? e.exception_payload : 'none'),
    field('interrupt.injected', 'Interrupt injected', interrupt.injected ? `vector ${interrupt.nr}` : 'no'),
    field('interrupt.shadow', 'Interrupt shadow', words(shadow)),
    field('nmi.injected', 'NMI injected', yes(nmi.injected)),
    field('nmi.pending', 'NMI pending', nmi.pending ? String(nmi.pending) : 'no'),
    field('nmi.masked', 'NMI masked', yes(nmi.masked)),
    field('smi.smm', 'In SMM', yes(smi.smm)),
    field('smi.pending', 'SMI pending', yes(smi.pending)),
    field('smi.latchedInit', 'INIT latched', yes(smi.latched_init)),
    field('tripleFault', 'Triple fault pending', yes(e.triple_fault.pending)),
  ]
}

const mpStates: Readonly<Record<number, string>> = {
  [k.KVM_MP_STATE_RUNNABLE]: 'runnable',
  [k.KVM_MP_STATE_UNINITIALIZED]: 'not started yet',
  [k.KVM_MP_STATE_INIT_RECEIVED]: 'waiting for SIPI',
  [k.KVM_MP_STATE_HALTED]: 'halted (HLT)',
  [k.KVM_MP_STATE_SIPI_RECEIVED]: 'SIPI received',
  [k.KVM_MP_STATE_AP_RESET_HOLD]: 'held after a reset',
}

function activity(state: number): DescribedField[] {
  return [field('mpState', 'MP state', BigInt(state), mpStates[state] ?? 'unknown')]
}

function debugRegisters({ db, dr6, dr7 }: k.KvmDebugregs): DescribedField[] {
  return [...db.map((value, i) => field(`dr${i}`, `DR${i}`, value)), field('dr6', 'DR6', dr6), field('dr7', 'DR7', dr7)]
}

function extendedControl({ nr_xcrs, xcrs }: k.KvmXcrs): DescribedField[] {
  return xcrs.slice(0, nr_xcrs).map(({ xcr, value }) => field(`xcr${xcr}`, `XCR${xcr}`, value))
}

function tscOffset(bytes: Uint8Array): DescribedField[] {
  const value = view(bytes).getBigUint64(0, true)
  return [field('tscOffset', 'Offset', `${BigInt.asIntN(64, value)}`)]
}

/** Intel SDM vol. 3, table 12-1 */
const APIC: readonly [offset: number, name: string, label: string][] = [
  [0x20, 'id', 'ID'],
  [0x80, 'tpr', 'Task priority'],
  [0xd0, 'ldr', 'Logical destination'],
  [0xf0, 'svr', 'Spurious-interrupt vector'],
  ...[0, 1, 2, 3, 4, 5, 6, 7].map((i): [number, string, string] => [0x100 + i * 16, `isr${i}`, `In service ${i}`]),
  ...[0, 1, 2, 3, 4, 5, 6, 7].map((i): [number, string, string] => [
    0x200 + i * 16,
    `irr${i}`,
    `Interrupt requests ${i}`,
  ]),
  [0x280, 'esr', 'Error status'],
  [0x300, 'icrLow', 'Interrupt command'],
  [0x310, 'icrHigh', 'Interrupt command, destination'],
  [0x320, 'lvtTimer', 'LVT timer'],
  [0x340, 'lvtPerformance', 'LVT performance counters'],
  [0x350, 'lvtLint0', 'LVT LINT0'],
  [0x360, 'lvtLint1', 'LVT LINT1'],
  [0x370, 'lvtError', 'LVT error'],
  [0x380, 'timerInitial', 'Timer, initial count'],
  [0x390, 'timerCurrent', 'Timer, current count'],
  [0x3e0, 'timerDivide', 'Timer, divide configuration'],
]

function localApic(regs: Uint8Array): DescribedField[] {
  const data = view(regs)
  return APIC.map(([offset, name, label]) => field(name, label, BigInt(data.getUint32(offset, true))))
}

function modelSpecific(bytes: Uint8Array): DescribedField[] {
  return decodeMsrs(bytes).map(({ index, value }) => {
    const name = msrName(index)
    return field(name, name.startsWith('MSR 0x') ? name : `${name} (0x${index.toString(16)})`, value)
  })
}

function clock({ clock, flags, realtime, host_tsc }: k.KvmClockData): DescribedField[] {
  const seconds = (ns: bigint) => `${(Number(ns / 1000n) / 1e6).toFixed(6)} s`
  return [
    field('clock', "The guest's, ns", `${clock}`, seconds(clock)),
    field('flags', 'Flags', BigInt(flags)),
    field('realtime', "The host's, ns", `${realtime}`, when(realtime)),
    field('hostTsc', "The host's TSC", host_tsc),
  ]
}

function when(ns: bigint): string | undefined {
  const date = new Date(Number(ns / 1_000_000n))
  return ns === 0n || Number.isNaN(date.getTime()) ? undefined : date.toISOString()
}

/** Bytes that are not told one by one: enough to see whether they are the same. */
function digest(name: string, label: string): Decoder {
  return bytes => {
    const sum = createHash('sha256').update(bytes).digest('hex').slice(0, 16)
    return [field(name, label, `${bytes.length} bytes, SHA-256 ${sum}...`)]
  }
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function short(text: string): string {
  return text.length > LONGEST ? `${text.slice(0, LONGEST)}...` : text
}
