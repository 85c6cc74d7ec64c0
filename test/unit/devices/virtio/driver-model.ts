import type { VirtioDevice } from '../../../../lib/devices/virtio/device.js'
import { MmioTransport, type VirtioWires } from '../../../../lib/devices/virtio/mmio-transport.js'
import type { QueueLayout } from '../../../../lib/devices/virtio/queue.js'
import { FEATURE, REGISTER, STATUS } from '../../../../lib/devices/virtio/registers.js'
import type { GuestMemory } from '../../../../lib/memory/guest-memory.js'

export const READY = STATUS.ACKNOWLEDGE | STATUS.DRIVER | STATUS.FEATURES_OK | STATUS.DRIVER_OK

/** A device behind its registers, and a driver's accesses to them as a guest makes them. */
export class Registers {
  readonly transport: MmioTransport
  interrupts = 0

  constructor(memory: GuestMemory, device: VirtioDevice, wires: Partial<VirtioWires> = {}) {
    this.transport = new MmioTransport(memory, device, { interrupt: { signal: () => this.interrupts++ }, ...wires })
  }

  get(register: number): number {
    const data = new Uint8Array(4)
    this.transport.read(register, data)
    return new DataView(data.buffer).getUint32(0, true)
  }

  set(register: number, value: number): void | Promise<void> {
    const data = new Uint8Array(4)
    new DataView(data.buffer).setUint32(0, value, true)
    return this.transport.write(register, data)
  }

  get features(): bigint {
    const half = (index: number) => {
      this.set(REGISTER.DeviceFeaturesSel, index)
      return BigInt(this.get(REGISTER.DeviceFeatures))
    }
    return (half(1) << 32n) | half(0)
  }

  agree(features: bigint): void {
    for (const index of [0, 1]) {
      this.set(REGISTER.DriverFeaturesSel, index)
      this.set(REGISTER.DriverFeatures, Number((features >> BigInt(32 * index)) & 0xffff_ffffn))
    }
  }

  setUpQueue(index: number, { size, descriptors, driver, device }: QueueLayout): void {
    this.set(REGISTER.QueueSel, index)
    this.set(REGISTER.QueueNum, size)
    this.set(REGISTER.QueueDescLow, descriptors)
    this.set(REGISTER.QueueDriverLow, driver)
    this.set(REGISTER.QueueDeviceLow, device)
    this.set(REGISTER.QueueReady, 1)
  }

  /** All that a driver does up to DRIVER_OK (virtio 1.2, 3.1.1). */
  start(layouts: readonly QueueLayout[], features: bigint = FEATURE.VERSION_1): void {
    this.set(REGISTER.Status, STATUS.ACKNOWLEDGE)
    this.set(REGISTER.Status, STATUS.ACKNOWLEDGE | STATUS.DRIVER)
    this.agree(features)
    this.set(REGISTER.Status, STATUS.ACKNOWLEDGE | STATUS.DRIVER | STATUS.FEATURES_OK)
    for (const [index, layout] of layouts.entries()) this.setUpQueue(index, layout)
    this.set(REGISTER.Status, READY)
  }
}

/** Ranges of guest memory. */
export type Range = readonly [address: number, length: number]

/** Throws where `memory` differs from `before` outside `allowed`. */
export function expectUnchanged(memory: Uint8Array, before: Uint8Array, allowed: readonly Range[], what: string): void {
  for (const [address, length] of allowed) before.set(memory.subarray(address, address + length), address)
  if (Buffer.compare(memory, before) === 0) return
  const at = memory.findIndex((byte, i) => byte !== before[i])
  throw new Error(`${what}: a write to 0x${at.toString(16)}, outside every buffer`)
}

/** All ranges that any descriptor of a table marks as writable, whether it is part of a chain or not. */
export function writableRanges(memory: Uint8Array, table: number, count: number): Range[] {
  const view = new DataView(memory.buffer, memory.byteOffset)
  const ranges: Range[] = []
  for (let at = table; at < table + 16 * count; at += 16) {
    const address = view.getBigUint64(at, true)
    const length = view.getUint32(at + 8, true)
    if ((view.getUint16(at + 12, true) & 2) === 0 || address + BigInt(length) > BigInt(memory.length)) continue
    ranges.push([Number(address), length])
  }
  return ranges
}
