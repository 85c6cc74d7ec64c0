import fc from 'fast-check'
import { expect, it } from 'vitest'
import * as k from '../../../lib/kvm/structs.js'
import { decodeNestedState, encodeNestedState } from '../../../lib/nested/state.js'
import { NONE, state, svmGuestMode, svmState, vmxGuestMode, vmxState } from './states.js'

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
  expect(outside).toMatchObject({ format: 'svm', guestMode: false, runPending: false, gif: false })
  expect(outside).not.toHaveProperty('vmcbPa')
  expect(outside.data).toHaveLength(0)
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

it('encodes what it decoded, byte for byte', () => {
  for (const bytes of [vmxState(), vmxState({ vmxonPa: 0x1000n }), vmxGuestMode(), svmState(0x100), svmGuestMode()]) {
    expect(encodeNestedState(decodeNestedState(bytes))).toEqual(bytes)
  }
})

it('encodes any header back, whatever newer kernels put there', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 128, maxLength: 128 }),
      fc.uint8Array({ maxLength: 64 }),
      fc.constantFrom(0, 1),
      (header, data, format) => {
        const bytes = new Uint8Array([...header, ...data])
        const view = new DataView(bytes.buffer)
        view.setUint16(2, format, true)
        view.setUint32(4, bytes.length, true)
        expect(encodeNestedState(decodeNestedState(bytes))).toEqual(bytes)
      },
    ),
    { numRuns: 1000 },
  )
})

it('encodes a change, and keeps the rest', () => {
  const vmx = decodeNestedState(vmxGuestMode())
  if (vmx.format !== 'vmx') throw new Error('not vmx')
  const { preemptionTimerDeadline: _, ...changed } = { ...vmx, mtfPending: true, smmVmxon: true, vmcs12Pa: 0x9000n }
  expect(decodeNestedState(encodeNestedState({ ...changed, preemptionTimerDeadline: 5n }))).toMatchObject({
    mtfPending: true,
    smmVmxon: true,
    vmxonPa: 0x1000n,
    vmcs12Pa: 0x9000n,
    preemptionTimerDeadline: 5n,
  })
  const svm = decodeNestedState(svmGuestMode())
  if (svm.format !== 'svm') throw new Error('not svm')
  const off = decodeNestedState(encodeNestedState({ ...svm, guestMode: false, gif: false, data: new Uint8Array() }))
  expect(off).toMatchObject({ guestMode: false, gif: false })
  expect(() => encodeNestedState({ ...svm, header: new Uint8Array(127) })).toThrow(/header: 127 bytes/)
  expect(() => encodeNestedState({ ...svm, vmcbPa: 2n ** 64n })).toThrow(TypeError)
})
