import { describe, expect, it } from 'vitest'
import { BlockDevice } from '../../../../lib/devices/virtio/block.js'
import { FEATURE, REGISTER, STATUS } from '../../../../lib/devices/virtio/registers.js'
import { SECTOR } from '../../../../lib/storage/block-storage.js'
import { plainMemory } from '../../memory/plain.js'
import { MemoryStorage } from '../../storage/memory-storage.js'
import { Driver, INDIRECT, LAYOUT, MEMORY, NEXT, WRITE } from './driver.js'
import { expectUnchanged, READY, Registers, writableRanges } from './driver-model.js'

const SECTORS = 64
const [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES] = [0, 1, 4, 8, 11, 13]
const [OK, IOERR, UNSUPP] = [0, 1, 2]
const HEADER = 0x8000
const DATA = 0x9000
const STATUS_BYTE = 0xf000

function setUp(options: { readonly?: boolean } = {}) {
  const memory = plainMemory([[0, MEMORY]])
  const storage = new MemoryStorage(SECTORS, options)
  for (let i = 0; i < storage.bytes.length; i++) storage.bytes[i] = i / SECTOR
  const errors: Error[] = []
  const device = new BlockDevice(storage, { serial: 'serial', onError: error => errors.push(error) })
  const registers = new Registers(memory, device)
  registers.transport.resume()
  registers.start([LAYOUT], FEATURE.VERSION_1 | FEATURE.INDIRECT_DESC)
  const driver = new Driver(memory, LAYOUT, { eventIndex: false, indirect: true })
  return { memory, storage, device, registers, driver, errors }
}

type SetUp = ReturnType<typeof setUp>

/** Makes one request of three buffers and gives its status once it is given back. */
async function request({ memory, driver, registers }: SetUp, type: number, sector: number, length: number) {
  const header = new DataView(new ArrayBuffer(16))
  header.setUint32(0, type, true)
  header.setBigUint64(8, BigInt(sector), true)
  memory.write(HEADER, new Uint8Array(header.buffer))
  memory.fill(STATUS_BYTE, 1, 0xee)
  const out = type === OUT || type === DISCARD || type === WRITE_ZEROES
  driver.describe(0, HEADER, 16, NEXT, length > 0 ? 1 : 2)
  driver.describe(1, DATA, length, out ? NEXT : NEXT | WRITE, 2)
  driver.describe(2, STATUS_BYTE, 1, WRITE)
  driver.offer(0)
  registers.set(REGISTER.QueueNotify, 0)
  const used = await collect(driver)
  expect(used).toEqual([{ id: 0, length: (out ? 0 : length) + 1 }])
  return memory.read(STATUS_BYTE, 1)[0]
}

/** Makes requests available that read the first sector. */
function offerReads(memory: SetUp['memory'], driver: Driver, count: number): void {
  for (let i = 0; i < count; i++) {
    memory.write(HEADER + 16 * i, new Uint8Array(16))
    driver.describe(3 * i, HEADER + 16 * i, 16, NEXT, 3 * i + 1)
    driver.describe(3 * i + 1, DATA + SECTOR * i, SECTOR, NEXT | WRITE, 3 * i + 2)
    driver.describe(3 * i + 2, STATUS_BYTE + i, 1, WRITE)
    driver.offer(3 * i)
  }
}

async function collect(driver: Driver, count = 1) {
  const used: { id: number; length: number }[] = []
  for (let turn = 0; used.length < count && turn < 100; turn++) {
    await new Promise(setImmediate)
    used.push(...driver.collect())
  }
  // The interrupt follows at the end of the turn.
  await new Promise(setImmediate)
  return used
}

function segment(memory: SetUp['memory'], sector: number, count: number, flags = 0): void {
  const bytes = new DataView(new ArrayBuffer(16))
  bytes.setBigUint64(0, BigInt(sector), true)
  bytes.setUint32(8, count, true)
  bytes.setUint32(12, flags, true)
  memory.write(DATA, new Uint8Array(bytes.buffer))
}

describe('a disk', () => {
  it('tells its size, its blocks and what it can do', () => {
    const { device } = setUp()
    const config = new DataView(device.config.buffer)
    expect(config.getBigUint64(0, true)).toBe(BigInt(SECTORS))
    expect(config.getUint32(20, true)).toBe(512)
    const bits = (of: BlockDevice) =>
      [...of.features.toString(2)].reverse().flatMap((bit, i) => (bit === '1' ? [i] : []))
    expect(bits(device)).toEqual([2, 6, 9, 13, 14])
    expect(bits(setUp({ readonly: true }).device)).toEqual([2, 5, 6, 9])
  })

  it('reads and writes its sectors, and raises an interrupt for it', async () => {
    const all = setUp()
    expect(await request(all, IN, 5, 2 * SECTOR)).toBe(OK)
    expect(all.registers.interrupts).toBe(1)
    const read = all.memory.read(DATA, 2 * SECTOR)
    expect(read.subarray(0, SECTOR).every(byte => byte === 5)).toBe(true)
    expect(read.subarray(SECTOR).every(byte => byte === 6)).toBe(true)
    all.memory.fill(DATA, SECTOR, 0xab)
    expect(await request(all, OUT, SECTORS - 1, SECTOR)).toBe(OK)
    expect(all.storage.bytes.subarray(-SECTOR).every(byte => byte === 0xab)).toBe(true)
    expect(await request(all, FLUSH, 0, 0)).toBe(OK)
    expect(all.storage.calls).toEqual(['read', 'write', 'flush'])
  })

  it('gives back what could be read at once in the same turn, with one interrupt for all', () => {
    const { memory, driver, registers, storage } = setUp()
    storage.now = true
    offerReads(memory, driver, 5)
    registers.set(REGISTER.QueueNotify, 0)
    expect(driver.collect()).toHaveLength(5)
    expect(registers.interrupts).toBe(1)
    expect(memory.read(STATUS_BYTE, 5)).toEqual(new Uint8Array(5).fill(OK))
    expect(storage.calls).toEqual(Array(5).fill('readNow'))
  })

  it('lets the event loop have its turn, also where the driver is as fast', async () => {
    const { memory, driver, registers, storage } = setUp()
    storage.now = true
    offerReads(memory, driver, 1)
    let reads = 0
    const { readNow } = storage
    storage.readNow = (...args) => {
      if (++reads < 100) driver.offer(0)
      return readNow.apply(storage, args)
    }
    registers.set(REGISTER.QueueNotify, 0)
    expect(reads).toBe(LAYOUT.size)
    for (let turn = 0; turn < 100 && reads < 100; turn++) await new Promise(setImmediate)
    expect(reads).toBe(100)
  })

  it('takes a request however its bytes are spread over buffers', async () => {
    const { memory, driver, registers, storage } = setUp()
    memory.write(HEADER, Uint8Array.of(OUT, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0))
    memory.fill(HEADER + 16, SECTOR, 0x77)
    driver.describe(0, 0xa000, 48, INDIRECT)
    driver.table(0xa000, [
      [HEADER, 7, NEXT, 1],
      [HEADER + 7, 16 + SECTOR - 7, NEXT, 2],
      [STATUS_BYTE, 1, WRITE, 0],
    ])
    driver.offer(0)
    registers.set(REGISTER.QueueNotify, 0)
    expect(await collect(driver)).toEqual([{ id: 0, length: 1 }])
    expect(memory.read(STATUS_BYTE, 1)[0]).toBe(OK)
    expect(storage.bytes.subarray(3 * SECTOR, 4 * SECTOR).every(byte => byte === 0x77)).toBe(true)
  })

  it('has a serial number', async () => {
    const all = setUp()
    expect(await request(all, GET_ID, 0, 20)).toBe(OK)
    expect(Buffer.from(all.memory.read(DATA, 20)).toString('latin1')).toBe(`serial${'\0'.repeat(14)}`)
  })

  it('discards and writes zeroes', async () => {
    const all = setUp()
    segment(all.memory, 8, 16)
    expect(await request(all, DISCARD, 0, 16)).toBe(OK)
    segment(all.memory, 32, 1, 1)
    expect(await request(all, WRITE_ZEROES, 0, 16)).toBe(OK)
    segment(all.memory, 33, 1)
    expect(await request(all, WRITE_ZEROES, 0, 16)).toBe(OK)
    expect(all.storage.calls).toEqual(['discard 4096+8192', 'zero 16384+512 true', 'zero 16896+512 false'])
  })

  it.each([
    ['a read beyond the end', IN, SECTORS, SECTOR, IOERR],
    ['a read across the end', IN, SECTORS - 1, 2 * SECTOR, IOERR],
    ['half a sector', IN, 0, SECTOR / 2, IOERR],
    ['a sector number that would wrap', OUT, 2 ** 53, SECTOR, IOERR],
    ['a request of no known type', 99, 0, SECTOR, UNSUPP],
    ['a discard of two segments', DISCARD, 0, 32, IOERR],
  ])('refuses %s', async (_, type, sector, length, status) => {
    const all = setUp()
    segment(all.memory, 0, 1)
    expect(await request(all, type, sector, length)).toBe(status)
    expect(all.storage.calls).toEqual([])
  })

  it.each([
    ['beyond the end', SECTORS - 1, 2, 0, IOERR],
    ['with flags that are none', 0, 1, 2, UNSUPP],
    ['of more than it says it takes', 0, 2 ** 32 - 1, 0, IOERR],
  ])('refuses to discard %s', async (_, sector, count, flags, status) => {
    const all = setUp()
    segment(all.memory, sector, count, flags)
    expect(await request(all, DISCARD, 0, 16)).toBe(status)
    expect(all.storage.calls).toEqual([])
  })

  it('that is only read refuses to be written', async () => {
    const all = setUp({ readonly: true })
    expect(await request(all, OUT, 0, SECTOR)).toBe(IOERR)
    segment(all.memory, 0, 1)
    expect(await request(all, DISCARD, 0, 16)).toBe(UNSUPP)
    expect(await request(all, IN, 0, SECTOR)).toBe(OK)
  })

  it('whose host fails gives an I/O error, and the host is told', async () => {
    const all = setUp()
    all.storage.failing = new Error('no space')
    expect(await request(all, OUT, 0, SECTOR)).toBe(IOERR)
    expect(all.errors.map(({ message }) => message)).toEqual(['no space'])
  })
})

it('gives back all that it works on before it is quiet, and nothing afterwards', async () => {
  const { memory, driver, registers } = setUp()
  offerReads(memory, driver, 5)
  registers.set(REGISTER.QueueNotify, 0)
  await registers.transport.pause()
  expect(driver.collect()).toHaveLength(5)
  expect(registers.interrupts).toBe(1)
  driver.offer(0)
  registers.set(REGISTER.QueueNotify, 0)
  for (let i = 0; i < 10; i++) await new Promise(setImmediate)
  expect(driver.collect()).toHaveLength(0)
  registers.transport.resume()
  expect(await collect(driver)).toHaveLength(1)
})

it('whatever the driver does, writes to its buffers only, and comes back by a reset', {
  timeout: 120_000,
}, async () => {
  const all = setUp()
  const { memory, registers, driver, storage } = all
  const bytes = memory.view(0, MEMORY)
  const before = new Uint8Array(MEMORY)
  const used = [[LAYOUT.device, 6 + 8 * LAYOUT.size] as const]
  const seen = { given: 0, broken: 0 }
  for (let seed = 1; seed <= 100_000; seed++) {
    await registers.set(REGISTER.Status, 0)
    driver.scramble(seed)
    storage.now = (seed & 32) !== 0
    // Headers that make sense are rare by chance.
    const header = HEADER + (seed % 8) * 16
    bytes.fill(0, header, header + 16)
    bytes[header] = [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99][seed % 7]!
    bytes[header + 8] = seed % (SECTORS + 2)
    if (seed % 3) {
      driver.describe(0, header, seed % 5 ? 16 : 15, NEXT, 1)
      driver.describe(1, DATA, (seed % 4) * (seed % 6 ? SECTOR : 16), NEXT | (seed & 8 ? WRITE : 0), seed % 11 ? 2 : 0)
      driver.describe(2, STATUS_BYTE, 1, WRITE)
      driver.start(0)
      driver.offer(seed % 17 ? 0 : 3)
    }
    registers.start(
      [LAYOUT],
      FEATURE.VERSION_1 | (seed & 1 ? FEATURE.INDIRECT_DESC : 0n) | (seed & 2 ? FEATURE.EVENT_IDX : 0n),
    )
    before.set(bytes)
    const writable = [...writableRanges(before, LAYOUT.descriptors, LAYOUT.size), ...writableRanges(before, 0xa000, 8)]
    registers.set(REGISTER.QueueNotify, seed % 13)
    registers.set(REGISTER.QueueNotify, 0)
    // In mid-flight: a pause, or a reset.
    if (seed & 16) {
      await registers.transport.pause()
      registers.transport.resume()
    } else await registers.set(REGISTER.Status, 0)
    if (registers.get(REGISTER.Status) & STATUS.DEVICE_NEEDS_RESET) seen.broken++
    seen.given += storage.calls.length
    storage.calls.length = 0
    expectUnchanged(bytes, before, [...writable, ...used], `seed ${seed}`)
  }
  expect(seen.given).toBeGreaterThan(10_000)
  expect(seen.broken).toBeGreaterThan(10_000)
  await registers.set(REGISTER.Status, 0)
  registers.start([LAYOUT])
  expect(registers.get(REGISTER.Status)).toBe(READY)
})
