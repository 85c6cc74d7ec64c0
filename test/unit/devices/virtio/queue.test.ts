import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Queue, type QueueFeatures } from '../../../../lib/devices/virtio/queue.js'
import { QueueError } from '../../../../lib/devices/virtio/queue-error.js'
import { GuestMemory } from '../../../../lib/memory/guest-memory.js'
import { Driver, INDIRECT, LAYOUT, MEMORY, NEXT, WRITE } from './driver.js'

const plain = { eventIndex: false, indirect: false }
const all = { eventIndex: true, indirect: true }

const emptyMemory = () => new GuestMemory([{ guestAddress: 0, size: MEMORY, chunks: [new Uint8Array(MEMORY)] }])

function setUp(features: QueueFeatures = all, size = LAYOUT.size, memory = emptyMemory()) {
  const driver = new Driver(memory, { ...LAYOUT, size }, features)
  return { memory, driver, queue: new Queue(memory, { ...LAYOUT, size }, features) }
}

describe('a chain', () => {
  it('has its readable and its writable buffers, in order, and is given back by its head', () => {
    const { driver, queue, memory } = setUp()
    memory.write(0x8000, Buffer.from('read me'))
    driver.describe(5, 0x8000, 4, NEXT, 2)
    driver.describe(2, 0x8004, 3, NEXT, 7)
    driver.describe(7, 0x9000, 512, WRITE)
    driver.offer(5)
    const chain = queue.pop()!
    expect(chain).toMatchObject({ head: 5, readableLength: 7, writableLength: 512 })
    expect(Buffer.concat(chain.readable.map(({ bytes }) => bytes)).toString()).toBe('read me')
    expect(chain.writable.map(({ address, bytes }) => ({ address, bytes }))).toEqual([
      { address: 0x9000, bytes: new Uint8Array(512) },
    ])
    chain.writable[0]!.bytes.fill(7)
    expect(memory.view(0x9000, 512).every(byte => byte === 7)).toBe(true)
    expect(queue.pop()).toBeUndefined()
    expect(driver.collect()).toEqual([])
    queue.push(chain, 512)
    expect(driver.collect()).toEqual([{ id: 5, length: 512 }])
  })

  it('may end with an indirect table', () => {
    const { driver, queue } = setUp()
    driver.describe(0, 0x8000, 16, NEXT, 1)
    driver.describe(1, 0xa000, 32, INDIRECT)
    driver.table(0xa000, [
      [0x9000, 8, NEXT, 1],
      [0x9100, 8, WRITE, 0],
    ])
    driver.offer(0)
    expect(queue.pop()).toMatchObject({ head: 0, readableLength: 24, writableLength: 8 })
  })

  it('across two views of memory is in parts', () => {
    const chunks = [new Uint8Array(0x8000), new Uint8Array(0x8000)]
    const memory = new GuestMemory([{ guestAddress: 0, size: 0x10000, chunks }])
    const driver = new Driver(memory, LAYOUT, all)
    const queue = new Queue(memory, LAYOUT, all)
    driver.describe(0, 0x7ff0, 0x20, WRITE)
    driver.offer(0)
    const { writable } = queue.pop()!
    expect(writable.map(({ address, bytes }) => [address, bytes.length])).toEqual([
      [0x7ff0, 0x10],
      [0x8000, 0x10],
    ])
  })

  const broken: [string, QueueFeatures, (driver: Driver) => void][] = [
    ['is a loop', plain, d => d.describe(0, 0x8000, 1, NEXT, 0)],
    ['is a longer loop', plain, d => [0, 1, 2].forEach(i => void d.describe(i, 0x8000, 1, NEXT, (i + 1) % 3))],
    ['goes on beyond the table', plain, d => d.describe(0, 0x8000, 1, NEXT, LAYOUT.size)],
    ['lies outside memory', plain, d => d.describe(0, MEMORY - 1, 2, 0)],
    ['lies beyond all addresses', plain, d => d.describe(0, 2 ** 53, 1, 0)],
    ['has an empty buffer', plain, d => d.describe(0, 0x8000, 0, 0)],
    [
      'has a readable buffer behind a writable one',
      plain,
      d => {
        d.describe(0, 0x8000, 1, NEXT | WRITE, 1)
        d.describe(1, 0x8000, 1, 0)
      },
    ],
    ['is indirect without leave', plain, d => d.describe(0, 0xa000, 16, INDIRECT)],
    ['is indirect and goes on', all, d => d.describe(0, 0xa000, 16, INDIRECT | NEXT, 1)],
    ['has an indirect table of a wrong length', all, d => d.describe(0, 0xa000, 17, INDIRECT)],
    ['has an empty indirect table', all, d => d.describe(0, 0xa000, 0, INDIRECT)],
    ['has an indirect table outside memory', all, d => d.describe(0, MEMORY, 16, INDIRECT)],
    [
      'is indirect twice',
      all,
      d => {
        d.describe(0, 0xa000, 16, INDIRECT)
        d.table(0xa000, [[0xa000, 16, INDIRECT, 0]])
      },
    ],
    [
      'is a loop in an indirect table',
      all,
      d => {
        d.describe(0, 0xa000, 16, INDIRECT)
        d.table(0xa000, [[0x8000, 1, NEXT, 0]])
      },
    ],
  ]
  it.each(broken)('that %s is refused', (_, features, breakIt) => {
    const { driver, queue } = setUp(features)
    breakIt(driver)
    driver.offer(0)
    expect(() => queue.pop()).toThrow(QueueError)
  })

  it('with a head outside the table, or more chains than fit, is refused', () => {
    const one = setUp()
    one.driver.offer(LAYOUT.size)
    expect(() => one.queue.pop()).toThrow(/descriptor 16 of a table of 16/)
    const two = setUp()
    two.driver.setAvailable(LAYOUT.size + 1)
    expect(() => two.queue.pop()).toThrow(/17 chains available in a queue of 16/)
  })
})

describe('a batch', () => {
  it('has as many chains as are wanted, which are given back at once, the others later, also where the rings wrap', () => {
    const { driver, queue } = setUp()
    for (const from of [0, 0xfffa]) {
      queue.state = { nextAvailable: from, nextUsed: from }
      driver.start(from)
      for (let i = 0; i < 12; i++) {
        driver.describe(i, 0x8000 + 0x100 * i, 10 + i, WRITE)
        driver.offer(i)
      }
      const batch = queue.batch(16)
      expect([queue.take(batch, 5), queue.take(batch, 5), batch.count]).toEqual([5, 0, 5])
      queue.give(batch, [1, 2, 3], 3)
      expect(driver.collect()).toEqual([
        { id: 0, length: 1 },
        { id: 1, length: 2 },
        { id: 2, length: 3 },
      ])
      expect([queue.take(batch, 100), batch.count, queue.waiting]).toEqual([7, 9, 0])
      queue.unpop(2)
      expect(queue.waiting).toBe(2)
      queue.give(batch, new Array(9).fill(7), 7)
      expect(driver.collect().map(({ id }) => id)).toEqual([3, 4, 5, 6, 7, 8, 9])
      expect(batch.count).toBe(2)
    }
  })

  it('is left for later where its chains have very many descriptors', () => {
    const memory = new GuestMemory([{ guestAddress: 0, size: 0x100000, chunks: [new Uint8Array(0x100000)] }])
    const { driver, queue } = setUp(all, 16, memory)
    driver.table(
      0x20000,
      Array.from({ length: 3000 }, (_, i) => [0x8000, 1, i < 2999 ? NEXT : 0, i + 1] as const),
    )
    driver.describe(0, 0x20000, 16 * 3000, INDIRECT)
    for (let i = 0; i < 5; i++) driver.offer(0)
    const batch = queue.batch(4)
    expect([queue.take(batch, 16), queue.take(batch, 16), queue.take(batch, 16)]).toEqual([2, 2, 1])
    expect([...batch.counts.subarray(0, 5)]).toEqual([5, 5, 5, 5, 5])
  })

  it.each([true, false])('that is given back is told to memory where that wants to know: %s', logsDirty => {
    const told = new Set<number>()
    const memory = new GuestMemory([
      {
        guestAddress: 0,
        size: MEMORY,
        chunks: [new Uint8Array(MEMORY)],
        logsDirty,
        markWritten(offset, length) {
          for (let i = 0; i < length; i++) told.add(offset + i)
        },
      },
    ])
    const { driver, queue } = setUp(all, 16, memory)
    const before = memory.read(0, MEMORY)
    driver.start(14)
    queue.state = { nextAvailable: 14, nextUsed: 14 }
    for (let i = 0; i < 4; i++) {
      driver.describe(i, 0x8000 + 0x100 * i, 0x100, WRITE)
      driver.offer(i)
    }
    before.set(memory.read(0, MEMORY))
    told.clear()
    const batch = queue.batch(16)
    queue.take(batch, 4)
    for (let i = 0; i < 4; i++) for (const part of batch.partsOf(i)) part.fill(0xee, 0, 0x80)
    queue.give(batch, [0x80, 0x80, 0x80, 0x80], 4)
    const changed = [...memory.read(0, MEMORY).keys()].filter(i => memory.read(i, 1)[0] !== before[i])
    expect(changed.length).toBeGreaterThan(4 * 0x80)
    const missed = changed.filter(i => !told.has(i))
    if (logsDirty) expect(missed).toEqual([])
    else expect([...told]).toEqual([])
  })
})

it.each([
  ['a size that is no power of two', { ...LAYOUT, size: 12 }],
  ['a size of 0', { ...LAYOUT, size: 0 }],
  ['a table that is not aligned', { ...LAYOUT, descriptors: 8 }],
  ['a driver area that is not aligned', { ...LAYOUT, driver: 0x1001 }],
  ['a device area that is not aligned', { ...LAYOUT, device: 0x2002 }],
  ['a device area outside memory', { ...LAYOUT, device: MEMORY - 4 }],
])('%s is refused', (_, layout) => {
  const { memory } = setUp()
  expect(() => new Queue(memory, layout, all)).toThrow(QueueError)
})

describe('notifications', () => {
  it('by flags', () => {
    const { driver, queue } = setUp(plain)
    driver.describe(0, 0x8000, 1, 0)
    driver.offer(0)
    queue.disableNotifications()
    expect(driver.notifies()).toBe(false)
    queue.push(queue.pop()!, 0)
    expect(queue.needsInterrupt()).toBe(true)
    expect(queue.needsInterrupt()).toBe(false)
    expect(queue.enableNotifications()).toBe(false)
    expect(driver.notifies()).toBe(true)
    driver.offer(0)
    // What came meanwhile is not lost.
    expect(queue.enableNotifications()).toBe(true)
    driver.noInterrupt(true)
    queue.push(queue.pop()!, 0)
    expect(queue.needsInterrupt()).toBe(false)
  })

  it('by index, also where the indices wrap', () => {
    fc.assert(
      fc.property(
        fc.nat(0xffff),
        fc.array(fc.record({ offered: fc.nat(LAYOUT.size), wait: fc.nat(2 * LAYOUT.size) }), { maxLength: 40 }),
        (from, rounds) => {
          const { driver, queue } = setUp(all)
          driver.describe(0, 0x8000, 1, 0)
          queue.state = { nextAvailable: from, nextUsed: from }
          driver.start(from)
          for (const { offered, wait } of rounds) {
            // The driver wants to know once so many more are used.
            const wantedAt = driver.wantInterruptAfter(wait)
            const before = driver.usedCount
            for (let i = 0; i < offered; i++) driver.offer(0)
            for (let chain = queue.pop(); chain; chain = queue.pop()) queue.push(chain, 0)
            const after = before + offered
            expect(queue.needsInterrupt()).toBe(before < wantedAt && wantedAt <= after)
            expect(driver.collect()).toHaveLength(offered)
            expect(queue.enableNotifications()).toBe(false)
            expect(driver.notifies()).toBe(true)
          }
          const moved = (from + driver.usedCount) & 0xffff
          expect(queue.state).toEqual({ nextAvailable: moved, nextUsed: moved })
        },
      ),
    )
  })
})

it('whatever lies in its memory, gives chains in memory or an error of the driver', { timeout: 120_000 }, () => {
  const seen = { chains: 0, errors: 0 }
  const memory = emptyMemory()
  for (let seed = 1; seed <= 100_000; seed++) {
    const { driver, queue } = setUp({ eventIndex: (seed & 1) !== 0, indirect: (seed & 2) !== 0 }, LAYOUT.size, memory)
    driver.scramble(seed)
    try {
      for (let chain = queue.pop(), i = 0; chain && i < 4; chain = queue.pop(), i++) {
        seen.chains++
        for (const { address, bytes } of [...chain.readable, ...chain.writable]) {
          if (!memory.contains(address, bytes.length)) expect.fail(`seed ${seed}: a buffer at ${address}`)
        }
        queue.push(chain, 0)
        queue.needsInterrupt()
        queue.enableNotifications()
      }
    } catch (error) {
      seen.errors++
      if (!(error instanceof QueueError)) throw new Error(`seed ${seed}`, { cause: error })
    }
  }
  // Both happen often.
  expect(seen.chains).toBeGreaterThan(10_000)
  expect(seen.errors).toBeGreaterThan(10_000)
})
