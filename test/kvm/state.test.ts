import { describe, expect, it } from 'vitest'
import { cap } from '../../lib/kvm/capabilities.js'
import {
  KVM_CLOCK_TSC_STABLE,
  KVM_GUESTDBG_ENABLE,
  KVM_GUESTDBG_SINGLESTEP,
  KVM_IRQ_ROUTING_IRQCHIP,
  KVM_IRQ_ROUTING_MSI,
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQCHIP_PIC_MASTER,
  KVM_IRQCHIP_PIC_SLAVE,
  KVM_MP_STATE_HALTED,
  KVM_MP_STATE_RUNNABLE,
  KVM_SREGS2_FLAGS_PDPTRS_VALID,
  KVM_VCPUEVENT_VALID_NMI_PENDING,
} from '../../lib/kvm/structs.js'
import { enterMode, loadGuest, openGuest, places, placesKept, runTo } from './guest.js'

describe('vCPU state: what was set is what is got', () => {
  it('registers', () => {
    using guest = openGuest()
    const { vcpu } = guest
    const names = Object.keys(vcpu.getRegs()) as (keyof ReturnType<typeof vcpu.getRegs>)[]
    const regs = Object.fromEntries(names.map((name, i) => [name, 0x1111_0000_0000_0000n + BigInt(i)])) as ReturnType<
      typeof vcpu.getRegs
    >
    regs.rip = 0x1234n
    regs.rflags = 0x246n
    vcpu.setRegs(regs)
    expect(vcpu.getRegs()).toEqual(regs)
  })

  it('system registers, in both forms', () => {
    using guest = openGuest()
    const { vcpu, ram } = guest
    enterMode(vcpu, ram.bytes, 'long')
    const sregs = vcpu.getSregs()
    sregs.gdt = { base: 0x5000n, limit: 0x37, padding: [0, 0, 0] }
    sregs.idt = { base: 0x6000n, limit: 0xfff, padding: [0, 0, 0] }
    sregs.fs.base = 0x7fff_1234_5000n
    sregs.cr2 = 0xdead_b000n
    vcpu.setSregs(sregs)
    expect(vcpu.getSregs()).toEqual(sregs)

    const sregs2 = vcpu.getSregs2()
    expect(sregs2.flags & BigInt(KVM_SREGS2_FLAGS_PDPTRS_VALID)).toBe(0n)
    expect([sregs2.cr3, sregs2.fs, sregs2.gdt]).toEqual([sregs.cr3, sregs.fs, sregs.gdt])
    sregs2.cr2 = 0xbeef_0000n
    vcpu.setSregs2(sregs2)
    expect(vcpu.getSregs2()).toEqual(sregs2)
    expect(vcpu.getSregs().cr2).toBe(0xbeef_0000n)
  })

  it('FPU, and the same state as XSAVE area', () => {
    using guest = openGuest()
    const { vcpu } = guest
    const fpu = vcpu.getFpu()
    fpu.fcw = 0x27f
    fpu.xmm[3] = Uint8Array.from({ length: 16 }, (_, i) => i + 0x30)
    vcpu.setFpu(fpu)
    // KVM copies everything but MXCSR, both ways; that is in the XSAVE area only.
    expect(vcpu.getFpu()).toEqual({ ...fpu, mxcsr: 0 })

    const xsave = vcpu.getXsave2()
    expect(xsave.length).toBe(vcpu.xsaveSize)
    expect(vcpu.getXsave()).toEqual(xsave.subarray(0, 4096))
    // Intel SDM vol. 1, table 10-2: FCW at 0, MXCSR at 24, XMM3 at 160 + 3 * 16; 13.4.2: XSTATE_BV at 512, x87 and SSE in bits 0 and 1.
    xsave.set([0x3f, 0x03], 0)
    xsave.set([0, 0x1f], 24)
    xsave.fill(0x5a, 208, 224)
    xsave[512]! |= 3
    vcpu.setXsave(xsave)
    expect(vcpu.getXsave2()).toEqual(xsave)
    const { fcw, xmm } = vcpu.getFpu()
    expect([fcw, xmm[3]]).toEqual([0x33f, new Uint8Array(16).fill(0x5a)])
  })

  it('extended control registers', () => {
    using guest = openGuest()
    const { vcpu } = guest
    const xcrs = vcpu.getXcrs()
    expect(xcrs.nr_xcrs).toBe(1)
    expect(xcrs.xcrs[0]).toEqual({ xcr: 0, reserved: 0, value: 1n })
    xcrs.xcrs[0]!.value = 3n
    vcpu.setXcrs(xcrs)
    expect(vcpu.getXcrs()).toEqual(xcrs)
  })

  it('CPUID', () => {
    using guest = openGuest()
    const { kvm, vcpu } = guest
    const supported = kvm.supportedCpuid()
    expect(supported.length).toBeGreaterThan(10)
    expect(supported.find(entry => entry.function === 0x40000000)).toMatchObject({ ebx: 0x4b4d564b, ecx: 0x564b4d56 })
    vcpu.setCpuid(supported)
    const got = vcpu.getCpuid()
    expect(places(got)).toEqual(placesKept(supported, got))
    vcpu.setCpuid([{ function: 0, index: 0, flags: 0, eax: 1, ebx: 0x61616161, ecx: 0xffffffff, edx: 0x62626262 }])
    expect(vcpu.getCpuid()).toEqual([
      { function: 0, index: 0, flags: 0, eax: 1, ebx: 0x61616161, ecx: 0xffffffff, edx: 0x62626262 },
    ])
  })

  it('CPUID is what the guest sees', () => {
    using guest = loadGuest('protected', 'mov eax, 0x40000001\ncpuid\nhlt')
    const { vcpu, kvm } = guest
    const entries = kvm.supportedCpuid().filter(entry => entry.function !== 0x40000001)
    entries.push({ function: 0x40000001, index: 0, flags: 0, eax: 0, ebx: 0x1234, ecx: 0x5678, edx: 0x9abc })
    vcpu.setCpuid(entries)
    runTo(vcpu, 'hlt')
    const { rbx, rcx, rdx } = vcpu.getRegs()
    expect([rbx, rcx, rdx]).toEqual([0x1234n, 0x5678n, 0x9abcn])
  })

  it('MSRs, in the order asked for', () => {
    using guest = openGuest()
    const { vcpu } = guest
    const msrs = [
      { index: 0x176, value: 0x1234_5000n },
      { index: 0x174, value: 0x10n },
      { index: 0xc0000102, value: 0x7fff_0000_1000n },
    ]
    vcpu.setMsrs(msrs)
    expect(vcpu.getMsrs(msrs.map(({ index }) => index))).toEqual(msrs)
  })

  it('more MSRs than the kernel takes at once', () => {
    using guest = openGuest()
    const { vcpu } = guest
    const many = Array.from({ length: 700 }, (_, i) => ({ index: [0x174, 0x175, 0x176][i % 3]!, value: BigInt(i) }))
    vcpu.setMsrs(many)
    const read = vcpu.getMsrs(many.map(({ index }) => index))
    expect(read).toHaveLength(700)
    expect(read.slice(-3).map(({ value }) => value)).toEqual([697n, 698n, 699n])
    expect(read[0]).toEqual({ index: 0x174, value: 699n })
    const wrong = many.map((msr, i) => (i === 600 ? { index: 0x12345678, value: 0n } : msr))
    expect(() => vcpu.setMsrs(wrong)).toThrow(/MSR 0x12345678/)
    expect(() => vcpu.getMsrs(wrong.map(({ index }) => index))).toThrow(/MSR 0x12345678/)
  })

  it('an MSR that is refused is named', () => {
    using guest = openGuest()
    const { vcpu, kvm } = guest
    expect(() => vcpu.getMsrs([0x174, 0x12345678])).toThrow(/KVM_GET_MSRS: EINVAL \(MSR 0x12345678 cannot be read/)
    // EFER has reserved bits.
    expect(() => vcpu.setMsrs([{ index: 0xc0000080, value: 1n << 60n }])).toThrow(
      /KVM_SET_MSRS: EINVAL \(MSR 0xc0000080/,
    )
    expect(kvm.msrIndices()).toContain(0x174)
    const features = kvm.featureMsrIndices()
    expect(kvm.getFeatureMsrs(features).map(({ index }) => index)).toEqual(features)
  })

  it('local APIC', () => {
    using guest = openGuest({ irqchip: true })
    const { vcpu } = guest
    const lapic = vcpu.getLapic()
    expect(lapic.regs.length).toBe(0x400)
    // Task priority at 0x80, spurious vector at 0xf0 (Intel SDM vol. 3, table 12-1).
    lapic.regs[0x80] = 0x20
    lapic.regs[0xf1] = 1
    vcpu.setLapic(lapic)
    const again = vcpu.getLapic()
    expect([again.regs[0x80], again.regs[0xf1]]).toEqual([0x20, 1])
  })

  it('MP state', () => {
    using guest = openGuest({ irqchip: true })
    const { vcpu } = guest
    expect(vcpu.getMpState()).toEqual(KVM_MP_STATE_RUNNABLE)
    vcpu.setMpState(KVM_MP_STATE_HALTED)
    expect(vcpu.getMpState()).toEqual(KVM_MP_STATE_HALTED)
    expect(() => vcpu.setMpState(99)).toThrow(/KVM_SET_MP_STATE: EINVAL/)
  })

  it('events', () => {
    using guest = openGuest({ irqchip: true })
    const { vcpu } = guest
    const events = vcpu.getVcpuEvents()
    expect(events.nmi.pending).toBe(0)
    events.nmi.pending = 1
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING
    vcpu.setVcpuEvents(events)
    expect(vcpu.getVcpuEvents().nmi.pending).toBe(1)
  })

  it('debug registers', () => {
    using guest = openGuest()
    const { vcpu } = guest
    const debugregs = vcpu.getDebugregs()
    debugregs.db = [0x1000n, 0x2000n, 0x3000n, 0x4000n]
    debugregs.dr7 = 0x400n
    vcpu.setDebugregs(debugregs)
    expect(vcpu.getDebugregs()).toEqual(debugregs)
  })

  it('TSC frequency and offset', () => {
    using guest = openGuest()
    const { vcpu } = guest
    const khz = vcpu.getTscKhz()
    expect(khz).toBeGreaterThan(100_000)
    vcpu.setTscKhz(khz)
    expect(vcpu.getTscKhz()).toBe(khz)
    // A vendor module may leave the TSC to the hardware (kvm-pvm does): then writes of it are ignored as well.
    vcpu.setMsrs([{ index: 0x10, value: 1n }])
    const virtual = vcpu.getMsrs([0x10])[0]!.value < 1n << 32n
    const offset = BigInt.asUintN(64, -1_000_000n)
    vcpu.setTscOffset(offset)
    expect(vcpu.getTscOffset()).toBe(virtual ? offset : 0n)
  })
})

describe('nested state', () => {
  it('is refused with a reason where the host does not nest, else carries its header', () => {
    using guest = openGuest()
    const { vm, vcpu } = guest
    if (vm.checkExtension(cap.NESTED_STATE) === 0) {
      expect(() => vcpu.getNestedState()).toThrow(/KVM_GET_NESTED_STATE: E/)
    } else {
      const state = vcpu.getNestedState()
      expect(state.length).toBeGreaterThanOrEqual(128)
      vcpu.setNestedState(state)
      expect(vcpu.getNestedState()).toEqual(state)
    }
  })
})

describe('VM state: what was set is what is got', () => {
  it.each([KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE])('PIC %i', chip => {
    using guest = openGuest({ irqchip: true })
    const { vm } = guest
    const state = vm.getIrqchip(chip)
    if (!('pic' in state.chip)) throw new Error('no PIC')
    state.chip.pic.imr = 0xa5
    state.chip.pic.irq_base = 0x20 + chip * 8
    vm.setIrqchip(state)
    expect(vm.getIrqchip(chip)).toEqual(state)
  })

  it('IOAPIC', () => {
    using guest = openGuest({ irqchip: true })
    const { vm } = guest
    const state = vm.getIrqchip(KVM_IRQCHIP_IOAPIC)
    if (!('ioapic' in state.chip)) throw new Error('no IOAPIC')
    state.chip.ioapic.redirtbl[4] = { bits: 0x34n }
    vm.setIrqchip(state)
    expect(vm.getIrqchip(KVM_IRQCHIP_IOAPIC)).toEqual(state)
    expect(() => vm.getIrqchip(3)).toThrow(/KVM_GET_IRQCHIP: EINVAL/)
  })

  it('PIT', () => {
    using guest = openGuest({ irqchip: true })
    const { vm } = guest
    expect(() => vm.getPit2()).toThrow(/KVM_GET_PIT2: E/)
    vm.createPit2({ speakerDummy: true })
    const state = vm.getPit2()
    expect(state.channels.length).toBe(3)
    state.channels[2]!.mode = 3
    state.channels[2]!.count = 1193
    vm.setPit2(state)
    const again = vm.getPit2()
    expect([again.channels[2]!.mode, again.channels[2]!.count]).toEqual([3, 1193])
  })

  it('clock', () => {
    using guest = openGuest()
    const { vm } = guest
    const clock = vm.getClock()
    expect(clock.clock).toBeGreaterThan(0n)
    vm.setClock({ ...clock, clock: 3_600_000_000_000n, flags: 0 })
    const later = vm.getClock()
    expect(later.clock).toBeGreaterThanOrEqual(3_600_000_000_000n)
    expect(later.clock).toBeLessThan(3_610_000_000_000n)
    expect(() => vm.setClock({ ...clock, flags: 0x8000_0000 })).toThrow(/KVM_SET_CLOCK: EINVAL/)
    expect(KVM_CLOCK_TSC_STABLE).toBe(2)
  })

  it('GSI routing takes interrupt pins and messages, and refuses a type that is none', () => {
    using guest = openGuest({ irqchip: true })
    const { vm } = guest
    const entry = { flags: 0, pad: 0 }
    vm.setGsiRouting([
      { ...entry, gsi: 4, type: KVM_IRQ_ROUTING_IRQCHIP, u: { irqchip: { irqchip: KVM_IRQCHIP_IOAPIC, pin: 4 } } },
      {
        ...entry,
        gsi: 24,
        type: KVM_IRQ_ROUTING_MSI,
        u: { msi: { address_lo: 0xfee00000, address_hi: 0, data: 0x31, devid: 0 } },
      },
    ])
    expect(() => vm.setGsiRouting([{ ...entry, gsi: 4, type: 77, u: { pad: [0, 0, 0, 0, 0, 0, 0, 0] } }])).toThrow(
      /KVM_SET_GSI_ROUTING: EINVAL/,
    )
  })

  it('addresses that Intel hosts need', () => {
    using guest = openGuest()
    guest.vm.setTssAddress(0xfffbd000)
    // The identity map's page is to be set before any vCPU.
    expect(() => guest.vm.setIdentityMapAddress(0xfffbc000)).toThrow(/KVM_SET_IDENTITY_MAP_ADDR: EINVAL/)
    using empty = guest.kvm.createVm()
    empty.setIdentityMapAddress(0xfffbc000)
  })
})

describe('debugging', () => {
  it('single-steps through the guest', () => {
    using guest = loadGuest('protected', 'inc eax\ninc eax\ninc eax\nhlt')
    const { vcpu } = guest
    vcpu.setGuestDebug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)
    for (const rip of [0x1001n, 0x1002n, 0x1003n]) {
      expect(runTo(vcpu, 'debug').pc).toBe(rip)
    }
    expect(vcpu.getRegs().rax).toBe(3n)
    vcpu.setGuestDebug(0)
    runTo(vcpu, 'hlt')
  })

  it('translates linear addresses as the guest maps them', () => {
    using guest = openGuest()
    const { vcpu, ram } = guest
    enterMode(vcpu, ram.bytes, 'user')
    expect(vcpu.translate(0x1234n)).toMatchObject({ physical_address: 0x1234n, valid: 1 })
    expect(vcpu.translate(0x4000_0000n).valid).toBe(0)
  })
})

describe('interrupts from user space', () => {
  it('KVM_INTERRUPT takes the guest to its handler, through the real-mode vector table', () => {
    using guest = loadGuest('real', 'sti\nnop\nhlt\nhlt\n.org 0x100\nmov bl, 0x42\nmov dx, 0x10\nout dx, al\niret')
    const { vcpu, ram } = guest
    new DataView(ram.bytes.buffer).setUint16(0x21 * 4, 0x1100, true)
    runTo(vcpu, 'hlt')
    vcpu.interrupt(0x21)
    expect(runTo(vcpu, 'io-out').port).toBe(0x10)
    expect(vcpu.getRegs().rbx).toBe(0x42n)
    runTo(vcpu, 'hlt')
  })

  it('KVM_NMI takes it to vector 2', () => {
    using guest = loadGuest('real', 'hlt\nhlt\n.org 0x100\nout 0x11, al\niret')
    const { vcpu, ram } = guest
    new DataView(ram.bytes.buffer).setUint16(2 * 4, 0x1100, true)
    runTo(vcpu, 'hlt')
    vcpu.nmi()
    expect(runTo(vcpu, 'io-out').port).toBe(0x11)
  })

  it('KVM_INTERRUPT is not for a VM whose interrupt controllers are in the kernel', () => {
    using guest = openGuest({ irqchip: true })
    expect(() => guest.vcpu.interrupt(0x21)).toThrow(/KVM_INTERRUPT: ENXIO/)
    expect(() => guest.vcpu.interrupt(256)).toThrow(/KVM_INTERRUPT: EINVAL/)
  })

  it('KVM_KVMCLOCK_CTRL wants a guest that has kvmclock on', () => {
    using guest = openGuest()
    expect(() => guest.vcpu.kvmclockCtrl()).toThrow(/KVM_KVMCLOCK_CTRL: EINVAL/)
  })
})
