import type { TripleFault } from '../config/machine-config.js'
import type { VcpuExit } from '../kvm/exit.js'
import { KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN } from '../kvm/structs.js'
import type { Platform } from './platform.js'

/** What becomes of a machine by an exit that is no device's. */
export interface Outcomes {
  shutdown(): void
  reset(): void
  crash(exit: VcpuExit): void
}

/** Has a device answer a vCPU's exit, or tells what else comes of it. Where it gives a promise, the vCPU waits for that. */
export function handleExit(
  { ports, mmio }: Platform,
  exit: VcpuExit,
  outcomes: Outcomes,
  onTripleFault: TripleFault,
): void | Promise<void> {
  switch (exit.reason) {
    case 'io-out':
      ports.writeRepeated(exit.port, exit.size, exit.data)
      break
    case 'io-in':
      ports.readRepeated(exit.port, exit.size, exit.data)
      break
    case 'mmio-write':
      return mmio.write(exit.address, exit.data)
    case 'mmio-read':
      mmio.read(exit.address, exit.data)
      break
    case 'system-event':
      if (exit.type === KVM_SYSTEM_EVENT_SHUTDOWN) outcomes.shutdown()
      else if (exit.type === KVM_SYSTEM_EVENT_RESET) outcomes.reset()
      else outcomes.crash(exit)
      break
    case 'shutdown':
      if (onTripleFault === 'reset') outcomes.reset()
      else outcomes.crash(exit)
      break
    case 'intr':
      break
    default:
      outcomes.crash(exit)
  }
}
