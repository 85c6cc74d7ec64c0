import { describe, expect, it } from 'vitest'
import { cpuidOf, msrsOf, restoreVcpu, saveVcpu, vcpuPlan } from '../../lib/arch/x86_64/vcpu-state.js'
import { restoreClock, restoreVm, saveVm } from '../../lib/arch/x86_64/vm-state.js'
import { cap } from '../../lib/kvm/capabilities.js'
import { kvm_mp_state, kvm_msrs, kvm_regs } from '../../lib/kvm/structs.js'
import { type Guest, loadGuest, openGuest, places, placesKept, runTo } from './guest.js'

/** Without the extensions: this host may have no nested state. */
function withoutNesting({ kvm, vcpu }: Guest): void {
  const entries = kvm.supportedCpuid().map(entry => {
    if (entry.function === 1) return { ...entry, ecx: entry.ecx & ~(1 << 5) }
    if (entry.function === 0x80000001) return { ...entry, ecx: entry.ecx & ~(1 << 2) }
    return entry
  })
  vcpu.setCpuid(entries.map(entry => ({ ...entry, ecx: entry.ecx >>> 0 })))
}

function open(source?: string): Guest {
  const guest = source ? loadGuest('user', source, { irqchip: true }) : openGuest({ irqchip: true })
  guest.vm.createPit2()
  for (const name of ['EXCEPTION_PAYLOAD', 'X86_TRIPLE_FAULT_EVENT'] as const) guest.vm.enableCap(cap[name], 1n)
  if (source) withoutNesting(guest)
  return guest
}

function save({ kvm, vm, vcpu, ram }: Guest) {
  return { vm: saveVm(vm), vcpu: saveVcpu(vcpu, vcpuPlan(vcpu, kvm.msrIndices())), memory: ram.bytes.slice() }
}

function restore({ vm, vcpu, ram }: Guest, saved: ReturnType<typeof save>): void {
  ram.bytes.set(saved.memory)
  restoreVm(vm, saved.vm)
  const clock = restoreClock(vm, saved.vm, 'realtime')
  restoreVcpu(vcpu, saved.vcpu, { tscShift: clock.tscShift(saved.vcpu) })
}

/** Mixes a counter into rax, in SSE and in memory as well, and tells of each round over a port. */
const HASH = `
  mov rcx, 40
  mov rax, 0x1234567
  mov rsi, 0x6000
  pxor xmm1, xmm1
round:
  movq xmm0, rax
  paddq xmm1, xmm0
  imul rax, rax, 0x5bd1e995
  add rax, rcx
  rol rax, 13
  add [rsi], rax
  movq [rsi + 8], xmm1
  xor rax, [rsi]
  out 0xe0, al
  in al, 0xe1
  dec rcx
  jnz round
  mov rdx, [rsi + 8]
  out 0xe2, al
`

describe('a vCPU is saved and restored', () => {
  it('into a fresh VM at every exit, and comes to the same result', () => {
    const undisturbed = run(guest => guest)
    let moves = 0
    const moved = run(guest => {
      guest.vcpu.complete()
      const saved = save(guest)
      guest[Symbol.dispose]()
      const fresh = open()
      restore(fresh, saved)
      moves++
      return fresh
    })
    expect(moved).toEqual(undisturbed)
    expect(moves).toBe(80)

    function run(between: (guest: Guest) => Guest) {
      let guest = open(HASH)
      for (;;) {
        const exit = guest.vcpu.run()
        if (exit.reason === 'io-in') exit.data[0] = 7
        else if (exit.reason !== 'io-out') throw new Error(exit.reason)
        else if (exit.port === 0xe2) break
        guest = between(guest)
      }
      const { rax, rdx, rip } = guest.vcpu.getRegs()
      guest[Symbol.dispose]()
      return { rax, rdx, rip }
    }
  })

  it('with every part as it was', () => {
    using guest = open(HASH)
    guest.vcpu.run()
    guest.vcpu.complete()
    guest.vcpu.setMsrs([{ index: 0xc0000102, value: 0x7fff_1234_0000n }])
    const saved = save(guest)
    using fresh = open()
    restore(fresh, saved)
    const again = save(fresh)
    const { KVM_GET_MSRS: _a, KVM_VCPU_TSC_OFFSET: _b, ...state } = again.vcpu.state
    for (const [name, bytes] of Object.entries(state)) expect([name, bytes]).toEqual([name, saved.vcpu.state[name]])
    const got = guest.vcpu.getCpuid()
    expect(places(got)).toEqual(placesKept(cpuidOf(saved.vcpu.state), got))
    // What counts time has gone on.
    const still = (msrs: ReturnType<typeof msrsOf>) =>
      msrs.filter(({ index }) => index !== 0x10 && index !== 0x40000020)
    expect(still(msrsOf(again.vcpu.state))).toEqual(still(msrsOf(saved.vcpu.state)))
    expect(msrsOf(again.vcpu.state)).toContainEqual({ index: 0xc0000102, value: 0x7fff_1234_0000n })
    const tsc = (state: typeof saved) => msrsOf(state.vcpu.state).find(({ index }) => index === 0x10)!.value
    expect(tsc(again)).toBeGreaterThan(tsc(saved))
    expect(again.vm['KVM_GET_IRQCHIP/IOAPIC']).toEqual(saved.vm['KVM_GET_IRQCHIP/IOAPIC'])
    expect(again.vm.KVM_ENABLE_CAP).toEqual(saved.vm.KVM_ENABLE_CAP)
  })

  it('back to an earlier moment of its own', () => {
    using guest = open(HASH)
    runTo(guest.vcpu, 'io-out')
    guest.vcpu.complete()
    const saved = save(guest)
    for (let i = 0; i < 5; i++) guest.vcpu.run()
    guest.vcpu.complete()
    expect(guest.vcpu.getRegs().rax).not.toBe(kvm_regs.decode(saved.vcpu.state.KVM_GET_REGS!).rax)
    guest.ram.bytes.set(saved.memory)
    restoreVm(guest.vm, saved.vm)
    restoreClock(guest.vm, saved.vm, 'stopped')
    restoreVcpu(guest.vcpu, saved.vcpu, { rollback: true })
    expect(guest.vcpu.getRegs()).toEqual(kvm_regs.decode(saved.vcpu.state.KVM_GET_REGS!))
    expect(runTo(guest.vcpu, 'io-in').port).toBe(0xe1)
  })

  it('and an MSR that the destination refuses is named', () => {
    using guest = open(HASH)
    const saved = save(guest)
    const msrs = kvm_msrs.decode(saved.vcpu.state.KVM_GET_MSRS!)
    msrs.entries.find(({ index }) => index === 0xc0000081)!.index = 0x12345678
    const state = { ...saved.vcpu.state, KVM_GET_MSRS: kvm_msrs.encode(msrs) }
    using fresh = open()
    expect(() => restore(fresh, { ...saved, vcpu: { id: 0, state } })).toThrow(/KVM_SET_MSRS: EINVAL \(MSR 0x12345678/)
  })

  it('and a part that is missing is named', () => {
    using guest = open(HASH)
    const saved = save(guest)
    expect(kvm_mp_state.decode(saved.vcpu.state.KVM_GET_MP_STATE!)).toEqual({ mp_state: 0 })
    const { KVM_GET_MP_STATE: _, ...state } = saved.vcpu.state
    using fresh = open()
    expect(() => restore(fresh, { ...saved, vcpu: { id: 0, state } })).toThrow(/has no KVM_GET_MP_STATE/)
  })

  it('but not where the kernel cannot tell pending from injected exceptions', () => {
    using guest = openGuest({ irqchip: true })
    withoutNesting(guest)
    expect(vcpuPlan(guest.vcpu, []).nested).toBeUndefined()
    guest.vm.checkExtension = number => (number === cap.EXCEPTION_PAYLOAD ? 0 : 1)
    expect(() => vcpuPlan(guest.vcpu, [])).toThrow(/KVM_CAP_EXCEPTION_PAYLOAD: ENOTSUP/)
  })
})
