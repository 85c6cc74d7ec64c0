import { expect, it } from 'vitest'
import { cap } from '../../lib/kvm/capabilities.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import { decodeNestedState } from '../../lib/nested/state.js'
import * as svm from '../guests/svm-l1.js'
import { type Guest, loadGuest, runTo } from '../kvm/guest.js'

function nestedState({ vcpu }: Guest) {
  const state = decodeNestedState(vcpu.getNestedState())
  if (state.format !== 'svm') throw new Error(`this host gives ${state.format} state`)
  return state
}

function l1(): Guest {
  const guest = loadGuest('long', svm.source)
  svm.writeVmcb(guest.ram.bytes, guest.vcpu.getSregs().cr3)
  return guest
}

it('this host has nested state', () => {
  using kvm = Kvm.open()
  expect(kvm.checkExtension(cap.NESTED_STATE)).toBeGreaterThanOrEqual(4224)
})

it('the nested state follows an L1 into L2 and back', () => {
  using guest = l1()
  expect([...runTo(guest.vcpu, 'io-out').data]).toEqual([0xff, 0xff, 0xff, 0xff])
  guest.vcpu.complete()
  const before = nestedState(guest)
  expect(before).toMatchObject({ guestMode: false, gif: true })
  expect(before.vmcbPa).toBeUndefined()
  expect(before.data).toHaveLength(0)

  const fromL2 = runTo(guest.vcpu, 'io-out')
  expect([fromL2.port, fromL2.data[0]]).toEqual([svm.L2_PORT, 0x42])
  guest.vcpu.complete()
  const inside = nestedState(guest)
  expect(inside).toMatchObject({ guestMode: true, runPending: false, vmcbPa: BigInt(svm.VMCB) })
  expect(inside.data).toHaveLength(4096)
  // The control area is VMCB12's: L1 intercepts HLT (AMD APM vol. 2, appendix B).
  expect(new DataView(inside.data.buffer, inside.data.byteOffset).getUint32(0x0c, true) & (1 << 24)).not.toBe(0)

  const fromL1 = runTo(guest.vcpu, 'io-out')
  expect([fromL1.port, fromL1.data[0]]).toEqual([svm.L1_PORT, svm.VMEXIT_HLT])
  guest.vcpu.complete()
  expect(nestedState(guest)).toMatchObject({ guestMode: false, gif: false })
})

it('a nested state can be set where it was taken', () => {
  using guest = l1()
  runTo(guest.vcpu, 'io-out')
  runTo(guest.vcpu, 'io-out')
  guest.vcpu.complete()
  guest.vcpu.setNestedState(guest.vcpu.getNestedState())
  expect(nestedState(guest).guestMode).toBe(true)
  expect([...runTo(guest.vcpu, 'io-out').data]).toEqual([svm.VMEXIT_HLT, 0, 0, 0])
})

it('a state that lies about its size is refused, and the vCPU goes on', () => {
  using guest = l1()
  runTo(guest.vcpu, 'io-out')
  const state = guest.vcpu.getNestedState()
  new DataView(state.buffer).setUint32(4, state.length + 1, true)
  expect(() => guest.vcpu.setNestedState(state)).toThrow(/KVM_SET_NESTED_STATE: `size` in the header is larger/)
  expect(() => guest.vcpu.setNestedState(state.subarray(0, 64))).toThrow(/shorter than the 128-byte header/)
  expect(runTo(guest.vcpu, 'io-out').port).toBe(svm.L2_PORT)
})
