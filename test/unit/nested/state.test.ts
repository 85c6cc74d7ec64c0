import fc from 'fast-check'
import { expect, it } from 'vitest'
import * as k from '../../../lib/kvm/structs.js'
import { decodeNestedState } from '../../../lib/nested/state.js'

function state(flags: number, format: number, header: Uint8Array, data = new Uint8Array()): Uint8Array {
  const bytes = new Uint8Array(128 + data.length)
  const pad = new Uint8Array(120)
  pad.set(header)
  k.kvm_nested_state.encode({ flags, format, size: bytes.length, hdr: { pad } }, bytes)
  bytes.set(data, 128)
  return bytes
}

const NONE = 2n ** 64n - 1n
const vmx = (vmxon_pa: bigint, vmcs12_pa: bigint, flags = 0, smm = 0) =>
  k.kvm_vmx_nested_state_hdr.encode({
    vmxon_pa,
    vmcs12_pa,
    smm: { flags: smm },
    pad: 0,
    flags,
    preemption_timer_deadline: 77n,
  })

it('reads SVM in guest mode, and outside it with GIF 0', () => {
  const header = k.kvm_svm_nested_state_hdr.encode({ vmcb_pa: 0x5000n, gpat: 0n })
  const inside = decodeNestedState(state(0x101, 1, header, new Uint8Array(4096).fill(7)))
  expect(inside).toMatchObject({ format: 'svm', guestMode: true, runPending: false, gif: true, vmcbPa: 0x5000n })
  expect(inside.data).toEqual(new Uint8Array(4096).fill(7))
  const outside = decodeNestedState(state(0, 1, new Uint8Array(16)))
  expect(outside).toEqual({ format: 'svm', guestMode: false, runPending: false, gif: false, data: new Uint8Array() })
})

it('reads VMX: nothing, VMXON without a VMCS, L2 with an armed timer', () => {
  const none = decodeNestedState(state(0, 0, vmx(NONE, NONE)))
  expect(none).not.toHaveProperty('vmxonPa')
  expect(none).not.toHaveProperty('vmcs12Pa')
  const on = decodeNestedState(state(0, 0, vmx(0x1000n, NONE)))
  expect(on).toMatchObject({ vmxonPa: 0x1000n, guestMode: false })
  expect(on).not.toHaveProperty('vmcs12Pa')
  const l2 = decodeNestedState(state(0xb, 0, vmx(0x1000n, 0x2000n, 1, 3), new Uint8Array(8192)))
  expect(l2).toMatchObject({ guestMode: true, runPending: true, mtfPending: true, vmcs12Pa: 0x2000n })
  expect(l2).toMatchObject({ smmGuestMode: true, smmVmxon: true, preemptionTimerDeadline: 77n })
})

it('refuses what is cut short, lies about its size or has an unknown format', () => {
  const whole = state(0, 1, new Uint8Array(16))
  expect(() => decodeNestedState(whole.subarray(0, 127))).toThrow(RangeError)
  expect(() => decodeNestedState(state(0, 2, new Uint8Array(16)))).toThrow(/format: 2 is neither/)
  for (const size of [0, 127, 129]) {
    const lie = whole.slice()
    new DataView(lie.buffer).setUint32(4, size, true)
    expect(() => decodeNestedState(lie)).toThrow(/kvm_nested_state.size/)
  }
})

it('never fails in another way, whatever the bytes', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), bytes => {
      try {
        decodeNestedState(bytes)
      } catch (error) {
        expect(error).toBeInstanceOf(RangeError)
      }
    }),
  )
})
