import { VIRTIO_MMIO_SIZE, virtioSlot } from '../arch/x86_64/layout.js'
import type { Bus } from '../devices/bus.js'
import type { StatefulDevice } from '../devices/device.js'
import { MmioTransport } from '../devices/virtio/mmio-transport.js'
import { REGISTER } from '../devices/virtio/registers.js'
import { EventFd } from '../kvm/event-fd.js'
import { setBatch } from '../kvm/scheduling.js'
import { StatusWords } from '../kvm/status-words.js'
import type { Vm } from '../kvm/vm.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import type { Console } from './console.js'
import { closePeripherals, type Peripheral } from './peripherals.js'
import type { Vsock } from './vsock.js'
import { WakeUps } from './wake-ups.js'

/** The scheduling policy is the JS thread's: one for all its machines. */
const wakeUps = new WakeUps(setBatch)
const woken = (found: number) => wakeUps.woken(found)

/**
 * A machine's virtio devices, each at its place. Kicks and interrupts go through the kernel: neither is an exit of the vCPU
 * (ioeventfd, irqfd); what an interrupt's handler reads and acknowledges is answered by the vCPU's thread. They are quiet until `resume`.
 */
export class VirtioBus {
  readonly peripherals: readonly Peripheral[]
  readonly #transports: readonly MmioTransport[]
  readonly #eventFds: EventFd[] = []
  readonly #statusWords: StatusWords

  constructor(vm: Vm, memory: GuestMemory, bus: Bus, peripherals: readonly Peripheral[]) {
    this.peripherals = peripherals
    this.#statusWords = new StatusWords(vm)
    this.#transports = peripherals.map(({ device }, index) => {
      const { address, gsi } = virtioSlot(index)
      const interrupt = this.#eventFd()
      vm.irqfd(interrupt, gsi)
      const doorbells = device.queueSizes.map((_, queue) => {
        const doorbell = this.#eventFd()
        vm.ioeventfd(doorbell, { address: address + REGISTER.QueueNotify, length: 4, datamatch: BigInt(queue) })
        return doorbell
      })
      const interruptStatus = this.#statusWords.add(address + REGISTER.InterruptStatus, address + REGISTER.InterruptACK)
      const transport = new MmioTransport(memory, device, { interrupt, doorbells, interruptStatus, woken })
      bus.add(address, VIRTIO_MMIO_SIZE, transport)
      return transport
    })
  }

  /** The console that is a virtio device, if there is one. */
  get console(): Console | undefined {
    return this.peripherals.find(({ console }) => console)?.console
  }

  get vsock(): Vsock | undefined {
    return this.peripherals.find(({ vsock }) => vsock)?.vsock
  }

  /** The devices' states, by name. */
  get stateful(): Record<string, StatefulDevice> {
    return Object.fromEntries(this.#transports.map((transport, i) => [this.peripherals[i]!.name, transport]))
  }

  /** Resolves once no device works on anything. No vCPU runs. */
  async pause(): Promise<void> {
    wakeUps.rest()
    await Promise.all(this.#transports.map(transport => transport.pause()))
  }

  resume(): void {
    for (const transport of this.#transports) transport.resume()
  }

  /** Lets go of the host's side. They are quiet at the time. */
  async close(): Promise<void> {
    this.disconnect()
    await closePeripherals(this.peripherals)
  }

  /** Lets go of the wires to the kernel alone. */
  disconnect(): void {
    wakeUps.rest()
    for (const eventFd of this.#eventFds) eventFd.close()
    this.#statusWords.close()
  }

  #eventFd(): EventFd {
    const eventFd = new EventFd()
    this.#eventFds.push(eventFd)
    return eventFd
  }
}
