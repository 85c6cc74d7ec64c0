import { cpuidOf, msrsOf } from '../arch/x86_64/vcpu-state.js'
import { ConfigError } from '../errors.js'
import { kvm_mp_state, kvm_regs, kvm_sregs2, type Msr } from '../kvm/structs.js'
import { blockAt } from '../nested/block.js'
import { hasControl } from '../nested/controls-vmx.js'
import {
  type DescribedField,
  describeNested,
  type LevelState,
  type NestedContext,
  type NestedDescription,
  type Section,
} from '../nested/describe.js'
import { pagingMode } from '../nested/pointers.js'
import { decodeNestedState } from '../nested/state.js'
import { decodeVmcs12 } from '../nested/vmcs12.js'
import { type L1Memory, type Walk, walkEpt, walkNpt } from '../nested/walk.js'
import type { Blobs, Json } from '../snapshot/format.js'
import type { Snapshot } from '../snapshot/read.js'
import { jsonSection, vcpuSections, vmSections } from './inspect-state.js'

/** A snapshot for people and tools: decoded, with the meaning of its values. */
export interface Inspection {
  readonly directory: string
  readonly id: string
  readonly created: string
  /** The directories that its memory comes from, the newest first. */
  readonly chain: readonly string[]
  readonly config: Json
  /** Bytes. */
  readonly memory: number
  readonly vcpus: readonly VcpuInspection[]
  /** The VM's clock and interrupt controllers, its devices and its configuration. */
  readonly sections: readonly Section[]
}

export interface VcpuInspection {
  readonly id: number
  /** What it is doing, in a sentence. */
  readonly doing: string
  readonly l1?: LevelState
  /** Only where it runs in L2. */
  readonly l2?: LevelState
  /** Absent where the vCPU has neither vmx nor svm. */
  readonly nested?: NestedDescription
  /** Why the nested state that is there cannot be told. */
  readonly problem?: string
  /** Its registers: the ordinary ones are those of the level that runs. */
  readonly sections: readonly Section[]
}

/** Needs no KVM. `memory` is the snapshot's (`SnapshotMemory`): L1's MSR and I/O bitmaps are told with it. */
export function inspectSnapshot(snapshot: Snapshot, memory?: L1Memory): Inspection {
  const { directory, id, created, chain, state } = snapshot
  return {
    directory,
    id,
    created,
    chain,
    config: state.config,
    memory: snapshot.memory.regions.reduce((sum, { size }) => sum + size, 0),
    vcpus: state.vcpus.map(vcpu => inspectVcpu(vcpu.id, vcpu.state, memory)),
    sections: [
      ...vmSections(state.vm),
      jsonSection('Devices', state.devices),
      jsonSection('Configuration', state.config),
    ],
  }
}

function inspectVcpu(id: number, state: Blobs, memory: L1Memory | undefined): VcpuInspection {
  const sections = vcpuSections(state)
  const context = contextOf(state, memory)
  const raw = state.KVM_GET_NESTED_STATE
  if (!context) {
    return { id, doing: 'unknown: its registers are not there, or cannot be read', sections }
  }
  if (!raw) {
    const { cr0, cr3, cr4, efer } = context.sregs2
    const { rip, rsp } = context.regs
    const l1 = { rip, rsp, pagingMode: pagingMode(cr0, cr4, efer), cr0, cr3, cr4, efer }
    return { id, doing: `in L1${halted(state)}; it has neither vmx nor svm, and no nested state`, l1, sections }
  }
  try {
    const nested = describeNested(raw, context)
    const { l1, l2 } = nested
    return { id, doing: doing(nested, raw) + halted(state), ...(l1 && { l1 }), ...(l2 && { l2 }), nested, sections }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    return { id, doing: 'unknown: its nested state cannot be read', problem: error.message, sections }
  }
}

/** What `describeNested` needs beside the nested state; undefined where it is cut short. */
function contextOf(state: Blobs, memory: L1Memory | undefined): NestedContext | undefined {
  const { KVM_GET_REGS: regs, KVM_GET_SREGS2: sregs2 } = state
  if (!regs || !sregs2) return undefined
  try {
    return {
      regs: kvm_regs.decode(regs),
      sregs2: kvm_sregs2.decode(sregs2),
      msrs: savedMsrs(state),
      ...(memory && { memory }),
    }
  } catch (error) {
    if (error instanceof RangeError) return undefined
    throw error
  }
}

function savedMsrs(state: Blobs): Msr[] {
  return state.KVM_GET_MSRS ? msrsOf(state) : []
}

function doing({ format, mode }: NestedDescription, raw: Uint8Array): string {
  const state = decodeNestedState(raw)
  const hex = (address: bigint | undefined) => (address === undefined ? 'no address' : `0x${address.toString(16)}`)
  const block = state.format === 'svm' ? `VMCB12 at ${hex(state.vmcbPa)}` : `VMCS12 at ${hex(state.vmcs12Pa)}`
  const more = [
    ...(state.runPending ? ['its entry not completed'] : []),
    ...(state.format === 'svm' && !state.gif ? ['GIF = 0'] : []),
  ].map(text => `, ${text}`)
  switch (mode) {
    case 'L2':
      return `in L2 (${format}, ${block})${more.join('')}`
    case 'L1, VMCS current':
      return `in L1, with a current VMCS (${format}, ${block})${more.join('')}`
    case 'VMXON, no current VMCS':
      return `in L1, VMXON without a current VMCS${more.join('')}`
    case 'L1, SVM enabled':
      return `in L1, SVM enabled, no L2 running${more.join('')}`
    case 'SMM, VMX operation suspended':
      return 'in SMM, its VMX operation suspended'
    case 'not in use':
      return `in L1, ${format} there but not in use${more.join('')}`
  }
}

function halted({ KVM_GET_MP_STATE: bytes }: Blobs): string {
  if (!bytes || bytes.length < kvm_mp_state.size) return ''
  const { mp_state } = kvm_mp_state.decode(bytes)
  return { 1: ', not started yet', 2: ', waiting for SIPI', 3: ', halted' }[mp_state] ?? ''
}

/** What a vCPU is doing and where each level is, as one section. */
export function stateSection({ doing, l1, l2, nested, problem }: VcpuInspection): Section {
  const field = (name: string, label: string, value: bigint | string, meaning?: string): DescribedField => {
    return { name, label, value, ...(meaning !== undefined && { meaning }) }
  }
  const level = (name: string, state: LevelState | undefined) =>
    state
      ? [
          field(`${name}.rip`, `${name} RIP`, state.rip),
          field(`${name}.rsp`, `${name} RSP`, state.rsp),
          field(`${name}.pagingMode`, `${name} paging`, state.pagingMode),
          field(`${name}.cr3`, `${name} CR3`, state.cr3),
        ]
      : []
  const paging = nested?.nestedPaging
  const exit = nested?.l2 && lastExit(nested.sections)
  return {
    title: 'State',
    fields: [
      field('doing', 'It is', doing),
      ...(problem === undefined ? [] : [field('problem', 'Problem', problem)]),
      ...level('L2', l2),
      ...level('L1', l1),
      ...(paging
        ? [field('nestedPaging', paging.kind === 'EPT' ? 'EPT pointer' : 'nCR3', paging.pointer, paging.meaning)]
        : []),
      ...(exit ? [field('exit', 'Last VM exit to L1', exit)] : []),
    ],
  }
}

/** Why L2 left the last time, in words. Where it never did, there are zeros: they would read as an exit too. */
function lastExit(sections: readonly Section[]): string | undefined {
  const fields = sections.flatMap(({ fields }) => fields)
  const [reason, details] = [
    ['exitReason', 'exitCode'],
    ['exitQualification', 'exitInfo1'],
  ].map(names => fields.find(({ name }) => names.includes(name)))
  if (!reason?.meaning) return undefined
  const more = details?.meaning === 'none' ? undefined : details?.meaning
  if (reason.value === 0n && (more === undefined || reason.name === 'exitCode')) return undefined
  return more === undefined ? reason.meaning : `${reason.meaning}: ${more}`
}

/** What L1 lets L2 do, in the fields that `diffNested` compares. */
export function forL2Section({ nestedPaging, tscOffset, msrs, ports }: NestedDescription): Section {
  const field = (name: string, label: string, value: bigint | string): DescribedField => ({ name, label, value })
  return {
    title: 'For L2',
    fields: [
      ...(nestedPaging
        ? [field('nestedPaging', 'Nested paging', `${nestedPaging.kind}: ${nestedPaging.meaning}`)]
        : []),
      ...(tscOffset === undefined ? [] : [field('tscOffset', "TSC offset to L1's", `${tscOffset}`)]),
      ...(msrs
        ? [
            field('msrReads', 'MSRs read without an exit', msrs.reads.join(' ') || 'none'),
            field('msrWrites', 'MSRs written without an exit', msrs.writes.join(' ') || 'none'),
          ]
        : []),
      ...(ports ? [field('ports', 'Ports without an exit', ports.join(' ') || 'none')] : []),
    ],
  }
}

/** Where a guest-physical address of L2 leads in L1's. */
export type L2Walk = Walk & {
  readonly vcpu: number
  readonly kind: 'EPT' | 'NPT'
  /** The bytes there, where they are memory. */
  readonly content?: Uint8Array
}

/** Bytes of the page that are shown. */
const CONTENT = 16

/**
 * Walks from a guest-physical address of L2 through the tables that L1 has for it, of the given vCPU or the first that runs in L2.
 * @throws {ConfigError} there is no such vCPU, or it runs no L2 with nested paging
 */
export function walkL2(snapshot: Snapshot, memory: L1Memory, address: bigint, vcpu?: number): L2Walk {
  const { vcpus } = inspectSnapshot(snapshot)
  const remedy = 'give a vCPU that runs in L2 on nested paging'
  const chosen = vcpu === undefined ? vcpus.find(({ l2 }) => l2) : vcpus.find(({ id }) => id === vcpu)
  if (!chosen) {
    if (vcpu === undefined) throw new ConfigError('walk', address, 'no vCPU of this snapshot runs in L2', remedy)
    throw new ConfigError('vcpu', vcpu, 'the snapshot has no such vCPU', remedy)
  }
  const { id, doing, nested } = chosen
  if (!nested?.l2) throw new ConfigError('vcpu', id, `it is ${doing}`, remedy)
  if (!nested.nestedPaging || !nested.l1) {
    throw new ConfigError('vcpu', id, "L2 runs without nested paging: its physical addresses are L1's", remedy)
  }
  const { state } = snapshot.state.vcpus.find(saved => saved.id === id)!
  const { kind, pointer } = nested.nestedPaging
  const maxPhyAddr = physicalBits(state)
  const walk =
    kind === 'EPT'
      ? walkEpt(memory, pointer, address, { maxPhyAddr, ...eptOptions(state) })
      : walkNpt(memory, pointer, nested.l1, address, { maxPhyAddr })
  const content = walk.outcome === 'mapped' ? readContent(memory, Number(walk.physical)) : undefined
  return { vcpu: id, kind, ...walk, ...(content && { content }) }
}

function readContent(memory: L1Memory, address: number): Uint8Array | undefined {
  try {
    return memory.read(address, Math.min(CONTENT, 4096 - (address % 4096)))
  } catch (error) {
    if (error instanceof RangeError) return undefined
    throw error
  }
}

/** CPUID 80000008h, EAX bits 7:0 */
function physicalBits(state: Blobs): number | undefined {
  if (!state.KVM_SET_CPUID2) return undefined
  try {
    const leaf = cpuidOf(state).find(entry => entry.function === 0x80000008)
    return leaf && leaf.eax & 0xff
  } catch (error) {
    if (error instanceof RangeError) return undefined
    throw error
  }
}

const IA32_VMX_EPT_VPID_CAP = 0x48c

function eptOptions(state: Blobs): { modeBasedExecute: boolean; executeOnly?: boolean } {
  const vmcs12 = decodeVmcs12(blockAt(decodeNestedState(state.KVM_GET_NESTED_STATE!).data, 0))
  const capability = savedMsrs(state).find(({ index }) => index === IA32_VMX_EPT_VPID_CAP)
  return {
    modeBasedExecute: hasControl(vmcs12, 'secondary', 'mode-based execute control for EPT'),
    ...(capability && { executeOnly: (capability.value & 1n) !== 0n }),
  }
}
