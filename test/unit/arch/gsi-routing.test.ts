import { expect, test } from 'vitest'
import { acpiTables } from '../../../lib/arch/x86_64/acpi.js'
import { gsiRouting } from '../../../lib/arch/x86_64/gsi-routing.js'
import { KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE } from '../../../lib/kvm/structs.js'

/** GSI of each pin of a controller. */
function pins(chip: number): Record<number, number> {
  const routes = gsiRouting().map(({ gsi, u }) => ({
    gsi,
    ...(u as { irqchip: { irqchip: number; pin: number } }).irqchip,
  }))
  const own = routes.filter(({ irqchip }) => irqchip === chip)
  const result = Object.fromEntries(own.map(({ pin, gsi }) => [pin, gsi]))
  expect(Object.keys(result)).toHaveLength(own.length)
  return result
}

test('the lines of ISA arrive at the PICs, those of all pins at the I/O APIC', () => {
  expect(pins(KVM_IRQCHIP_PIC_MASTER)).toEqual({ 0: 0, 1: 1, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7 })
  expect(pins(KVM_IRQCHIP_PIC_SLAVE)).toEqual({ 0: 8, 1: 9, 2: 10, 3: 11, 4: 12, 5: 13, 6: 14, 7: 15 })
  const ioapic = pins(KVM_IRQCHIP_IOAPIC)
  for (let pin = 3; pin < 24; pin++) expect(ioapic[pin]).toBe(pin)
  expect([ioapic[0], ioapic[1]]).toEqual([undefined, 1])
})

test('the timer is at the pin that the MADT overrides its line to', () => {
  const madt = Buffer.from(acpiTables({ vcpus: 1 }).find(({ bytes }) => bytes[0] === 0x41 && bytes[1] === 0x50)!.bytes)
  // Interrupt source override, of ISA, source 0 (ACPI 6.5, section 5.2.12.5).
  const pin = madt.readUInt32LE(madt.indexOf(Buffer.from([2, 10, 0, 0])) + 4)
  expect(pins(KVM_IRQCHIP_IOAPIC)[pin]).toBe(0)
})
