import { expect, it } from 'vitest'
import { REGISTER, STATUS } from '../../../../lib/devices/virtio/registers.js'
import { VirtioRng } from '../../../../lib/devices/virtio/rng.js'
import { type Driver, NEXT, WRITE } from './driver.js'
import { beHostile, reread, settle, startDevice } from './queues.js'

/** "Random" bytes that are known: 1, 2, 3, ... */
function counter() {
  let next = 0
  const sizes: number[] = []
  const fill = (bytes: Uint8Array) => {
    sizes.push(bytes.length)
    for (let i = 0; i < bytes.length; i++) bytes[i] = ++next
  }
  return { fill, sizes }
}

it('fills what the driver gives it, buffer after buffer', () => {
  const device = new VirtioRng(counter().fill)
  const { memory, drivers, notify, registers } = startDevice(device)
  drivers[0]!.describe(3, 0x8000, 3, NEXT | WRITE, 5)
  drivers[0]!.describe(5, 0x9000, 2, WRITE)
  drivers[0]!.offer(3)
  notify(0)
  expect(drivers[0]!.collect()).toEqual([{ id: 3, length: 5 }])
  expect([...memory.read(0x8000, 4)]).toEqual([1, 2, 3, 0])
  expect([...memory.read(0x9000, 3)]).toEqual([4, 5, 0])
  expect(registers.interrupts).toBe(1)
  expect(registers.get(REGISTER.DeviceID)).toBe(4)
})

it('gives at most 64 KiB for one request, and lets others have their turn', async () => {
  let rounds = 0
  const device = new VirtioRng(() => {
    // Each takes longer than a turn.
    const end = performance.now() + 3
    while (performance.now() < end);
    rounds++
  })
  const { drivers, notify } = startDevice(device)
  for (let i = 0; i < 3; i++) {
    drivers[0]!.describe(i, 0x8000, 0x8000, NEXT | WRITE, i + 3)
    drivers[0]!.describe(i + 3, 0x8000, 0x8000, NEXT | WRITE, i + 6)
    drivers[0]!.describe(i + 6, 0x8000, 0x8000, WRITE)
    drivers[0]!.offer(i)
  }
  notify(0)
  expect(drivers[0]!.collect()).toEqual([{ id: 0, length: 0x10000 }])
  await new Promise(resolve => setImmediate(resolve))
  expect(drivers[0]!.collect()).toEqual([{ id: 1, length: 0x10000 }])
  await new Promise(resolve => setImmediate(resolve))
  expect(drivers[0]!.collect()).toHaveLength(1)
  expect(rounds).toBe(6)
})

it('does nothing while it is quiet, and goes on in another machine', async () => {
  const { drivers, registers, notify, memory } = startDevice(new VirtioRng(counter().fill))
  await registers.transport.pause()
  drivers[0]!.describe(0, 0x8000, 4, WRITE)
  drivers[0]!.offer(0)
  notify(0)
  expect(drivers[0]!.collect()).toEqual([])
  const state = reread(registers.transport.saveState())
  const other = startDevice(new VirtioRng(counter().fill))
  await other.registers.transport.pause()
  other.memory.write(0, memory.read(0, 0x10000))
  other.registers.transport.loadState(state)
  expect([...other.memory.read(0x8000, 4)]).toEqual([0, 0, 0, 0])
  other.registers.transport.resume()
  await settle()
  expect([...other.memory.read(0x8000, 4)]).toEqual([1, 2, 3, 4])
  expect(() => new VirtioRng(() => {}).loadState({})).toThrow(TypeError)
})

it('asks for a reset where a buffer is readable', () => {
  const { drivers, registers, notify } = startDevice(new VirtioRng(counter().fill))
  drivers[0]!.describe(0, 0x8000, 4, 0)
  drivers[0]!.offer(0)
  notify(0)
  expect(registers.get(REGISTER.Status) & STATUS.DEVICE_NEEDS_RESET).toBeTruthy()
})

it('100,000 hostile drivers: writes to their buffers or asks for a reset', { timeout: 120_000 }, async () => {
  const device = new VirtioRng(bytes => void bytes.fill(0xa5))
  const prepare = (seed: number, [driver]: readonly Driver[]) => {
    if (seed % 2 && seed % 9 === 0) {
      driver!.describe(0, 0x8000 + (seed % 64), seed % 300, WRITE)
      driver!.offer(0)
    }
  }
  const seen = await beHostile(device, { cases: 100_000, prepare, disturb: () => {} })
  expect(seen.given).toBeGreaterThan(10_000)
  expect(seen.broken).toBeGreaterThan(10_000)
})
