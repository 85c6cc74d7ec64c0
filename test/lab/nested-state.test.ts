import { expect, it } from 'vitest'
import { saveVcpu, vcpuPlan } from '../../lib/arch/x86_64/vcpu-state.js'
import { DEEP_STEPS, diagnoseDeeply, inspectSnapshot, walkL2 } from '../../lib/index.js'
import { cap } from '../../lib/kvm/capabilities.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import { hasControl } from '../../lib/nested/controls-vmx.js'
import type { NestedState } from '../../lib/nested/state.js'
import { decodeVmcb12 } from '../../lib/nested/vmcb12.js'
import { decodeVmcs12 } from '../../lib/nested/vmcs12.js'
import { CONTROL_BLOCK, HOST_AREA, L2_ORIGIN, L2_SIZE, NESTED_OFFSET, station } from '../guests/l1-layout.js'
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

it('the deep diagnosis sees an L2 run, saves it and goes on with it', async () => {
  const found = await diagnoseDeeply()
  expect(found).toMatchObject({ ok: true, extension, nestedPaging: true, passed: DEEP_STEPS, failed: null })
  expect(found.nestedStateBytes).toBeGreaterThan(4096)
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

it('a state of L2 can be inspected, and its memory found', () => {
  using run = new L1Run({ ...options, nestedPaging: true })
  run.runTo(station.l2)
  const { state } = saveVcpu(run.vcpu, vcpuPlan(run.vcpu, run.kvm.msrIndices()))
  const snapshot = {
    ...{ directory: 'l1', id: 'l1', created: '2026-11-22T00:00:00Z', chain: ['l1'] },
    state: { config: {}, devices: {}, vm: {}, vcpus: [{ id: 0, about: {}, state }] },
    memory: { regions: [] },
  } as unknown as Parameters<typeof walkL2>[0]
  const { bytes } = run.ram
  const memory = { read: (address: number, length: number) => bytes.subarray(address, address + length) }

  const [vcpu] = inspectSnapshot(snapshot, memory).vcpus
  const block = `${extension === 'svm' ? 'VMCB12' : 'VMCS12'} at 0x${CONTROL_BLOCK.toString(16)}`
  expect(vcpu).toMatchObject({ doing: `in L2 (${extension}, ${block})`, l1: { pagingMode: '4-level' } })
  const rip = Number(vcpu!.l2!.rip)
  expect(rip - L2_ORIGIN).toBeGreaterThan(0)
  expect(rip - L2_ORIGIN).toBeLessThan(L2_SIZE)

  const walk = walkL2(snapshot, memory, BigInt(rip))
  expect(walk).toMatchObject({ outcome: 'mapped', physical: BigInt(rip + NESTED_OFFSET), pageSize: 4096 })
  expect(walk.steps).toHaveLength(4)
  expect(Buffer.from(walk.content!)).toEqual(Buffer.from(bytes.subarray(rip + NESTED_OFFSET, rip + NESTED_OFFSET + 16)))
  // Beyond what L1 gave L2.
  expect(walkL2(snapshot, memory, 0x7000_0000n).outcome).toBe('not present')
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
