/** A nested state as one structure for tools: what the vCPU is doing, each field with its meaning, L1 and L2. */
import type { KvmRegs, KvmSregs2, Msr } from '../kvm/structs.js'
import {
  type PassedMsrs,
  passedPorts,
  SVM_IO_MAP_SIZE,
  SVM_MSR_MAP_SIZE,
  svmPassedMsrs,
  VMX_IO_BITMAP_SIZE,
  VMX_MSR_BITMAP_SIZE,
  vmxPassedMsrs,
} from './bitmaps.js'
import { type BitTable, bitNames } from './bits.js'
import { BLOCK_SIZE, blockAt } from './block.js'
import { hasControl } from './controls-vmx.js'
import { svmSections } from './describe-svm.js'
import { eptpText, vmxSections } from './describe-vmx.js'
import { type PagingMode, pagingMode } from './pointers.js'
import { words } from './register-words.js'
import * as r from './registers.js'
import { decodeNestedState, type NestedState, type SvmNestedState, type VmxNestedState } from './state.js'
import { decodeVmcb12, type Vmcb12 } from './vmcb12.js'
import { decodeVmcs12, VMCS12_USED_SIZE, type Vmcs12 } from './vmcs12.js'
import type { L1Memory } from './walk.js'

export interface DescribedField {
  readonly name: string
  /** What the vendor's manual calls it. */
  readonly label: string
  readonly value: bigint | string
  /** The value in words. */
  readonly meaning?: string
  /** In the control block, in bytes. */
  readonly offset?: number
}

export interface Section {
  readonly title: string
  readonly fields: readonly DescribedField[]
}

/** Where a level is, and how it translates addresses. */
export interface LevelState {
  readonly rip: bigint
  readonly rsp: bigint
  readonly pagingMode: PagingMode
  readonly cr0: bigint
  readonly cr3: bigint
  readonly cr4: bigint
  readonly efer: bigint
}

export type NestedMode =
  | 'not in use'
  | 'VMXON, no current VMCS'
  | 'L1, VMCS current'
  | 'L1, SVM enabled'
  | 'L2'
  | 'SMM, VMX operation suspended'

/** How L2's physical addresses become L1's. */
export interface NestedPaging {
  readonly kind: 'EPT' | 'NPT'
  /** EPTP or nCR3. */
  readonly pointer: bigint
  readonly meaning: string
}

export interface NestedDescription {
  readonly format: 'vmx' | 'svm'
  readonly mode: NestedMode
  readonly header: readonly DescribedField[]
  readonly sections: readonly Section[]
  readonly l1?: LevelState
  /** Only where there is an L2 that runs. */
  readonly l2?: LevelState
  /** Where L2 runs on nested tables; without it its physical addresses are L1's. */
  readonly nestedPaging?: NestedPaging
  /** What L2 may do without an exit, where L1's memory is at hand and L1 has maps. */
  readonly msrs?: PassedMsrs
  readonly ports?: readonly string[]
  /** L2's TSC is L1's plus this. */
  readonly tscOffset?: bigint
}

export interface NestedContext {
  readonly regs: KvmRegs
  readonly sregs2: KvmSregs2
  /** Those that switch the extension on are told of in the header. */
  readonly msrs?: readonly Msr[]
  readonly memory?: L1Memory
}

/**
 * Describes what `vcpu.getNestedState()` gave, together with the vCPU's ordinary registers: in guest mode those are L2's.
 * @throws {RangeError} the bytes are no nested state
 */
export function describeNested(bytes: Uint8Array, context: NestedContext): NestedDescription {
  const state = decodeNestedState(bytes)
  return state.format === 'vmx' ? describeVmx(state, context) : describeSvm(state, context)
}

function describeVmx(state: VmxNestedState, context: NestedContext): NestedDescription {
  const vmcs12 = state.data.length >= VMCS12_USED_SIZE ? decodeVmcs12(blockAt(state.data, 0)) : undefined
  const shadow = state.data.length >= BLOCK_SIZE + VMCS12_USED_SIZE && vmcs12 && shadowSections(vmcs12, state.data)
  const base = {
    format: 'vmx',
    mode: vmxMode(state),
    header: [...vmxHeader(state), ...msrFields(vmxMsrs, context)],
    sections: [...(vmcs12 ? vmxSections(vmcs12) : []), ...(shadow || [])],
  } as const
  const running = ordinary(context)
  if (!state.guestMode) return { ...base, l1: running }
  if (!vmcs12) return { ...base, l2: running }
  const { fields: f } = vmcs12
  const ept = hasControl(vmcs12, 'secondary', 'enable EPT')
  const offsetting = hasControl(vmcs12, 'primary', 'use TSC offsetting')
  return {
    ...base,
    l1: vmxHost(vmcs12),
    l2: running,
    ...(ept && { nestedPaging: { kind: 'EPT', pointer: f.eptPointer, meaning: eptpText(f.eptPointer) } }),
    ...vmxMaps(vmcs12, context.memory),
    tscOffset: offsetting ? BigInt.asIntN(64, f.tscOffset) : 0n,
  }
}

function vmxMode(state: VmxNestedState): NestedMode {
  if (state.vmxonPa === undefined) return 'not in use'
  if (state.guestMode) return 'L2'
  if (state.smmVmxon) return 'SMM, VMX operation suspended'
  return state.vmcs12Pa === undefined && !state.enlightenedVmcs ? 'VMXON, no current VMCS' : 'L1, VMCS current'
}

/** The VMCS that L2, a hypervisor itself, writes to without exits. */
function shadowSections(vmcs12: Vmcs12, data: Uint8Array): Section[] {
  if (!hasControl(vmcs12, 'secondary', 'VMCS shadowing') || vmcs12.fields.vmcsLinkPointer === r.ALL_ONES) return []
  return vmxSections(decodeVmcs12(blockAt(data, BLOCK_SIZE))).map(({ title, fields }) => ({
    title: `Shadow VMCS12: ${title}`,
    fields,
  }))
}

/** L1 as the next VM exit makes it (Intel SDM vol. 3, section 29.5). */
function vmxHost(vmcs12: Vmcs12): LevelState {
  const { fields: f } = vmcs12
  const long = hasControl(vmcs12, 'exit', 'host address-space size') ? r.EFER_LME | r.EFER_LMA : 0n
  const efer = hasControl(vmcs12, 'exit', 'load IA32_EFER') ? f.hostIa32Efer : long
  return {
    rip: f.hostRip,
    rsp: f.hostRsp,
    pagingMode: pagingMode(f.hostCr0, f.hostCr4, long),
    cr0: f.hostCr0,
    cr3: f.hostCr3,
    cr4: f.hostCr4,
    efer,
  }
}

function vmxMaps(vmcs12: Vmcs12, memory: L1Memory | undefined): Pick<NestedDescription, 'msrs' | 'ports'> {
  const { fields: f } = vmcs12
  const msrs =
    hasControl(vmcs12, 'primary', 'use MSR bitmaps') && read(memory, f.addressOfMsrBitmaps, VMX_MSR_BITMAP_SIZE)
  const io = hasControl(vmcs12, 'primary', 'use I/O bitmaps')
  const [a, b] = [f.addressOfIoBitmapA, f.addressOfIoBitmapB].map(at => io && read(memory, at, VMX_IO_BITMAP_SIZE))
  return {
    ...(msrs && { msrs: vmxPassedMsrs(f.addressOfMsrBitmaps, msrs) }),
    ...(a && b && { ports: passedPorts(concat(a, b)) }),
  }
}

function describeSvm(state: SvmNestedState, context: NestedContext): NestedDescription {
  const vmcb12 = state.data.length >= BLOCK_SIZE ? decodeVmcb12(blockAt(state.data, 0)) : undefined
  const enabled = (context.sregs2.efer & r.EFER_SVME) !== 0n
  const base = {
    format: 'svm',
    mode: state.guestMode ? 'L2' : enabled ? 'L1, SVM enabled' : 'not in use',
    header: [...svmHeader(state), ...msrFields(svmMsrs, context)],
    sections: vmcb12 ? svmSections(vmcb12) : [],
  } as const
  const running = ordinary(context)
  if (!state.guestMode) return { ...base, l1: running }
  if (!vmcb12) return { ...base, l2: running }
  const { fields: f } = vmcb12
  const l1 = {
    rip: f.rip,
    rsp: f.rsp,
    pagingMode: pagingMode(f.cr0, f.cr4, f.efer),
    cr0: f.cr0,
    cr3: f.cr3,
    cr4: f.cr4,
    efer: f.efer,
  }
  const nested = (f.nestedControl & 1n) !== 0n
  const mode = pagingMode(r.CR0_PG, f.cr4, f.efer)
  return {
    ...base,
    l1,
    l2: running,
    ...(nested && {
      nestedPaging: { kind: 'NPT', pointer: f.nCr3, meaning: `${mode} tables at 0x${f.nCr3.toString(16)}` },
    }),
    ...svmMaps(vmcb12, context.memory),
    tscOffset: BigInt.asIntN(64, f.tscOffset),
  }
}

function svmMaps({ fields: f }: Vmcb12, memory: L1Memory | undefined): Pick<NestedDescription, 'msrs' | 'ports'> {
  const intercepted = (bit: bigint) => (f.interceptVector3 >> bit) & 1n
  const msrpm = f.msrpmBasePa & ~0xfffn
  const msrs = intercepted(28n) && read(memory, msrpm, SVM_MSR_MAP_SIZE)
  const io = intercepted(27n) && read(memory, f.iopmBasePa & ~0xfffn, SVM_IO_MAP_SIZE)
  return { ...(msrs && { msrs: svmPassedMsrs(msrpm, msrs) }), ...(io && { ports: passedPorts(io) }) }
}

/** The vCPU's ordinary registers: of whichever level runs. */
function ordinary({ regs, sregs2 }: NestedContext): LevelState {
  const { cr0, cr3, cr4, efer } = sregs2
  return { rip: regs.rip, rsp: regs.rsp, pagingMode: pagingMode(cr0, cr4, efer), cr0, cr3, cr4, efer }
}

function vmxHeader(state: VmxNestedState): DescribedField[] {
  return [
    ...commonHeader(state),
    field('vmxonPa', 'VMXON pointer', state.vmxonPa),
    field('vmcs12Pa', 'Current-VMCS pointer', state.vmcs12Pa),
    field('enlightenedVmcs', 'Enlightened VMCS', state.enlightenedVmcs),
    field('mtfPending', 'Monitor-trap VM exit pending', state.mtfPending),
    field('smmGuestMode', 'SMM: L2 was running', state.smmGuestMode),
    field('smmVmxon', 'SMM: in VMX operation before', state.smmVmxon),
    field('preemptionTimerDeadline', 'VMX-preemption timer deadline', state.preemptionTimerDeadline),
  ]
}

function svmHeader(state: SvmNestedState): DescribedField[] {
  return [
    ...commonHeader(state),
    field('vmcbPa', "VMCB12's address", state.vmcbPa),
    field('gif', 'Global interrupt flag', state.gif),
  ]
}

function commonHeader(state: NestedState): DescribedField[] {
  return [
    field('guestMode', 'L2 runs', state.guestMode),
    field('runPending', 'VM entry not completed', state.runPending),
  ]
}

interface MsrWords {
  readonly name: string
  readonly bits?: BitTable
}

/** Intel SDM vol. 3, section 24.7 */
const vmxMsrs: ReadonlyMap<number, MsrWords> = new Map([
  [0x3a, { name: 'IA32_FEATURE_CONTROL', bits: { locked: 0, 'VMX inside SMX': 1, 'VMX outside SMX': 2 } }],
])
/** AMD APM vol. 2, section 15.30 */
const svmMsrs: ReadonlyMap<number, MsrWords> = new Map<number, MsrWords>([
  [0xc0010114, { name: 'VM_CR', bits: { DPD: 0, R_INIT: 1, DIS_A20M: 2, LOCK: 3, SVMDIS: 4 } }],
  [0xc0010117, { name: 'VM_HSAVE_PA' }],
])

function msrFields(table: typeof vmxMsrs, { msrs }: NestedContext): DescribedField[] {
  return (msrs ?? []).flatMap(({ index, value }) => {
    const known = table.get(index)
    if (!known) return []
    const { name, bits } = known
    return [{ name, label: name, value, ...(bits && { meaning: words(bitNames(bits, value)) }) }]
  })
}

function field(name: string, label: string, value: bigint | boolean | undefined): DescribedField {
  return {
    name,
    label,
    value: value === undefined ? 'none' : typeof value === 'boolean' ? (value ? 'yes' : 'no') : value,
  }
}

/** Undefined where memory is not at hand, or the guest's address is not in it. */
function read(memory: L1Memory | undefined, address: bigint, length: number): Uint8Array | undefined {
  try {
    return memory?.read(Number(address), length)
  } catch (error) {
    if (error instanceof RangeError) return undefined
    throw error
  }
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length)
  both.set(a)
  both.set(b, a.length)
  return both
}
