import { expect, it } from 'vitest'
import type { Json } from '../../../../lib/devices/device.js'
import { VirtioConsole } from '../../../../lib/devices/virtio/console.js'
import { REGISTER } from '../../../../lib/devices/virtio/registers.js'
import { type Driver, NEXT, WRITE } from './driver.js'
import { beHostile, reread, settle, startDevice } from './queues.js'

const [RECEIVE, TRANSMIT] = [0, 1]
const bytes = (text: string) => new TextEncoder().encode(text)

function setUp() {
  const host = { output: '', takes: true, drained: 0 }
  const device = new VirtioConsole({
    output: bytes => {
      host.output += new TextDecoder('latin1').decode(bytes)
      return host.takes
    },
    drain: () => host.drained++,
  })
  return { host, device, ...startDevice(device) }
}

type SetUp = ReturnType<typeof setUp>

async function transmit({ memory, drivers, notify }: SetUp, text: string): Promise<void> {
  const at = 0x8000
  memory.write(at, bytes(text))
  drivers[TRANSMIT]!.describe(1, at, text.length, 0)
  drivers[TRANSMIT]!.offer(1)
  notify(TRANSMIT)
  await settle()
}

async function offerRoom({ drivers, notify }: SetUp, length: number): Promise<void> {
  drivers[RECEIVE]!.describe(2, 0x9000, length, WRITE)
  drivers[RECEIVE]!.offer(2)
  notify(RECEIVE)
  await settle()
}

function received({ memory, drivers }: SetUp): string[] {
  return drivers[RECEIVE]!.collect().map(({ length }) => Buffer.from(memory.read(0x9000, length)).toString())
}

it('hands over what the guest writes, buffer by buffer', async () => {
  const all = setUp()
  await transmit(all, 'hello ')
  await transmit(all, 'world')
  expect(all.host.output).toBe('hello world')
  expect(all.drivers[TRANSMIT]!.collect()).toEqual([
    { id: 1, length: 0 },
    { id: 1, length: 0 },
  ])
  expect(all.registers.get(REGISTER.DeviceID)).toBe(3)
})

it('takes a buffer of any size in pieces', async () => {
  const all = setUp()
  for (let i = 0; i < 8; i++) all.drivers[TRANSMIT]!.describe(i, 0x8000, 0x7000, i < 7 ? NEXT : 0, i + 1)
  all.memory.fill(0x8000, 0x7000, 0x61)
  all.drivers[TRANSMIT]!.offer(0)
  all.notify(TRANSMIT)
  while (all.host.output.length < 0x38000) await new Promise(resolve => setImmediate(resolve))
  expect(all.host.output).toBe('a'.repeat(0x38000))
  expect(all.drivers[TRANSMIT]!.collect()).toEqual([{ id: 0, length: 0 }])
})

it('lets the guest wait while nobody takes more, also in the middle of a buffer and in another machine', async () => {
  const all = setUp()
  all.host.takes = false
  for (let i = 0; i < 4; i++) all.drivers[TRANSMIT]!.describe(i, 0x8000, 0x7000, i < 3 ? NEXT : 0, i + 1)
  all.memory.fill(0x8000, 0x7000, 0x61)
  all.drivers[TRANSMIT]!.offer(0)
  all.notify(TRANSMIT)
  await new Promise(resolve => setImmediate(resolve))
  expect(all.host.output).toHaveLength(0x10000)
  await all.registers.transport.pause()
  all.device.goOn()
  expect(all.host.output).toHaveLength(0x10000)
  const state = reread(all.registers.transport.saveState())

  const other = setUp()
  await other.registers.transport.pause()
  other.memory.write(0, all.memory.read(0, 0x10000))
  other.registers.transport.loadState(state)
  other.registers.transport.resume()
  await settle()
  expect(other.host.output).toHaveLength(0xc000)
  expect(other.drivers[TRANSMIT]!.collect()).toHaveLength(1)

  all.host.takes = true
  all.registers.transport.resume()
  await settle()
  expect(all.host.output).toHaveLength(0x1c000)
})

it('gives the guest what is typed, as far as it has room', async () => {
  const all = setUp()
  expect(all.device.input(bytes('typed early'))).toBe(true)
  await offerRoom(all, 5)
  expect(received(all)).toEqual(['typed'])
  await offerRoom(all, 100)
  expect(received(all)).toEqual([' early'])
  await offerRoom(all, 100)
  expect(received(all)).toEqual([])
  all.device.input(bytes('late'))
  expect(received(all)).toEqual(['late'])
})

it('asks whoever types to hold back, until all of it was taken', async () => {
  const all = setUp()
  expect(all.device.input(new Uint8Array(0x10001))).toBe(false)
  for (let taken = 0; taken < 0x10000; taken += 0x1000) await offerRoom(all, 0x1000)
  expect(all.host.drained).toBe(0)
  await offerRoom(all, 0x1000)
  expect(all.host.drained).toBe(1)
  expect(all.device.input(bytes('x'))).toBe(true)
})

it('keeps what is typed while it is quiet, or was never read, for another machine too', async () => {
  const all = setUp()
  await all.registers.transport.pause()
  all.device.input(bytes('waits'))
  await offerRoom(all, 100)
  expect(received(all)).toEqual([])
  const other = setUp()
  await other.registers.transport.pause()
  other.registers.transport.loadState(reread(all.registers.transport.saveState()))
  other.memory.write(0, all.memory.read(0, 0x10000))
  other.registers.transport.resume()
  await settle()
  expect(received(other)).toEqual(['waits'])
  all.registers.transport.resume()
  await settle()
  expect(received(all)).toEqual(['waits'])
})

it('tells the size of the terminal, and that it is another one', async () => {
  const all = setUp()
  expect(all.registers.features & 1n).toBe(1n)
  const size = () => {
    const data = new Uint8Array(4)
    all.registers.transport.read(REGISTER.Config, data)
    return [data[0]! | (data[1]! << 8), data[2]! | (data[3]! << 8)]
  }
  expect(size()).toEqual([0, 0])
  const before = all.registers.get(REGISTER.ConfigGeneration)
  all.device.resize(300, 50)
  expect(size()).toEqual([300, 50])
  // Its port is not there before it says something.
  expect(all.registers.get(REGISTER.ConfigGeneration)).toBe(before)
  await transmit(all, 'text')
  expect(all.registers.get(REGISTER.ConfigGeneration)).toBe(before + 1)
  all.device.resize(300, 50)
  expect(all.registers.get(REGISTER.ConfigGeneration)).toBe(before + 1)
  all.device.resize(300, 51)
  expect(all.registers.get(REGISTER.ConfigGeneration)).toBe(before + 2)
})

it('a saved state that is none is refused', () => {
  const good = reread(setUp().device.saveState()) as { [key: string]: Json }
  for (const state of [null, {}, { ...good, sent: -1 }, { ...good, waiting: null }]) {
    expect(() => setUp().device.loadState(state)).toThrow(TypeError)
  }
})

it('100,000 hostile drivers: writes to their buffers or asks for a reset', { timeout: 120_000 }, async () => {
  let takes = true
  const device: VirtioConsole = new VirtioConsole({ output: () => takes })
  const fresh = device.saveState()
  const prepare = (seed: number, [receive, transmit]: readonly Driver[]) => {
    takes = seed % 5 !== 0
    device.loadState(fresh)
    device.goOn()
    if (seed % 2) {
      receive!.describe(0, 0x8000 + (seed % 64), seed % 300, WRITE)
      receive!.offer(0)
    }
    if (seed % 3) {
      transmit!.describe(0, 0x8000 + (seed % 64), seed % 300, 0)
      transmit!.offer(0)
    }
  }
  const disturb = (seed: number) => {
    device.input(new Uint8Array(seed % 100))
    device.goOn()
    device.resize(seed & 0xff, 1)
  }
  const seen = await beHostile(device, { cases: 100_000, prepare, disturb })
  expect(seen.given).toBeGreaterThan(10_000)
  expect(seen.broken).toBeGreaterThan(10_000)
})
