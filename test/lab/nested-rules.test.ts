import { expect, it } from 'vitest'
import { cap } from '../../lib/kvm/capabilities.js'
import * as k from '../../lib/kvm/structs.js'
import { BLOCK_SIZE, blockAt } from '../../lib/nested/block.js'
import { describeNested } from '../../lib/nested/describe.js'
import { checkNestedState, type NestedVcpu } from '../../lib/nested/rules.js'
import { decodeNestedState, encodeNestedState } from '../../lib/nested/state.js'
import { decodeVmcb12, encodeVmcb12, VMCB12_FIELDS } from '../../lib/nested/vmcb12.js'
import { decodeVmcs12, encodeVmcs12, VMCS12_FIELDS } from '../../lib/nested/vmcs12.js'
import { VMX_MSRS } from '../../lib/nested/vmx-capabilities.js'
import { station } from '../guests/l1-layout.js'
import { L1Run } from './l1-run.js'

/** An L1 that has entered its L2. */
function running(): L1Run {
  const run = new L1Run({ rounds: 64, period: 64, nestedPaging: true, interrupt: 'none' })
  run.runTo(station.l2)
  return run
}

function vcpuOf({ kvm, vcpu, extension }: L1Run): NestedVcpu {
  const { efer, cr4 } = vcpu.getSregs()
  const widths = kvm.supportedCpuid().find(entry => entry.function === 0x80000008)!
  const capabilities = extension === 'vmx' ? vcpu.getMsrs(Object.values(VMX_MSRS)) : []
  return {
    format: extension,
    efer,
    cr4,
    smm: false,
    maxSize: kvm.checkExtension(cap.NESTED_STATE),
    enlightenedVmcs: false,
    maxPhyAddr: widths.eax & 0xff,
    la57: kvm
      .supportedCpuid()
      .some(entry => entry.function === 7 && entry.index === 0 && (entry.ecx & (1 << 16)) !== 0),
    vmxMsrs: new Map(capabilities.map(({ index, value }) => [index, value])),
  }
}

const passes = (action: () => void) => {
  try {
    action()
    return true
  } catch {
    return false
  }
}

const blocks = {
  svm: { fields: VMCB12_FIELDS, decode: decodeVmcb12, encode: encodeVmcb12 as never },
  vmx: { fields: VMCS12_FIELDS, decode: decodeVmcs12, encode: encodeVmcs12 as never },
} as const

/** Values that a field may go wrong with. */
function values(width: number, now: bigint): bigint[] {
  const all = (1n << BigInt(width * 8)) - 1n
  const bits = Array.from({ length: width * 8 }, (_, bit) => now ^ (1n << BigInt(bit)))
  return [0n, 1n, 2n, 0xfffn, all, all - 0xfffn, ...bits].map(value => value & all)
}

/** The states that differ from `state` in one field of the control block or one 16-bit word of the header; each when it is made. */
function* changed(state: Uint8Array, extension: 'svm' | 'vmx'): Generator<[what: string, make: () => Uint8Array]> {
  const { fields, decode, encode } = blocks[extension]
  const block = decode(blockAt(state.subarray(128), 0))
  for (const { name, width } of fields) {
    const now = (block.fields as Record<string, bigint>)[name]!
    for (const value of new Set(values(width, now))) {
      const make = () => {
        const bytes = state.slice()
        const next = { ...block, fields: { ...block.fields, [name]: value } }
        bytes.set((encode as (block: unknown) => Uint8Array)(next), 128)
        return bytes
      }
      yield [`${name} 0x${value.toString(16)}`, make]
    }
  }
  for (let at = 0; at < 48; at += 2) {
    for (let bit = 0; bit < 16; bit++) {
      const bytes = state.slice()
      bytes[at + (bit >> 3)]! ^= 1 << (bit & 7)
      // A size beyond the buffer does not get to the kernel.
      if (new DataView(bytes.buffer).getUint32(4, true) <= bytes.length) yield [`header ${at} bit ${bit}`, () => bytes]
    }
  }
}

/**
 * What only the kernel can know: CPUID's share of the control registers, the PMU, IA32_DEBUGCTL, what guest memory has; and
 * LAM's bits of CR3, which newer kernels take.
 */
const kernelsOwn =
  /^((cr4|efer|hostCr4|guestCr4|hostIa32Efer|guestIa32Efer|(host|guest)Ia32PerfGlobalCtrl|guestIa32Debugctl|vmcsLinkPointer) |(cr3|hostCr3|guestCr3) 0x[246]0)/

/** Thousands of ioctls in an emulated host, which may share its processors. */
const SLOW = { timeout: 900_000 }

it('what KVM gives keeps the rules, comes back byte for byte, and can be told of', SLOW, () => {
  using run = new L1Run({ rounds: 64, period: 16, nestedPaging: true, interrupt: 'window' })
  const modes = new Set<string>()
  while (!run.ended) {
    run.step()
    const bytes = run.vcpu.getNestedState()
    checkNestedState(bytes, vcpuOf(run))
    const state = decodeNestedState(bytes)
    expect(Buffer.compare(encodeNestedState(state), bytes)).toBe(0)
    if (state.data.length) {
      const { decode, encode } = blocks[run.extension]
      const page = blockAt(state.data, 0)
      expect(Buffer.compare((encode as (block: unknown) => Uint8Array)(decode(page)), page)).toBe(0)
    }
    const context = { regs: run.vcpu.getRegs(), sregs2: run.vcpu.getSregs2() }
    modes.add(describeNested(bytes, context).mode)
  }
  expect(modes).toContain('not in use')
  expect(modes).toContain('L2')
  expect(modes).toContain(run.extension === 'svm' ? 'L1, SVM enabled' : 'L1, VMCS current')
})

it('refuses what KVM refuses, and nothing that it takes', SLOW, () => {
  using run = running()
  const vcpu = vcpuOf(run)
  const state = run.vcpu.getNestedState()
  const tooStrict: string[] = []
  const tooLenient: string[] = []
  let count = 0
  let refused = 0
  // Emulated hosts are slow: every so-many-th, all fields having their turn.
  const stride = run.extension === 'svm' ? 3 : 11
  let turn = 0
  for (const [what, make] of changed(state, run.extension)) {
    if (turn++ % stride) continue
    const bytes = make()
    const ours = passes(() => checkNestedState(bytes, vcpu))
    // Past our own check.
    const kernels = passes(() => run.vcpu.setRawNestedState(bytes))
    run.vcpu.setRawNestedState(state)
    count++
    if (!kernels) refused++
    if (kernels && !ours) tooStrict.push(what)
    if (!kernels && ours && !kernelsOwn.test(what)) tooLenient.push(what)
  }
  console.log(`${count} states, ${refused} of them refused by KVM`)
  expect(tooStrict).toEqual([])
  expect(tooLenient).toEqual([])
  expect(refused).toBeGreaterThan(50)
  // After all that L2 is where it was.
  expect(decodeNestedState(run.vcpu.getNestedState()).guestMode).toBe(true)
  // Without VMCS shadowing one block.
  expect(state.length).toBe(128 + BLOCK_SIZE)
})

it('names the rule before the ioctl, and the machine goes on', () => {
  using run = running()
  const bytes = run.vcpu.getNestedState()
  new DataView(bytes.buffer).setUint16(0, k.KVM_STATE_NESTED_RUN_PENDING, true)
  expect(() => checkNestedState(bytes, vcpuOf(run))).toThrow(/run-pending-outside-guest-mode/)
  expect(run.finish()).toMatch(/^L2 [0-9a-f]{16} L1 [0-9a-f]{16}$/)
})
