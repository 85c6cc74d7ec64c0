import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Json } from '../../../../lib/devices/device.js'
import type { VirtioDevice, VirtioLink } from '../../../../lib/devices/virtio/device.js'
import { MmioTransport } from '../../../../lib/devices/virtio/mmio-transport.js'
import { QueueError } from '../../../../lib/devices/virtio/queue-error.js'
import { FEATURE, REGISTER, STATUS } from '../../../../lib/devices/virtio/registers.js'
import { plainMemory } from '../../memory/plain.js'
import { Driver, LAYOUT, MEMORY } from './driver.js'
import { READY, Registers } from './driver-model.js'

const OWN_FEATURE = 1n << 5n

/** A device that takes note of what is asked of it; it is busy as long as `busy` says. */
class Probe implements VirtioDevice {
  readonly type = 42
  readonly features = OWN_FEATURE
  readonly queueSizes = [16, 8]
  config = Uint8Array.of(1, 2, 3, 4, 5)
  readonly log: string[] = []
  link: VirtioLink | undefined
  busy: Promise<void> | undefined
  kept: Json = 'nothing'

  start(link: VirtioLink) {
    this.log.push('start')
    this.link = link
  }

  notify(index: number) {
    this.log.push(`notify ${index}`)
    while (this.link!.queues[index]!.pop());
  }

  async quiesce() {
    await this.busy
    this.log.push('quiet')
  }

  resume() {
    this.log.push('resume')
  }

  reset() {
    this.log.push('reset')
    this.link = undefined
  }

  saveState() {
    return { kept: this.kept }
  }

  loadState(state: Json) {
    this.kept = (state as { kept: Json }).kept
  }

  close() {}

  writeConfig(offset: number, data: Uint8Array) {
    this.log.push(`config ${offset}: ${data}`)
  }
}

function setUp(device = new Probe()) {
  const memory = plainMemory([[0, MEMORY]])
  const registers = new Registers(memory, device)
  registers.transport.resume()
  device.log.length = 0
  return { memory, device, registers, transport: registers.transport }
}

describe('a driver', () => {
  it('finds the device, and the features of it, of its queues and of the transport', () => {
    const { registers } = setUp()
    expect(registers.get(REGISTER.MagicValue)).toBe(Buffer.from('virt').readUInt32LE())
    expect(registers.get(REGISTER.Version)).toBe(2)
    expect(registers.get(REGISTER.DeviceID)).toBe(42)
    expect(registers.features).toBe(OWN_FEATURE | FEATURE.VERSION_1 | FEATURE.EVENT_IDX | FEATURE.INDIRECT_DESC)
    registers.set(REGISTER.QueueSel, 1)
    expect(registers.get(REGISTER.QueueNumMax)).toBe(8)
    registers.set(REGISTER.QueueSel, 2)
    expect(registers.get(REGISTER.QueueNumMax)).toBe(0)
    expect(registers.get(REGISTER.SHMLenLow)).toBe(0xffff_ffff)
  })

  it('starts it with the queues that it has set up, and rings', () => {
    const { registers, device } = setUp()
    registers.start([LAYOUT])
    expect(registers.get(REGISTER.Status)).toBe(READY)
    expect(device.link!.queues.map(queue => queue?.size)).toEqual([16, undefined])
    registers.set(REGISTER.QueueNotify, 0)
    // Neither of these is a queue that is set up.
    registers.set(REGISTER.QueueNotify, 1)
    registers.set(REGISTER.QueueNotify, 7)
    expect(device.log).toEqual(['start', 'notify 0'])
  })

  it.each([
    ['that are not offered', FEATURE.VERSION_1 | (1n << 6n)],
    ['of a device of before version 1', OWN_FEATURE],
  ])('is told that features %s cannot be agreed on', (_, features) => {
    const { registers, device } = setUp()
    registers.agree(features)
    registers.set(REGISTER.Status, STATUS.ACKNOWLEDGE | STATUS.DRIVER | STATUS.FEATURES_OK)
    expect(registers.get(REGISTER.Status)).toBe(STATUS.ACKNOWLEDGE | STATUS.DRIVER)
    registers.set(REGISTER.Status, READY)
    expect(device.log).toEqual([])
  })

  it('reads the configuration in any width, and nothing beyond it; writes it once features are agreed on', () => {
    const { registers, device, transport } = setUp()
    const read = (offset: number, width: number) => {
      const data = new Uint8Array(width).fill(0xee)
      transport.read(REGISTER.Config + offset, data)
      return [...data]
    }
    expect(read(0, 8)).toEqual([1, 2, 3, 4, 5, 0, 0, 0])
    expect(read(3, 1)).toEqual([4])
    expect(read(4, 2)).toEqual([5, 0])
    expect(read(0xefc, 4)).toEqual([0, 0, 0, 0])
    transport.write(REGISTER.Config + 1, Uint8Array.of(9, 8))
    registers.start([])
    transport.write(REGISTER.Config + 1, Uint8Array.of(9, 8))
    expect(device.log).toEqual(['start', 'config 1: 9,8'])
  })

  it('has its interrupt, by cause, until it acknowledges it', () => {
    const { registers, device, memory } = setUp()
    registers.start([LAYOUT])
    const driver = new Driver(memory, LAYOUT, { eventIndex: false, indirect: false })
    driver.describe(0, 0x8000, 1, 0)
    driver.offer(0)
    const queue = device.link!.queues[0]!
    queue.push(queue.pop()!, 0)
    device.link!.used(queue)
    expect([registers.interrupts, registers.get(REGISTER.InterruptStatus)]).toEqual([1, 1])
    // There is nothing new to tell.
    device.link!.used(queue)
    expect(registers.interrupts).toBe(1)
    device.link!.configChanged()
    expect([registers.interrupts, registers.get(REGISTER.InterruptStatus)]).toEqual([2, 3])
    expect(registers.get(REGISTER.ConfigGeneration)).toBe(1)
    registers.set(REGISTER.InterruptACK, 1)
    expect(registers.get(REGISTER.InterruptStatus)).toBe(2)
  })

  it('finds the cause of an interrupt in a word that others may answer from, before it is interrupted', () => {
    const device = new Probe()
    const interruptStatus = new Uint32Array(1)
    const seen: number[] = []
    const interrupt = { signal: () => void seen.push(interruptStatus[0]!) }
    const transport = new MmioTransport(plainMemory([[0, MEMORY]]), device, { interrupt, interruptStatus })
    transport.resume()
    const set = (offset: number, value: number) => transport.write(offset, new Uint8Array(Uint32Array.of(value).buffer))
    set(REGISTER.DriverFeaturesSel, 1)
    set(REGISTER.DriverFeatures, 1)
    for (const status of [STATUS.FEATURES_OK, STATUS.DRIVER_OK]) set(REGISTER.Status, status)
    device.link!.configChanged()
    expect(seen).toEqual([2])
    interruptStatus[0] = 0
    expect(transport.saveState()).toMatchObject({ interruptStatus: 0 })
    device.link!.configChanged()
    set(REGISTER.InterruptACK, 2)
    expect([seen, interruptStatus[0]]).toEqual([[2, 2], 0])
    device.link!.configChanged()
    transport.reset()
    expect(interruptStatus[0]).toBe(0)
  })

  it('that breaks the rules of a queue has to reset the device', async () => {
    const { registers, device, memory } = setUp()
    registers.start([LAYOUT])
    const driver = new Driver(memory, LAYOUT, { eventIndex: false, indirect: false })
    driver.describe(0, 0x8000, 0, 0)
    driver.offer(0)
    registers.set(REGISTER.QueueNotify, 0)
    expect(registers.get(REGISTER.Status)).toBe(READY | STATUS.DEVICE_NEEDS_RESET)
    expect(registers.get(REGISTER.InterruptStatus)).toBe(2)
    device.log.length = 0
    registers.set(REGISTER.QueueNotify, 0)
    expect(device.log).toEqual([])
    await registers.set(REGISTER.Status, 0)
    expect(registers.get(REGISTER.Status)).toBe(0)
    registers.start([LAYOUT])
    expect(registers.get(REGISTER.Status)).toBe(READY)
  })

  it('whose queue does not lie in memory has to reset the device', () => {
    const { registers, device } = setUp()
    registers.start([{ ...LAYOUT, device: MEMORY - 4 }])
    expect(registers.get(REGISTER.Status)).toBe(READY | STATUS.DEVICE_NEEDS_RESET)
    expect(device.log).toEqual([])
  })

  it.each(['QueueDescHigh', 'QueueDriverHigh', 'QueueDeviceHigh'] as const)(
    'tells the upper half of an address by %s',
    register => {
      const { registers } = setUp()
      registers.set(REGISTER[register], 1)
      registers.start([LAYOUT])
      expect(registers.get(REGISTER.Status)).toBe(READY | STATUS.DEVICE_NEEDS_RESET)
      const { queues } = registers.transport.saveState() as { queues: Record<string, number>[] }
      const above = Object.entries(queues[0]!).filter(([, value]) => value >= 2 ** 32)
      expect(above.map(([area]) => area)).toEqual([
        { Desc: 'descriptors', Driver: 'driver', Device: 'device' }[register.slice(5, -4)],
      ])
    },
  )

  it('waits with its reset, as with a start after it, for what the device works on', async () => {
    const { registers, device } = setUp()
    registers.start([LAYOUT])
    let finish!: () => void
    device.busy = new Promise(resolve => (finish = resolve))
    const events: string[] = []
    const reset = Promise.resolve(registers.set(REGISTER.Status, 0)).then(() => events.push('reset'))
    const again = Promise.resolve(registers.set(REGISTER.Status, 1)).then(() => events.push('again'))
    await new Promise(setImmediate)
    expect(events).toEqual([])
    const { link } = device
    finish()
    await Promise.all([reset, again])
    expect(events).toEqual(['reset', 'again'])
    expect(device.log).toEqual(['start', 'quiet', 'reset', 'resume'])
    expect(registers.get(REGISTER.Status)).toBe(1)
    // The old link is dead.
    const before = registers.interrupts
    link!.configChanged()
    link!.fail(new QueueError('late'))
    expect(registers.interrupts).toBe(before)
  })
})

describe('a wake-up', () => {
  it('by the driver is told with how many chains it found, by the host with what the device says', () => {
    const rings: (() => void)[] = []
    const doorbells = [0, 1].map(index => ({
      watch(onRing: () => void) {
        rings[index] = onRing
      },
      unwatch: () => {},
    }))
    const found: number[] = []
    const memory = plainMemory([[0, MEMORY]])
    const device = new Probe()
    const registers = new Registers(memory, device, { doorbells, woken: chains => found.push(chains) })
    registers.transport.resume()
    rings[0]!()
    registers.start([LAYOUT])
    const driver = new Driver(memory, LAYOUT, { eventIndex: false, indirect: false })
    driver.describe(0, 0x8000, 1, 0)
    for (let i = 0; i < 3; i++) driver.offer(0)
    rings[0]!()
    rings[0]!()
    // A queue that was not set up.
    rings[1]!()
    device.link!.woken(7)
    // More than the queue has: the device needs a reset, and is told of all the same.
    for (let i = 0; i <= LAYOUT.size; i++) driver.offer(0)
    rings[0]!()
    expect(found).toEqual([0, 3, 0, 0, 7, LAYOUT.size + 1])
    expect(registers.get(REGISTER.Status) & STATUS.DEVICE_NEEDS_RESET).not.toBe(0)
  })
})

describe('a pause', () => {
  it('keeps the device quiet; the driver’s rings meanwhile are heard afterwards', async () => {
    const watched = new Set<number>()
    const rings: (() => void)[] = []
    const doorbells = [0, 1].map(index => ({
      watch(onRing: () => void) {
        watched.add(index)
        rings[index] = onRing
      },
      unwatch: () => void watched.delete(index),
    }))
    const device = new Probe()
    const registers = new Registers(plainMemory([[0, MEMORY]]), device, { doorbells })
    registers.start([LAYOUT])
    expect([...watched]).toEqual([])
    registers.transport.resume()
    expect([...watched]).toEqual([0, 1])
    rings[0]!()
    await registers.transport.pause()
    expect([...watched]).toEqual([])
    registers.set(REGISTER.QueueNotify, 0)
    registers.transport.resume()
    expect(device.log).toEqual(['start', 'resume', 'notify 0', 'notify 0', 'quiet', 'resume', 'notify 0'])
  })

  it('lets the state be taken, and another transport go on from it', async () => {
    const { registers, device, transport, memory } = setUp()
    registers.start([LAYOUT], FEATURE.VERSION_1 | FEATURE.EVENT_IDX)
    const driver = new Driver(memory, LAYOUT, { eventIndex: true, indirect: false })
    driver.describe(0, 0x8000, 1, 0)
    driver.offer(0)
    registers.set(REGISTER.QueueNotify, 0)
    device.kept = 'something'
    device.link!.configChanged()
    await transport.pause()
    const state = JSON.parse(JSON.stringify(transport.saveState())) as Json

    const twin = new Probe()
    const restored = new Registers(memory, twin)
    restored.transport.loadState(state)
    expect(restored.transport.saveState()).toEqual(state)
    expect(twin.kept).toBe('something')
    expect(twin.link!.queues[0]!.state).toEqual({ nextAvailable: 1, nextUsed: 0 })
    expect(twin.link!.features).toBe(FEATURE.VERSION_1 | FEATURE.EVENT_IDX)
    restored.transport.resume()
    // An interrupt that was not acknowledged is raised again.
    expect(restored.interrupts).toBe(1)
    // To go back to a moment before the start is a reset.
    const fresh = setUp().transport.saveState()
    await restored.transport.pause()
    restored.transport.loadState(fresh)
    expect(twin.log.at(-1)).toBe('reset')
    expect(restored.get(REGISTER.Status)).toBe(0)
  })

  it.each([
    ['no object', 7],
    ['a queue too few', (state: Record<string, unknown>) => ({ ...state, queues: [] })],
    ['a status that is none', (state: Record<string, unknown>) => ({ ...state, status: 256 })],
    ['no state of the device', ({ device: _, ...state }: Record<string, unknown>) => state],
  ])('refuses %s as a state', (_, change) => {
    const { transport } = setUp()
    const state = transport.saveState() as Record<string, Json>
    const bad = (typeof change === 'function' ? change(state) : change) as Json
    expect(() => transport.loadState(bad)).toThrow(TypeError)
  })
})

it('takes any access in any order without throwing, and comes back by a reset', async () => {
  const access = fc.record({
    offset: fc.oneof(fc.constantFrom(...Object.values(REGISTER)), fc.nat(0xfff)),
    size: fc.constantFrom(1, 2, 4, 8),
    value: fc.oneof(fc.nat(0xff), fc.bigInt(0n, 2n ** 64n - 1n).map(Number), fc.nat(MEMORY)),
    write: fc.boolean(),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(access, { minLength: 10, maxLength: 60 }), async accesses => {
      const { registers, transport } = setUp()
      for (const { offset, size, value, write } of accesses) {
        const data = new Uint8Array(8)
        new DataView(data.buffer).setBigUint64(0, BigInt.asUintN(64, BigInt(value)), true)
        if (write) void transport.write(offset, data.subarray(0, size))
        else transport.read(offset, data.subarray(0, size))
      }
      await registers.set(REGISTER.Status, 0)
      registers.start([LAYOUT])
      expect(registers.get(REGISTER.Status)).toBe(READY)
    }),
    { numRuns: 2000 },
  )
})
