import { expect, it } from 'vitest'
import { cap } from '../../lib/kvm/capabilities.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import { hasControl } from '../../lib/nested/controls-vmx.js'
import type { NestedState } from '../../lib/nested/state.js'
import { decodeVmcb12 } from '../../lib/nested/vmcb12.js'
import { decodeVmcs12 } from '../../lib/nested/vmcs12.js'
import { CONTROL_BLOCK, HOST_AREA, station } from '../guests/l1-layout.js'
import { hostExtension, L1Run } from './l1-run.js'

const extension = hostExtension()
const options = { rounds: 192, period: 64, nestedPaging: false, interrupt: 'none' } as const

/** Whether L1 intercepts L2's HLT, by the control block as KVM keeps it. */
function interceptsHlt({ format, data }: NestedState): boolean {
  if (format === 'vmx') return hasControl(decodeVmcs12(data), 'primary', 'HLT exiting')
  return (decodeVmcb12(data).fields.interceptVector3 & (1n << 24n)) !== 0n
}

it('this host has nested state', () => {
  using kvm = Kvm.open()
  expect(kvm.checkExtension(cap.NESTED_STATE)).toBeGreaterThanOrEqual(extension === 'vmx' ? 8320 : 4224)
})

it('the nested state follows an L1 into L2 and back', () => {
  using run = new L1Run(options)
  run.runTo(station.start)
  const before = run.nestedState()
  expect(before).toMatchObject({ format: extension, guestMode: false, runPending: false })
  expect(before.data).toHaveLength(0)
  if (before.format === 'vmx') expect(before.vmxonPa).toBeUndefined()
  else expect(before).toMatchObject({ gif: true })

  run.runTo(station.ready)
  const ready = run.nestedState()
  if (ready.format === 'vmx') {
    expect(ready).toMatchObject({ vmxonPa: BigInt(HOST_AREA), vmcs12Pa: BigInt(CONTROL_BLOCK), guestMode: false })
  } else {
    expect(ready).toMatchObject({ gif: false, guestMode: false })
    expect(ready.vmcbPa).toBeUndefined()
  }

  run.runTo(station.l2)
  const inside = run.nestedState()
  expect(inside).toMatchObject({ guestMode: true, runPending: false })
  if (inside.format === 'vmx') expect(inside.vmcs12Pa).toBe(BigInt(CONTROL_BLOCK))
  else expect(inside).toMatchObject({ vmcbPa: BigInt(CONTROL_BLOCK), gif: true })
  expect(interceptsHlt(inside)).toBe(true)

  run.runTo(station.exit)
  const back = run.nestedState()
  expect(back.guestMode).toBe(false)
  if (back.format === 'svm') expect(back).toMatchObject({ gif: false })

  run.runTo(station.end)
  const end = run.nestedState()
  expect(end).toMatchObject({ guestMode: false })
  if (end.format === 'vmx') expect(end.vmxonPa).toBeUndefined()
})

it('a nested state can be set where it was taken', () => {
  using run = new L1Run(options)
  run.runTo(station.l2)
  run.vcpu.setNestedState(run.vcpu.getNestedState())
  expect(run.nestedState().guestMode).toBe(true)
  expect(run.runTo(station.exit).value).toBeGreaterThan(0)
})

it('a state that lies about its size is refused, and the vCPU goes on', () => {
  using run = new L1Run(options)
  run.runTo(station.start)
  const state = run.vcpu.getNestedState()
  new DataView(state.buffer).setUint32(4, state.length + 1, true)
  expect(() => run.vcpu.setNestedState(state)).toThrow(/nested state: size: size: \d+: not between 128/)
  expect(() => run.vcpu.setNestedState(state.subarray(0, 64))).toThrow(/the header alone is 128 bytes/)
  expect(run.runTo(station.l2).value).toBe(64)
})
