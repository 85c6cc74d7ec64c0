import { expect, it } from 'vitest'
import { Kvm } from '../../lib/kvm/kvm.js'
import { KVM_IRQCHIP_IOAPIC, type KvmIoapicState } from '../../lib/kvm/structs.js'
import { createVm } from '../../lib/machine/builder.js'

// Registers of the local APIC (Intel SDM vol. 3, table 11-1), and the vectors that the pins of the I/O APIC are given here.
const [SPURIOUS, IRR] = [0xf0, 0x200]
const SOFTWARE_ENABLE = 1 << 8
const VECTOR = 0x40

it('the timer arrives at pin 2 of the I/O APIC, the other lines at the pins of their numbers', async () => {
  using kvm = Kvm.open()
  using vm = createVm(kvm)
  const vcpu = vm.createVcpu(0)
  const lapic = vcpu.getLapic()
  lapic.regs[SPURIOUS + 1]! |= SOFTWARE_ENABLE >> 8
  vcpu.setLapic(lapic)
  const state = vm.getIrqchip(KVM_IRQCHIP_IOAPIC)
  const { ioapic } = state.chip as { ioapic: KvmIoapicState }
  // Each pin an edge, fixed, to APIC 0, unmasked (82093AA data sheet, section 3.2.4).
  const redirtbl = ioapic.redirtbl.map((_, pin) => ({ bits: BigInt(VECTOR + pin) }))
  vm.setIrqchip({ ...state, chip: { ioapic: { ...ioapic, redirtbl } } })
  /** The pins whose interrupts the local APIC has. */
  const arrived = () => Buffer.from(vcpu.getLapic().regs).readUInt32LE(IRR + VECTOR / 2)
  expect(arrived()).toBe(0)

  const pit = vm.getPit2()
  const [timer, ...others] = pit.channels
  // A rate generator, at 1.19 kHz.
  vm.setPit2({ ...pit, channels: [{ ...timer!, mode: 2, count: 1000, gate: 1 }, ...others] })
  await expect.poll(arrived).toBe(1 << 2)
  for (const gsi of [4, 9, 23]) vm.setIrqLine(gsi, true)
  expect(arrived()).toBe((1 << 2) | (1 << 4) | (1 << 9) | (1 << 23))
})
