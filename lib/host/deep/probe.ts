import { IDENTITY_MAP_ADDRESS, TSS_ADDRESS } from '../../arch/x86_64/layout.js'
import { restoreVcpu, saveVcpu, vcpuPlan } from '../../arch/x86_64/vcpu-state.js'
import { restoreClock, restoreVm, saveVm } from '../../arch/x86_64/vm-state.js'
import { cap } from '../../kvm/capabilities.js'
import { Kvm } from '../../kvm/kvm.js'
import type { KvmSegment } from '../../kvm/structs.js'
import type { Vcpu } from '../../kvm/vcpu.js'
import { decodeNestedState } from '../../nested/state.js'
import type { Extension } from '../modules.js'
import { offeredExtensions } from '../offer.js'
import { CR0, type DeepExtension, type Prepared, STACK, selector } from './extension.js'
import { at, LARGE_LEAF, LAST_COUNT, report, writeTables } from './guests.js'
import { type Report, Stepper } from './stepper.js'
import { svmDeep } from './svm.js'
import { vmxDeep } from './vmx.js'

/** The steps of the deep diagnosis, in order. */
export const DEEP_STEPS = ['enter', 'save', 'restore', 'continue', 'exit'] as const
export type DeepStep = (typeof DEEP_STEPS)[number]

/** What came of the deep diagnosis. */
export interface DeepDiagnosis {
  readonly ok: boolean
  /** The extension that was tried; null where KVM offers none. */
  readonly extension: Extension | null
  /** L1 gave L2 nested page tables (EPT, NPT); null where it did not get so far. */
  readonly nestedPaging: boolean | null
  /** Bytes of the nested state with L2 in it. */
  readonly nestedStateBytes: number | null
  /** The steps that went well. */
  readonly passed: DeepStep[]
  /** The step that failed, and why; null where all went well. */
  readonly failed: { readonly step: DeepStep; readonly problem: string } | null
}

export interface DeepOptions {
  /** Seconds for each time that the guest runs. Default: 20; in an emulated host they are its own. */
  readonly timeout?: number
}

const extensions: Record<Extension, DeepExtension> = { svm: svmDeep, vmx: vmxDeep }

/**
 * Tries whether nesting works here: an L1 of a few instructions enters an L2, whose nested state is taken (KVM_GET_NESTED_STATE), set into a
 * fresh vCPU of another VM and run on there until L2 calls L1. Nothing of the host is changed. Never throws for what it finds.
 */
export async function diagnoseDeeply({ timeout = 20 }: DeepOptions = {}): Promise<DeepDiagnosis> {
  const progress: Progress = { passed: [], extension: null, nestedPaging: null, nestedStateBytes: null }
  try {
    await run(progress, timeout * 1000)
    return { ok: true, ...progress, failed: null }
  } catch (error) {
    const step = DEEP_STEPS[progress.passed.length]!
    const problem = error instanceof Error ? error.message : String(error)
    return { ok: false, ...progress, failed: { step, problem } }
  }
}

interface Progress {
  passed: DeepStep[]
  extension: Extension | null
  nestedPaging: boolean | null
  nestedStateBytes: number | null
}

async function run(progress: Progress, milliseconds: number): Promise<void> {
  using kvm = Kvm.open()
  const cpuid = kvm.supportedCpuid()
  const [extension] = offeredExtensions(cpuid)
  if (!extension) throw new Error('KVM offers neither vmx nor svm to guests')
  progress.extension = extension

  using first = createVm(kvm)
  first.vm.enableCap(cap.EXCEPTION_PAYLOAD, 1n)
  first.vcpu.setCpuid(cpuid)
  const prepared = extensions[extension].prepare(first.vcpu, first.memory, cpuid)
  progress.nestedPaging = prepared.nestedPaging
  enterLongMode(first.vcpu, first.memory, prepared)
  const plan = vcpuPlan(first.vcpu, kvm.msrIndices())
  using before = stepper(first.vcpu, milliseconds)
  expectReport(await before.steps.next(), report.l2, 1)
  progress.passed.push('enter')

  const saved = { vcpu: saveVcpu(first.vcpu, plan), vm: saveVm(first.vm), memory: first.memory.slice() }
  const nested = saved.vcpu.state.KVM_GET_NESTED_STATE!
  if (!decodeNestedState(nested).guestMode) throw new Error('the nested state does not say that L2 runs')
  progress.nestedStateBytes = nested.length
  progress.passed.push('save')

  using second = createVm(kvm)
  second.memory.set(saved.memory)
  restoreVm(second.vm, saved.vm)
  const { tscShift } = restoreClock(second.vm, saved.vm, 'stopped')
  restoreVcpu(second.vcpu, saved.vcpu, { tscShift: tscShift(saved.vcpu) })
  if (!decodeNestedState(second.vcpu.getNestedState()).guestMode) throw new Error('L2 is not there after it was set')
  progress.passed.push('restore')

  using after = stepper(second.vcpu, milliseconds)
  for (let count = 2; count <= LAST_COUNT; count++) expectReport(await after.steps.next(), report.l2, count)
  progress.passed.push('continue')
  expectReport(await after.steps.next(), report.l1, extensions[extension].hypercall)
  progress.passed.push('exit')
}

/** A VM with one vCPU and empty memory. */
function createVm(kvm: Kvm) {
  const vm = kvm.createVm()
  vm.setIdentityMapAddress(IDENTITY_MAP_ADDRESS)
  vm.setTssAddress(TSS_ADDRESS)
  vm.createIrqchip()
  const memory = vm.addMemory({ guestAddress: 0, size: at.end }).bytes
  return { vm, memory, vcpu: vm.createVcpu(0), [Symbol.dispose]: () => vm.close() }
}

function stepper(vcpu: Vcpu, milliseconds: number) {
  const steps = new Stepper(vcpu, milliseconds)
  return { steps, [Symbol.dispose]: () => steps.close() }
}

/** L1 in 64-bit mode at CPL 0, its first 2 MiB mapped to themselves. */
function enterLongMode(vcpu: Vcpu, memory: Uint8Array, { cr4, efer, registers }: Prepared): void {
  writeTables(memory, at.pageTables, LARGE_LEAF)
  const sregs = vcpu.getSregs()
  const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0, padding: 0 }
  const data: KvmSegment = { ...flat, selector: selector.data, type: 3, db: 1, l: 0 }
  const cs: KvmSegment = { ...flat, selector: selector.code, type: 11, db: 0, l: 1 }
  const tr: KvmSegment = { ...data, selector: selector.task, limit: 0x67, type: 11, s: 0, g: 0, db: 0 }
  const segments = { cs, tr, ds: data, es: data, fs: data, gs: data, ss: data }
  vcpu.setSregs({ ...sregs, ...segments, cr0: CR0, cr3: BigInt(at.pageTables), cr4, efer })
  vcpu.setRegs({ ...vcpu.getRegs(), ...registers, rip: BigInt(at.l1), rsp: BigInt(at.l1 + STACK), rflags: 2n })
}

function expectReport({ port, value }: Report, wantedPort: number, wantedValue: number): void {
  if (port === wantedPort && value === wantedValue) return
  const who = { [report.l2]: 'L2 counted', [report.l1]: 'L2 exited to L1 with', [report.failed]: 'L1 failed with' }[
    port
  ]
  const wanted = wantedPort === report.l2 ? `L2 to count ${wantedValue}` : `L2's hypercall (${wantedValue})`
  throw new Error(`${who ?? `port 0x${port.toString(16)} got`} 0x${value.toString(16)} in place of ${wanted}`)
}
