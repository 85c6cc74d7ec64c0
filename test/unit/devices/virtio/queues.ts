import { onTestFinished } from 'vitest'
import type { VirtioDevice } from '../../../../lib/devices/virtio/device.js'
import type { QueueLayout } from '../../../../lib/devices/virtio/queue.js'
import { FEATURE, REGISTER, STATUS } from '../../../../lib/devices/virtio/registers.js'
import { plainMemory } from '../../memory/plain.js'
import { Driver, MEMORY, WRITE } from './driver.js'
import { expectUnchanged, type Range, Registers, writableRanges } from './driver-model.js'

/** Where the queues of a device with several lie: what else there is in memory is above. */
export const layoutOf = (index: number): QueueLayout => {
  const at = 0x1000 + 0x1000 * index
  return { size: 16, descriptors: at, driver: at + 0x400, device: at + 0x800 }
}
/** Below lie the queues. */
const BUFFERS = 0x5000
/** Where `Driver.scramble` puts an indirect table of 8. */
const INDIRECT_TABLE: Range = [0xa000, 128]

/** A device behind its registers, and a driver for each of its queues, which are set up. */
export function startDevice(device: VirtioDevice, features = FEATURE.VERSION_1) {
  const memory = plainMemory([[0, MEMORY]])
  const registers = new Registers(memory, device)
  const layouts = device.queueSizes.map((_, index) => layoutOf(index))
  const drivers = layouts.map(layout => new Driver(memory, layout, { eventIndex: false, indirect: false }))
  registers.transport.resume()
  registers.start(layouts, features)
  const notify = (index: number) => registers.set(REGISTER.QueueNotify, index)
  return { memory, registers, layouts, drivers, notify }
}

/** Lets a device do all that it put off to its next turns. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 64; i++) await new Promise(resolve => setImmediate(resolve))
}

/** A saved state, as what reads it back from a file gives it. */
export const reread = <T>(state: T): T => JSON.parse(JSON.stringify(state)) as T

interface Hostile {
  /** Makes some of the chains, by `seed`, such that they make sense. */
  readonly prepare: (seed: number, drivers: readonly Driver[], bytes: Uint8Array) => void
  /** What the host does after the driver's kick. */
  readonly disturb: (seed: number) => void
  readonly cases: number
}

/**
 * Starts a device again and again with what a hostile driver has in its queues: it must neither throw, nor stay broken, nor write
 * outside of the writable buffers. Returns how often it gave a chain back, and how often it asked for a reset.
 */
export async function beHostile(device: VirtioDevice, { prepare, disturb, cases }: Hostile) {
  const { memory, registers, layouts, drivers } = startDevice(device)
  const bytes = memory.view(0, MEMORY)
  const before = new Uint8Array(MEMORY)
  const seen = { given: 0, broken: 0 }
  // Of the many errors nobody reads where they come from, which is what costs.
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  onTestFinished(() => {
    Error.stackTraceLimit = stackTraceLimit
  })
  const used = layouts.map(({ device, size }) => [device, 6 + 8 * size] as const)
  for (let seed = 1; seed <= cases; seed++) {
    await registers.set(REGISTER.Status, 0)
    for (const [index, driver] of drivers.entries()) {
      // One queue at a time, mostly: the others are for what needs more than one.
      driver.start(0)
      if ((seed + index) % drivers.length !== 0 && seed % 8 !== 0) continue
      driver.scramble(seed)
      if (seed % 3) driver.setAvailable(1 + (seed % 4))
    }
    prepare(seed, drivers, bytes)
    for (const { descriptors, size } of layouts) keepOffTables(bytes, descriptors, size)
    keepOffTables(bytes, INDIRECT_TABLE[0], 8)
    const indirect = seed & 1 ? FEATURE.INDIRECT_DESC : 0n
    // Now and then a queue is not set up.
    const ready = seed % 10 ? layouts : layouts.slice(0, -1)
    registers.start(ready, FEATURE.VERSION_1 | indirect | (seed & 2 ? FEATURE.EVENT_IDX : 0n))
    before.set(bytes)
    registers.set(REGISTER.QueueNotify, seed % 13)
    for (const index of layouts.keys()) registers.set(REGISTER.QueueNotify, index)
    disturb(seed)
    // In mid-flight: a pause, or a reset.
    if (seed & 16) {
      await registers.transport.pause()
      registers.transport.resume()
    }
    if (registers.get(REGISTER.Status) & STATUS.DEVICE_NEEDS_RESET) seen.broken++
    for (const driver of drivers) seen.given += driver.collect().length
    if (seed & 32) await registers.set(REGISTER.Status, 0)
    const tables = [
      ...layouts.map(({ descriptors, size }) => [descriptors, size] as const),
      [INDIRECT_TABLE[0], 8] as const,
    ]
    const writable = tables.flatMap(([at, count]) => writableRanges(before, at, count))
    expectUnchanged(bytes, before, [...writable, ...used], `seed ${seed}`)
  }
  return seen
}

/** Moves what may be written off the queues and tables, for a device that writes there changes what comes next. */
function keepOffTables(bytes: Uint8Array, table: number, count: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  for (let at = table; at < table + 16 * count; at += 16) {
    const address = view.getBigUint64(at, true)
    const end = address + BigInt(view.getUint32(at + 8, true))
    if ((view.getUint16(at + 12, true) & WRITE) === 0 || end > BigInt(MEMORY)) continue
    const [from, length] = INDIRECT_TABLE
    if (address < BUFFERS || (address < from + length && end > from)) view.setBigUint64(at, 0xb000n, true)
  }
}
