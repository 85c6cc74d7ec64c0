import {
  KVM_IRQ_ROUTING_IRQCHIP,
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQCHIP_PIC_MASTER,
  KVM_IRQCHIP_PIC_SLAVE,
  type KvmIrqRoutingEntry,
} from '../../kvm/structs.js'
import { IOAPIC_PINS, TIMER_GSI } from './layout.js'

const PIC_PINS = 8
/** Of the master, where the slave's output is: no line of its own. */
const CASCADE = 2

/**
 * Where the interrupt lines of a PC arrive: those of ISA at both PICs' pins and the I/O APIC's, the timer's (0) at the I/O APIC's
 * pin 2, as the MADT says. KVM's own table has it at pin 0, where a guest that uses the timer through the I/O APIC waits in vain.
 */
export function gsiRouting(): KvmIrqRoutingEntry[] {
  const routes: KvmIrqRoutingEntry[] = []
  for (let gsi = 0; gsi < IOAPIC_PINS; gsi++) {
    if (gsi < PIC_PINS && gsi !== CASCADE) routes.push(route(gsi, KVM_IRQCHIP_PIC_MASTER, gsi))
    if (gsi >= PIC_PINS && gsi < 2 * PIC_PINS) routes.push(route(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS))
    if (gsi === 0) routes.push(route(gsi, KVM_IRQCHIP_IOAPIC, TIMER_GSI))
    else if (gsi !== TIMER_GSI) routes.push(route(gsi, KVM_IRQCHIP_IOAPIC, gsi))
  }
  return routes
}

function route(gsi: number, irqchip: number, pin: number): KvmIrqRoutingEntry {
  return { gsi, type: KVM_IRQ_ROUTING_IRQCHIP, flags: 0, pad: 0, u: { irqchip: { irqchip, pin } } }
}
