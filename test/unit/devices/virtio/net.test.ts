import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { ChainBatch } from '../../../../lib/devices/virtio/chain-batch.js'
import type { VirtioLink } from '../../../../lib/devices/virtio/device.js'
import { NET_FEATURE, VirtioNet } from '../../../../lib/devices/virtio/net.js'
import {
  type NetBackend,
  type NetEvents,
  type NetOffloads,
  NO_OFFLOADS,
  type Received,
} from '../../../../lib/devices/virtio/net-backend.js'
import { Queue } from '../../../../lib/devices/virtio/queue.js'
import type { QueueError } from '../../../../lib/devices/virtio/queue-error.js'
import { GuestMemory } from '../../../../lib/memory/guest-memory.js'
import { Driver, INDIRECT, LAYOUT, MEMORY, NEXT, WRITE } from './driver.js'

const RX = 0
const TX = 1
const LAYOUTS = [LAYOUT, { ...LAYOUT, descriptors: 0x4000, driver: 0x5000, device: 0x6000 }] as const
const ALL: NetOffloads = { checksum: true, tso4: true, tso6: true }

/** A network with what a test puts there. */
class Wire implements NetBackend {
  offloads = ALL
  left = NO_OFFLOADS
  events: NetEvents | undefined
  /** Frames from the guest. */
  readonly sent: Buffer[] = []
  /** Frames for the guest, with their headers. */
  readonly waiting: Buffer[] = []
  /** How many it takes before it needs a rest. */
  credit = Number.POSITIVE_INFINITY
  closed = false

  leaveToGuest(offloads: NetOffloads): void {
    this.left = offloads
  }

  start(events: NetEvents): void {
    this.events = events
  }

  send(frames: ChainBatch): number {
    const taken = Math.min(frames.count, this.credit)
    for (let i = 0; i < taken; i++) if (frames.counts[i]! > 0) this.sent.push(Buffer.concat(frames.partsOf(i)))
    this.credit -= taken
    return taken
  }

  receive(buffers: ChainBatch, merge: boolean): Received {
    const lengths: number[] = []
    for (let next = 0; this.waiting.length > 0; this.waiting.shift()) {
      const frame = this.waiting[0]!
      const [first, end] = [next, merge ? buffers.count : Math.min(next + 1, buffers.count)]
      let room = 0
      for (; next < end && room < frame.length; next++) room += buffers.writableLengths[next]!
      if (room < frame.length && (merge || first >= buffers.count)) return { lengths, more: true }
      if (room < frame.length) {
        next = first
        continue
      }
      let at = 0
      for (let i = first; i < next; i++) {
        for (const bytes of buffers.partsOf(i)) {
          bytes.set(frame.subarray(at, at + bytes.length))
          at = Math.min(frame.length, at + bytes.length)
        }
      }
      lengths.push(frame.length)
    }
    return { lengths, more: false }
  }

  drop(): void {
    this.waiting.shift()
  }

  close(): void {
    this.closed = true
  }
}

/** A device with both its queues, started. */
function setUp(features = ~0n, size = LAYOUT.size, memory = emptyMemory()) {
  const queueFeatures = { eventIndex: true, indirect: true }
  const wire = new Wire()
  const device = new VirtioNet(wire, '02:00:00:00:00:07')
  const layouts = LAYOUTS.map(layout => ({ ...layout, size }))
  const queues = layouts.map(layout => new Queue(memory, layout, queueFeatures))
  const drivers = layouts.map(layout => new Driver(memory, layout, queueFeatures))
  const told = { used: [0, 0], woken: [] as number[], config: 0, failures: [] as QueueError[] }
  const link: VirtioLink = {
    queues,
    features: device.features & features,
    used: queue => void told.used[queues.indexOf(queue)]!++,
    notify: index => device.notify(index),
    woken: found => void told.woken.push(found),
    configChanged: () => void told.config++,
    fail: error => void told.failures.push(error),
  }
  device.start(link)
  device.resume()
  return { memory, wire, device, queues, rx: drivers[RX]!, tx: drivers[TX]!, told, link }
}

function emptyMemory() {
  return new GuestMemory([{ guestAddress: 0, size: MEMORY, chunks: [new Uint8Array(MEMORY)] }])
}

const frame = (length: number, first = 1) => Buffer.from(Array.from({ length }, (_, i) => (first + i) & 0xff))
/** A turn of the event loop. */
const turn = () => new Promise(resolve => setImmediate(resolve))

/** Receive buffers of `size` bytes each, one descriptor a buffer. */
function offerBuffers(rx: Driver, count: number, size: number, first = 0) {
  for (let i = first; i < first + count; i++) {
    rx.describe(i % 16, 0x8000 + 0x400 * (i % 16), size, WRITE)
    rx.offer(i % 16)
  }
}

describe('what is negotiated', () => {
  it('are the offloads of the backend, both ways, and the address and the link in the configuration', () => {
    const { device } = setUp()
    expect([...device.config]).toEqual([2, 0, 0, 0, 0, 7, 1, 0])
    // Bits 0, 1, 5, 7, 8, 11, 12, 15, 16.
    expect(device.features).toBe(0x199a3n)
    const plain = new Wire()
    plain.offloads = NO_OFFLOADS
    expect(new VirtioNet(plain, '02:00:00:00:00:07').features).toBe(0x18020n)
  })

  const { GUEST_CSUM, GUEST_TSO4, GUEST_TSO6 } = NET_FEATURE
  it.each<[string, bigint, NetOffloads]>([
    ['everything', ~0n, ALL],
    ['nothing', 0n, NO_OFFLOADS],
    ['checksums', GUEST_CSUM, { checksum: true, tso4: false, tso6: false }],
    ['checksums and IPv6', GUEST_CSUM | GUEST_TSO6, { checksum: true, tso4: false, tso6: true }],
    ['segments without checksums, which means nothing', GUEST_TSO4 | GUEST_TSO6, NO_OFFLOADS],
  ])('leaves %s to the guest, until the reset', (_, features, offloads) => {
    const { device, wire } = setUp(features)
    expect(wire.left).toEqual(offloads)
    device.reset()
    expect(wire.left).toEqual(NO_OFFLOADS)
  })
})

describe('frames from the guest', () => {
  it('go out in order, header and all, from as many pieces as they are in', () => {
    const { memory, tx, wire, device, told } = setUp()
    memory.write(0x8000, frame(40))
    memory.write(0x9000, frame(60, 77))
    tx.describe(0, 0x8000, 12, NEXT, 1)
    tx.describe(1, 0x800c, 28, 0)
    tx.describe(2, 0x9000, 60, 0)
    tx.offer(0)
    tx.offer(2)
    device.notify(TX)
    expect(wire.sent).toEqual([frame(40), frame(60, 77)])
    expect(tx.collect()).toEqual([
      { id: 0, length: 0 },
      { id: 2, length: 0 },
    ])
    expect(told.used).toEqual([0, 1])
    expect(tx.notifies()).toBe(true)
  })

  it('stay in the queue while the backend takes none', () => {
    const { tx, wire, device } = setUp()
    wire.credit = 2
    for (let i = 0; i < 5; i++) {
      tx.describe(i, 0x8000 + i, 50, 0)
      tx.offer(i)
    }
    device.notify(TX)
    expect(tx.collect().map(({ id }) => id)).toEqual([0, 1])
    device.notify(TX)
    expect(tx.collect()).toEqual([])
    wire.credit = 10
    wire.events!.writable()
    expect(tx.collect().map(({ id }) => id)).toEqual([2, 3, 4])
    expect(wire.sent).toHaveLength(5)
  })

  it.each([
    ['that is shorter than Ethernet', 25, 0],
    ['that is longer than any', 12 + 14 + 8 + 65536, 0],
    ['with a writable buffer', 60, WRITE],
  ])('one %s is dropped, and the others go on, in order', (_, length, flags) => {
    const { tx, wire, device, told } = setUp(
      ~0n,
      16,
      new GuestMemory([{ guestAddress: 0, size: 0x40000, chunks: [new Uint8Array(0x40000)] }]),
    )
    tx.describe(0, 0x8000, 60, 0)
    tx.describe(1, 0x9000, length, NEXT, 3)
    tx.describe(3, 0x7000, flags ? 4 : 1, flags)
    if (!flags) tx.describe(1, 0x9000, length, 0)
    tx.describe(2, 0xa000, 60, 0)
    for (const head of [0, 1, 2]) tx.offer(head)
    device.notify(TX)
    expect(wire.sent).toHaveLength(2)
    expect(tx.collect().map(({ id }) => id)).toEqual([0, 1, 2])
    expect(told.failures).toEqual([])
  })

  it('one in more pieces than a system call takes is dropped, too', () => {
    const memory = new GuestMemory([{ guestAddress: 0, size: 0x40000, chunks: [new Uint8Array(0x40000)] }])
    const { tx, wire, device, told } = setUp(~0n, 16, memory)
    for (const [head, count] of [1023, 1024].entries()) {
      const at = 0x20000 + 0x8000 * head
      tx.table(
        at,
        Array.from({ length: count }, (_, i) => [0x8000, 1, i + 1 < count ? NEXT : 0, i + 1] as const),
      )
      tx.describe(head, at, 16 * count, INDIRECT)
      tx.offer(head)
    }
    device.notify(TX)
    expect(wire.sent.map(({ length }) => length)).toEqual([1023])
    expect(tx.collect().map(({ id }) => id)).toEqual([0, 1])
    expect(told.failures).toEqual([])
  })

  it('without room for a header break the rules: the driver has to reset', async () => {
    const { tx, rx, wire, device, told } = setUp()
    tx.describe(0, 0x8000, 11, 0)
    tx.offer(0)
    device.notify(TX)
    expect(told.failures).toMatchObject([{ name: 'QueueError', message: /11 bytes/ }])
    // From then on nothing is done, whatever happens.
    offerBuffers(rx, 1, 100)
    wire.waiting.push(frame(60))
    wire.events!.readable()
    device.notify(RX)
    await device.quiesce()
    expect([rx.collect(), told.failures.length]).toEqual([[], 1])
  })
})

describe('frames for the guest', () => {
  it('fill a buffer each, and say so in the header', () => {
    const { memory, rx, wire, device, told } = setUp()
    offerBuffers(rx, 4, 100)
    device.notify(RX)
    expect(rx.collect()).toEqual([])
    wire.waiting.push(frame(70), frame(100, 9))
    wire.events!.readable()
    expect(rx.collect()).toEqual([
      { id: 0, length: 70 },
      { id: 1, length: 100 },
    ])
    const expected = frame(70)
    expected.writeUInt16LE(1, 10)
    expect(Buffer.from(memory.read(0x8000, 70))).toEqual(expected)
    expect(memory.read(0x8400 + 10, 3)).toEqual(Uint8Array.of(1, 0, 21))
    expect([told.used, told.woken]).toEqual([[1, 0], [2]])
  })

  it('go on in further buffers where these may be merged, all given at once', () => {
    const { memory, rx, wire, device } = setUp()
    offerBuffers(rx, 4, 100)
    wire.waiting.push(frame(250), frame(60))
    device.notify(RX)
    expect(rx.collect().map(({ length }) => length)).toEqual([100, 100, 50, 60])
    expect(memory.read(0x8000 + 10, 2)).toEqual(Uint8Array.of(3, 0))
    expect(memory.read(0x8c00 + 10, 2)).toEqual(Uint8Array.of(1, 0))
    expect(Buffer.concat([memory.read(0x8400, 100), memory.read(0x8800, 50)])).toEqual(frame(250).subarray(100))
  })

  it('are dropped where they may not, and do not fit', () => {
    const { rx, wire, device } = setUp(~NET_FEATURE.MRG_RXBUF)
    offerBuffers(rx, 2, 100)
    wire.waiting.push(frame(250), frame(60))
    device.notify(RX)
    expect(rx.collect()).toEqual([{ id: 0, length: 60 }])
  })

  it('have num_buffers set wherever the pieces of the header are', () => {
    const { memory, rx, wire, device } = setUp()
    rx.describe(0, 0x8000, 3, NEXT | WRITE, 1)
    rx.describe(1, 0x8003, 8, NEXT | WRITE, 2)
    rx.describe(2, 0x9000, 60, WRITE)
    rx.offer(0)
    wire.waiting.push(Buffer.alloc(60, 0xff))
    device.notify(RX)
    expect(memory.read(0x8000, 11)).toEqual(Uint8Array.of(...new Array(10).fill(0xff), 1))
    expect(memory.read(0x9000, 2)).toEqual(Uint8Array.of(0, 0xff))
  })

  it('wait in the backend for buffers', () => {
    const { rx, wire, device } = setUp()
    wire.waiting.push(frame(60), frame(250))
    wire.events!.readable()
    expect(rx.notifies()).toBe(true)
    offerBuffers(rx, 2, 100)
    device.notify(RX)
    expect([rx.collect().length, wire.waiting.length]).toEqual([1, 1])
    expect(rx.notifies()).toBe(true)
    offerBuffers(rx, 2, 100, 2)
    device.notify(RX)
    expect([rx.collect().map(({ id }) => id), wire.waiting.length]).toEqual([[1, 2, 3], 0])
  })

  it('that do not fit in all buffers that the queue can have are dropped', () => {
    const { rx, wire, device } = setUp()
    offerBuffers(rx, 16, 100)
    wire.waiting.push(frame(1601), frame(60))
    device.notify(RX)
    expect(rx.collect()).toEqual([{ id: 0, length: 60 }])
  })

  it.each<[string, (rx: Driver) => void]>([
    ['is not writable', rx => rx.describe(0, 0x8000, 100, 0)],
    ['has no room behind the header', rx => rx.describe(0, 0x8000, 12, WRITE)],
    [
      'is to be read, too',
      rx => {
        rx.describe(0, 0x8000, 100, NEXT, 1)
        rx.describe(1, 0x8000, 100, WRITE)
      },
    ],
    [
      'is in more pieces than a system call takes',
      rx => {
        rx.table(
          0xb000,
          Array.from({ length: 1024 }, (_, i) => [0x8000, 1, WRITE | (i < 1023 ? NEXT : 0), i + 1] as const),
        )
        rx.describe(0, 0xb000, 16 * 1024, INDIRECT)
      },
    ],
  ])('in a buffer that %s break the rules', (_, describe) => {
    const { rx, device, told } = setUp()
    describe(rx)
    rx.offer(0)
    device.notify(RX)
    expect(told.failures).toMatchObject([{ message: /receive buffer/ }])
  })

  it('and from it, however many, leave others their turn', async () => {
    const { rx, wire, device } = setUp()
    wire.receive = ({ count }) => ({ lengths: new Array(count).fill(60), more: true })
    let turns = 0
    // A driver that offers each buffer again at once.
    const offer = () => {
      offerBuffers(rx, 1, 100)
      return undefined
    }
    const receive = wire.receive.bind(wire)
    wire.receive = (buffers, merge) => {
      for (let i = 0; i < buffers.count; i++) offer()
      return receive(buffers, merge)
    }
    offer()
    device.notify(RX)
    for (; turns < 3; turns++) await turn()
    expect(turns).toBe(3)
    device.reset()
  })
})

it('is quiet after quiesce: what it took and has not used is available again', async () => {
  const { rx, tx, wire, device, queues } = setUp()
  offerBuffers(rx, 4, 100)
  device.notify(RX)
  wire.credit = 1
  for (let i = 0; i < 3; i++) {
    tx.describe(i, 0x8000, 50, 0)
    tx.offer(i)
  }
  device.notify(TX)
  await device.quiesce()
  expect(queues.map(queue => queue.state)).toEqual([
    { nextAvailable: 0, nextUsed: 0 },
    { nextAvailable: 1, nextUsed: 1 },
  ])
  wire.credit = 9
  wire.events!.writable()
  wire.waiting.push(frame(60))
  wire.events!.readable()
  expect([wire.sent.length, wire.waiting.length]).toEqual([1, 1])
  device.resume()
  for (const index of [RX, TX]) device.notify(index)
  expect(wire.sent).toHaveLength(3)
  expect(rx.collect()).toEqual([{ id: 0, length: 60 }])
  expect(tx.collect().map(({ id }) => id)).toEqual([0, 1, 2])
})

describe('a network that is gone', () => {
  it('is told as a link that is down, and frames are lost', () => {
    const { tx, wire, device, told } = setUp()
    wire.credit = 0
    tx.describe(0, 0x8000, 50, 0)
    tx.offer(0)
    device.notify(TX)
    expect(tx.collect()).toEqual([])
    wire.events!.gone()
    expect([told.config, device.config[6]]).toEqual([1, 0])
    expect(tx.collect()).toHaveLength(1)
    tx.offer(0)
    device.notify(TX)
    expect([tx.collect().length, wire.sent.length]).toEqual([1, 0])
  })

  it('when a saved device comes back is told to its driver, as is one that is there again', () => {
    const { device, wire, link, told } = setUp()
    const up = device.saveState()
    wire.events!.gone()
    const down = device.saveState()
    for (const [state, gone, changes] of [
      [up, true, 1],
      [up, false, 0],
      [down, false, 1],
      [down, true, 0],
    ] as const) {
      const other = new Wire()
      const restored = new VirtioNet(other, '02:00:00:00:00:07')
      if (gone) other.events!.gone()
      restored.loadState(state)
      told.config = 0
      restored.start(link)
      expect(told.config).toBe(changes)
    }
    expect(() => device.loadState({ status: 2 })).toThrow(TypeError)
  })
})

/** From here to there, as buffers in guest memory are. */
type Range = readonly [from: number, to: number]

/** What a hostile driver, and the network beside it, may do at one time. `offered` is what the device may hold, from this time and those before. */
function hostile(world: ReturnType<typeof setUp>, seed: number, chunk: Uint8Array, offered: Range[]): void {
  const { device, wire, rx, tx, told } = world
  const what = seed >>> 28
  ;[rx, tx][seed & 1]!.scramble(seed)
  if (what & 1) wire.waiting.push(Buffer.alloc(12 + (seed % 300), 0xee))
  if (what === 2) wire.credit = seed % 5
  if (what === 4) {
    void device.quiesce()
    offered.length = 0
  }
  if (what === 6) {
    wire.credit = 100
    device.resume()
  }
  before.set(chunk)
  offered.push(...writable(before))
  wire.events!.readable()
  wire.events!.writable()
  device.notify(TX)
  device.notify(RX)
  if (Buffer.compare(before, chunk) !== 0) expect(strays(chunk, offered)).toBe(false)
  if (told.failures.length === 0) return
  // It waits for the reset then.
  if (told.failures.length > 1) throw new Error(`${told.failures.length} failures`)
  told.failures.length = 0
  device.reset()
  offered.length = 0
  for (const queue of world.queues) queue.state = { nextAvailable: 0, nextUsed: 0 }
  device.start(world.link)
}

const before = new Uint8Array(MEMORY)

/** What any descriptor in `memory` marks as writable. */
function writable(memory: Uint8Array): Range[] {
  const view = new DataView(memory.buffer)
  const ranges: Range[] = []
  for (const table of [...LAYOUTS.map(({ descriptors }) => descriptors), 0xa000]) {
    for (let at = table; at < table + 16 * 16; at += 16) {
      const address = Number(view.getBigUint64(at, true))
      if ((view.getUint16(at + 12, true) & WRITE) === 0 || address >= MEMORY) continue
      ranges.push([address, Math.min(MEMORY, address + view.getUint32(at + 8, true))])
    }
  }
  return ranges
}

/** Whether memory changed since `before` that is neither in a device area nor `offered`, nor by a descriptor that the device wrote over. */
function strays(chunk: Uint8Array, offered: readonly Range[]): boolean {
  const now = chunk.slice()
  const areas = LAYOUTS.map(({ device, size }): Range => [device, device + 6 + 8 * size])
  for (const [from, to] of [...areas, ...offered, ...writable(chunk)]) now.set(before.subarray(from, to), from)
  return Buffer.compare(before, now) !== 0
}

it('survives whatever a driver does, and writes nothing but what it may', { timeout: 120_000 }, () => {
  const chunk = new Uint8Array(MEMORY)
  const guest = new GuestMemory([{ guestAddress: 0, size: MEMORY, chunks: [chunk] }])
  const seeds = fc.array(fc.nat(2 ** 31 - 1), { minLength: 100, maxLength: 100 })
  // A buffer that was offered, and not used yet, is the device's, whatever the driver says of it afterwards.
  const kept = [696877278, 1981694144, ...new Array(98).fill(0)]
  fc.assert(
    fc.property(seeds, all => {
      chunk.fill(0)
      const world = setUp(all[0]! % 3 ? ~0n : BigInt(all[0]!), 16, guest)
      const offered: Range[] = []
      for (const seed of all) hostile(world, seed, chunk, offered)
      world.device.reset()
    }),
    { numRuns: 1000, examples: [[kept]] },
  )
})
