import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { NestedStateError } from '../../lib/errors.js'
import { kvm_sregs2 } from '../../lib/kvm/structs.js'
import { decodeVmcb12, encodeVmcb12, type Vmcb12Name } from '../../lib/nested/vmcb12.js'
import { decodeVmcs12, encodeVmcs12, type Vmcs12Name } from '../../lib/nested/vmcs12.js'
import type { L1Options } from '../guests/l1.js'
import { CONTROL_BLOCK, HOST_AREA, station } from '../guests/l1-layout.js'
import { hostExtension, L1Run, undisturbed } from './l1-run.js'

const options: L1Options = { rounds: 192, period: 64, nestedPaging: true, interrupt: 'none' }
const NONE = 2n ** 64n - 1n
const EFER_SVME = 1n << 12n

type Damage = (state: DataView) => Uint8Array | undefined

/** Offsets in `struct kvm_nested_state` (KVM API 4.114). */
const u16 = (at: number, value: number) => (state: DataView) => void state.setUint16(at, value, true)
const u32 = (at: number, value: number) => (state: DataView) => void state.setUint32(at, value, true)
const u64 = (at: number, value: bigint) => (state: DataView) => void state.setBigUint64(at, value, true)
const all =
  (...damages: Damage[]): Damage =>
  state => {
    for (const damage of damages) damage(state)
    return undefined
  }
const bytesOf = (state: DataView) => new Uint8Array(state.buffer, 0, state.byteLength)
const cut = (size: number) => (state: DataView) => {
  state.setUint32(4, size, true)
  return bytesOf(state).slice(0, size)
}
const flags = (bits: number) => (state: DataView) => void state.setUint16(0, state.getUint16(0, true) | bits, true)
const vmcb = (field: Vmcb12Name, change: (value: bigint) => bigint) => (state: DataView) => {
  const { fields, rest } = decodeVmcb12(bytesOf(state).slice(128, 128 + 4096))
  bytesOf(state).set(encodeVmcb12({ fields: { ...fields, [field]: change(fields[field]) }, rest }), 128)
  return undefined
}
const vmcs = (field: Vmcs12Name, change: (value: bigint) => bigint) => (state: DataView) => {
  const { fields, rest } = decodeVmcs12(bytesOf(state).slice(128, 128 + 4096))
  bytesOf(state).set(encodeVmcs12({ fields: { ...fields, [field]: change(fields[field]) }, rest }), 128)
  return undefined
}
const set = (value: bigint) => () => value
const clear = (bits: bigint) => (value: bigint) => value & ~bits

const common: [string, Damage][] = [
  ['too-short', state => bytesOf(state).slice(0, 100)],
  ['size', u32(4, 64)],
  ['unknown-flags', flags(0x4000)],
  ['run-pending-outside-guest-mode', u16(0, 2)],
  ['format', u16(2, hostExtension() === 'vmx' ? 1 : 0)],
  ['format', u16(2, 7)],
]

const svm: [string, Damage][] = [
  ['svm-flags', flags(8)],
  ['svm-vmcb-address', u64(8, BigInt(CONTROL_BLOCK) + 8n)],
  ['svm-data-length', cut(128 + 1024)],
  ['svm-vmrun-intercept', vmcb('interceptVector4', clear(1n))],
  ['svm-asid', vmcb('guestAsid', set(0n))],
  ['svm-n-cr3', vmcb('nCr3', set(1n << 60n))],
  ['svm-save-paging', vmcb('cr0', clear(1n << 31n))],
  ['svm-save-paging', vmcb('cr0', clear(1n))],
  ['svm-save-svme', vmcb('efer', clear(EFER_SVME))],
  ['svm-save-cr0', vmcb('cr0', value => value | (1n << 40n))],
  ['svm-save-pae', vmcb('cr4', clear(1n << 5n))],
  ['svm-save-cr3', vmcb('cr3', set(1n << 60n))],
]

const vmx: [string, Damage][] = [
  ['vmx-vmxon-address', u64(8, BigInt(HOST_AREA) + 8n)],
  ['vmx-vmcs-without-vmxon', u64(8, NONE)],
  ['vmx-smm-flags-without-vmxon', all(u64(8, NONE), u16(24, 1))],
  ['vmx-flags-without-vmxon', all(u64(8, NONE), u64(16, NONE))],
  ['vmx-vmcs-is-vmxon', u64(16, BigInt(HOST_AREA))],
  ['vmx-vmcs-address', u64(16, BigInt(CONTROL_BLOCK) + 8n)],
  ['vmx-data-length', cut(128 + 512)],
  ['vmx-data-without-vmcs', u64(16, NONE)],
  ['vmx-unknown-smm-flags', u16(24, 0x40)],
  ['vmx-unknown-header-flags', u32(28, 0x40)],
  ['vmx-smm-flags-outside-smm', u16(24, 2)],
  ['vmx-guest-mode-twice', u16(24, 3)],
  ['vmx-evmcs-not-enabled', flags(4)],
  ['vmx-revision', vmcs('vmcsRevisionIdentifier', set(1n))],
  ['vmx-cr3-target-count', vmcs('cr3TargetCount', set(5n))],
  ['vmx-eptp', vmcs('eptPointer', set(1n << 60n))],
  ['vmx-host-cr0', vmcs('hostCr0', set(0n))],
  ['vmx-host-cs-null', vmcs('hostCsSelector', set(0n))],
  ['vmx-host-rip', vmcs('hostRip', set(1n << 62n))],
]

describe('a malformed state is refused before the ioctl, by the name of its rule', () => {
  let run: L1Run
  beforeAll(() => {
    run = new L1Run(options)
    run.runTo(station.l2)
  })
  afterAll(() => run.close())

  it.each([...common, ...(hostExtension() === 'vmx' ? vmx : svm)])('%s', (rule, damage) => {
    const state = run.vcpu.getNestedState()
    const view = new DataView(state.slice().buffer)
    const ioctl = vi.spyOn(run.vcpu.native, 'setNestedState')
    try {
      const bad = damage(view) ?? bytesOf(view)
      expect(Buffer.compare(bad, state)).not.toBe(0)
      expect(() => run.vcpu.setNestedState(bad)).toThrow(NestedStateError)
      expect(() => run.vcpu.setNestedState(bad)).toThrow(expect.objectContaining({ rule }))
      expect(ioctl).not.toHaveBeenCalled()
      // What it came from is still good.
      run.vcpu.setNestedState(state)
      expect(ioctl).toHaveBeenCalledOnce()
    } finally {
      ioctl.mockRestore()
    }
    expect(run.nestedState()).toMatchObject({ guestMode: true })
  })

  it('and L2 goes on', () => {
    expect(run.finish()).toBe(undisturbed(options))
  })
})

if (hostExtension() === 'svm') {
  it('svm-svme: a state of L2 for a vCPU that has not turned svm on', () => {
    using run = new L1Run(options)
    run.runTo(station.l2)
    const state = run.vcpu.getNestedState()
    using other = new L1Run(options)
    expect(() => other.vcpu.setNestedState(state)).toThrow(expect.objectContaining({ rule: 'svm-svme' }))
    expect(other.finish()).toBe(undisturbed(options))
  })
}

it('restoring a vCPU with a malformed state names the rule, and the host goes on', () => {
  using run = new L1Run(options)
  run.runTo(station.l2)
  const rule = run.extension === 'vmx' ? 'vmx-vmxon-address' : 'svm-svme'
  expect(() =>
    run.move(({ vcpu: { state } }) => {
      if (run.extension === 'vmx') state.KVM_GET_NESTED_STATE![8]! |= 8
      // EFER.SVME off, so that the nested state has nothing to stand on.
      else state.KVM_GET_SREGS2![kvm_sregs2.offsetOf('efer') + 1]! &= ~0x10
    }),
  ).toThrow(expect.objectContaining({ rule }))
  expect(undisturbed(options)).toMatch(/^L2 [0-9a-f]{16} L1 [0-9a-f]{16}$/)
})
