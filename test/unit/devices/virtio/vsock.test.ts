import { once } from 'node:events'
import { expect, it } from 'vitest'
import { REGISTER, STATUS } from '../../../../lib/devices/virtio/registers.js'
import { BUFFER, type VsockConnection } from '../../../../lib/devices/virtio/vsock/connection.js'
import { encodeHeader, HOST_CID, OP, SHUTDOWN } from '../../../../lib/devices/virtio/vsock/packet.js'
import { CONNECTIONS_MAX, VirtioVsock } from '../../../../lib/devices/virtio/vsock/vsock.js'
import type { Driver } from './driver.js'
import { beHostile, reread, settle } from './queues.js'
import { CID, ops, VsockGuest } from './vsock-guest.js'

const ports = { guestPort: 1000, hostPort: 7 }

function setUp() {
  const asked: VsockConnection[] = []
  const guest = new VsockGuest({ request: connection => void asked.push(connection), close: async () => {} })
  return { guest, asked }
}

/** A connection that the guest asked for and has. */
async function connected() {
  const { guest, asked } = setUp()
  await guest.send(OP.REQUEST, ports)
  const [connection] = asked
  connection!.accept()
  expect(ops(await guest.answers(1))).toEqual(['RESPONSE'])
  return { guest, connection: connection! }
}

/** A connection that the host asked for and has. */
async function hostConnected() {
  const { guest } = setUp()
  const connecting = guest.device.connect(1000)
  const [request] = await guest.answers(1)
  const own = { guestPort: 1000, hostPort: request!.srcPort }
  await guest.send(OP.RESPONSE, own)
  return { guest, own, connection: await connecting }
}

it('has the context id of the guest in its configuration', () => {
  const data = new Uint8Array(8)
  setUp().guest.parts.registers.transport.read(REGISTER.Config, data)
  expect([...data]).toEqual([CID, 0, 0, 0, 0, 0, 0, 0])
})

it('passes on what the guest sends, and what it is to get', async () => {
  const { guest, connection } = await connected()
  expect(connection).toMatchObject(ports)
  const data = once(connection, 'data')
  await guest.send(OP.RW, ports, { payload: 'hello' })
  expect(String((await data)[0])).toBe('hello')
  connection.write('back')
  const [answer] = await guest.answers(1)
  expect(answer).toMatchObject({
    op: OP.RW,
    payload: 'back',
    length: 4,
    srcCid: HOST_CID,
    dstCid: 3n,
    srcPort: 7,
    dstPort: 1000,
  })
  expect(answer).toMatchObject({ bufAlloc: BUFFER, fwdCnt: 5 })
})

it('connects to a port of the guest, from a port of its own', async () => {
  const { guest } = setUp()
  const connecting = guest.device.connect(1000)
  const second = expect(guest.device.connect(1000)).rejects.toThrow(
    'vsock: the guest refused a connection to its port 1000',
  )
  const requests = await guest.answers(2)
  expect(requests).toMatchObject([
    { op: OP.REQUEST, dstPort: 1000, srcPort: 2 ** 30, bufAlloc: BUFFER },
    { op: OP.REQUEST, dstPort: 1000, srcPort: 2 ** 30 + 1 },
  ])
  await guest.send(OP.RESPONSE, { guestPort: 1000, hostPort: 2 ** 30 })
  await guest.send(OP.RST, { guestPort: 1000, hostPort: 2 ** 30 + 1 })
  expect((await connecting).hostPort).toBe(2 ** 30)
  await second
})

it('gives up a connection that it asked for, with RST where the guest has heard of it', async () => {
  const { guest } = setUp()
  const early = new AbortController()
  const unheard = guest.device.connect(1000, early.signal)
  early.abort()
  await expect(unheard).rejects.toThrow('aborted')
  const late = new AbortController()
  const heard = guest.device.connect(1001, late.signal)
  expect(await guest.answers(1)).toMatchObject([{ op: OP.REQUEST, dstPort: 1001 }])
  late.abort()
  await expect(heard).rejects.toThrow('aborted')
  expect(await guest.answers(4)).toMatchObject([{ op: OP.RST, dstPort: 1001 }])
})

it('refuses where the host does, or nobody is there', async () => {
  const { guest, asked } = setUp()
  await guest.send(OP.REQUEST, ports)
  asked[0]!.destroy()
  expect(ops(await guest.answers())).toEqual(['RST'])
  await guest.send(OP.RW, ports, { payload: 'x' })
  await guest.send(OP.RST, ports)
  await guest.send(OP.REQUEST, ports, { type: 2 })
  // Not its own address, or not the host's: nobody could answer.
  await guest.send(OP.REQUEST, ports, { srcCid: 4n })
  await guest.send(OP.REQUEST, ports, { dstCid: 5n })
  expect(ops(guest.received())).toEqual(['RST', 'RST'])
  expect(asked).toHaveLength(1)
})

it('sends no more than the guest has room for, and asks it to tell', async () => {
  const { guest, connection } = await connected()
  await guest.offerRoom(16)
  let written = false
  connection.write('x'.repeat(0x1800), () => {
    written = true
  })
  await settle()
  const first = guest.received()
  expect(first.filter(({ op }) => op === OP.RW).reduce((sum, { length }) => sum + length, 0)).toBe(0x1000)
  expect(ops(first)).toContain('CREDIT_REQUEST')
  expect(written).toBe(false)
  guest.fwdCnt = 0x1000
  await guest.send(OP.CREDIT_UPDATE, ports)
  const rest = [...guest.received(), ...(await guest.answers())]
  expect(rest.filter(({ op }) => op === OP.RW).reduce((sum, { length }) => sum + length, 0)).toBe(0x800)
  expect(written).toBe(true)
})

it('tells the guest what room it has, and resets it where it sends more', async () => {
  const { guest, connection } = await connected()
  const chunk = 'x'.repeat(0x3000)
  let sent = 0
  for (; sent + chunk.length <= BUFFER; sent += chunk.length) await guest.send(OP.RW, ports, { payload: chunk })
  // Nobody reads yet: it has credit for the rest only.
  await guest.send(OP.CREDIT_REQUEST, ports)
  expect(await guest.answers(1)).toMatchObject([{ op: OP.CREDIT_UPDATE, bufAlloc: BUFFER, fwdCnt: 0 }])
  connection.resume()
  await settle()
  expect((await guest.answers(1))[0]).toMatchObject({ op: OP.CREDIT_UPDATE })
  await guest.send(OP.CREDIT_REQUEST, ports)
  expect(
    guest
      .received()
      .concat(await guest.answers(4))
      .at(-1),
  ).toMatchObject({ op: OP.CREDIT_UPDATE, fwdCnt: sent })
  connection.pause()
  await settle()
  const closed = new Promise(resolve => connection.once('close', resolve))
  // One may have gone to who reads already.
  for (let i = 0; i <= BUFFER / chunk.length + 1; i++) await guest.send(OP.RW, ports, { payload: chunk })
  await closed
  expect(ops([...guest.received(), ...(await guest.answers())])).toContain('RST')
})

it('many small packets that nobody reads cost not many times their bytes', async () => {
  const { guest, connection } = await connected()
  for (let i = 0; i < 300; i++) await guest.send(OP.RW, ports, { payload: 'ab' })
  const chunks: Buffer[] = []
  connection.on('data', chunk => chunks.push(chunk))
  await settle()
  expect(Buffer.concat(chunks).toString()).toBe('ab'.repeat(300))
  expect(chunks).toHaveLength(1)
})

it('ends one way and then the other', async () => {
  const { guest, own, connection } = await hostConnected()
  connection.end('last')
  expect(await guest.answers(2)).toMatchObject([
    { op: OP.RW, payload: 'last' },
    { op: OP.SHUTDOWN, flags: SHUTDOWN.SEND },
  ])
  await guest.send(OP.RW, own, { payload: 'answer' })
  await guest.send(OP.SHUTDOWN, own, { flags: SHUTDOWN.SEND })
  let text = ''
  for await (const chunk of connection) text += chunk
  expect(text).toBe('answer')
  // Both have ended: that is told, and answered with RST (5.10.6.5).
  expect(await guest.answers(2)).toMatchObject([{ op: OP.SHUTDOWN, flags: SHUTDOWN.BOTH }])
  await guest.send(OP.RST, own)
  await guest.send(OP.RW, own, { payload: 'x' })
  expect(ops([...guest.received(), ...(await guest.answers(1))])).toEqual(['RST'])
})

it('answers a guest that closes, of which all can still be read', async () => {
  const { guest, connection } = await connected()
  await guest.send(OP.RW, ports, { payload: 'rest' })
  await guest.send(OP.SHUTDOWN, ports, { flags: SHUTDOWN.BOTH })
  expect(ops(await guest.answers(4))).toEqual(['RST'])
  let text = ''
  for await (const chunk of connection) text += chunk
  expect(text).toBe('rest')
  expect(connection.destroyed).toBe(true)
  connection.write('x')
  await settle()
  expect(guest.received()).toEqual([])
})

it('a guest that does not read any more ends what is written', async () => {
  const { guest, connection } = await connected()
  await guest.send(OP.SHUTDOWN, ports, { flags: SHUTDOWN.RECEIVE })
  const failed = once(connection, 'error')
  connection.write('x')
  expect((await failed)[0]).toMatchObject({ code: 'EPIPE' })
  expect(ops(await guest.answers())).toEqual(['RST'])
})

it('a reset of the guest ends a connection, one that makes no sense too', async () => {
  for (const [op, code] of [
    [OP.RST, 'ECONNRESET'],
    [OP.RESPONSE, undefined],
    [OP.REQUEST, undefined],
    [99, undefined],
  ] as const) {
    const { guest, connection } = await connected()
    const failed = once(connection, 'error')
    await guest.send(op, ports)
    const [error] = await failed
    expect((error as { code?: string }).code).toBe(code)
    expect(ops(await guest.answers())).toEqual(op === OP.RST ? [] : ['RST'])
  }
})

it('takes turns with its connections', async () => {
  const { guest, asked } = setUp()
  for (const hostPort of [1, 2]) await guest.send(OP.REQUEST, { guestPort: 1000, hostPort })
  for (const connection of asked) connection.accept()
  await guest.answers(2)
  for (const connection of asked) connection.write('x'.repeat(0x800))
  const sent = await guest.answers(4)
  expect(sent.map(({ srcPort }) => srcPort)).toEqual([1, 2, 1, 2])
})

it('lets the guest wait with its packets while it does not take the answers', async () => {
  const { guest } = setUp()
  let taken = 0
  for (let i = 0; i < 300; i++) {
    await guest.send(OP.RW, { guestPort: i, hostPort: 7 })
    taken += guest.taken()
    if (taken <= i) break
  }
  expect(taken).toBe(256)
  await guest.offerRoom(4)
  expect(guest.taken()).toBe(1)
}, 60_000)

it('has so many connections and no more, of either side', async () => {
  const { guest, asked } = setUp()
  for (let i = 0; i < CONNECTIONS_MAX; i++) await guest.send(OP.REQUEST, { guestPort: i, hostPort: 7 })
  expect(asked).toHaveLength(CONNECTIONS_MAX)
  await guest.send(OP.REQUEST, { guestPort: 9999, hostPort: 7 })
  expect(await guest.answers()).toMatchObject([{ op: OP.RST, dstPort: 9999 }])
  await expect(guest.device.connect(1)).rejects.toThrow('vsock: there are 256 connections')
  asked[0]!.destroy()
  await settle()
  void guest.device.connect(1).catch(() => {})
  await settle()
  expect(ops(guest.received())).toEqual(['RST', 'REQUEST'])
}, 60_000)

it('does nothing while it is quiet, and goes on with its connections', async () => {
  const { guest, connection } = await connected()
  await guest.parts.registers.transport.pause()
  connection.write('later')
  expect(await guest.answers(2)).toEqual([])
  guest.parts.registers.transport.resume()
  await settle()
  expect(guest.received()).toMatchObject([{ payload: 'later' }])
  await expect(new VirtioVsock(CID, { request() {}, close: async () => {} }).connect(1)).rejects.toThrow('no driver')
})

it('who goes on from a saved state is told that connections are gone; who stays keeps them', async () => {
  const { guest, asked } = setUp()
  for (const guestPort of [1, 2]) await guest.send(OP.REQUEST, { guestPort, hostPort: 7 })
  asked[0]!.accept()
  // The other one is not answered yet: it is in flight.
  expect(ops(await guest.answers(1))).toEqual(['RESPONSE'])
  await guest.parts.registers.transport.pause()
  const state = reread(guest.parts.registers.transport.saveState())

  const other = setUp()
  await other.guest.parts.registers.transport.pause()
  other.guest.parts.memory.write(0, guest.parts.memory.read(0, 0x10000))
  other.guest.parts.registers.transport.loadState(state)
  other.guest.parts.registers.transport.resume()
  // What the other machine's driver has seen already.
  other.guest.received()
  await other.guest.offerEvents()
  expect(other.guest.events()).toEqual([4])
  const resets = await other.guest.answers(4)
  expect(resets).toMatchObject([
    { op: OP.RST, dstPort: 1 },
    { op: OP.RST, dstPort: 2 },
  ])

  guest.parts.registers.transport.resume()
  asked[1]!.accept()
  expect(await guest.answers(1)).toMatchObject([{ op: OP.RESPONSE, dstPort: 2 }])
  await guest.offerEvents()
  expect(guest.events()).toEqual([])
  // Back to that moment.
  const closed = new Promise(resolve => asked[0]!.once('close', resolve))
  await guest.parts.registers.transport.pause()
  guest.parts.registers.transport.loadState(state)
  await closed
  expect(asked.every(connection => connection.destroyed)).toBe(true)
})

it('a reset of the device ends all connections', async () => {
  const { guest, connection } = await connected()
  const failed = once(connection, 'error')
  await guest.parts.registers.set(REGISTER.Status, 0)
  expect((await failed)[0]).toMatchObject({ message: expect.stringMatching(/has reset the device/) })
})

it('a saved state that is none is refused', () => {
  const { device } = setUp().guest
  const wrong = [null, {}, { resetDue: 1 }, { resetDue: 2, resets: [] }, { resetDue: 0, resets: [{ guestPort: 1 }] }]
  for (const state of wrong) expect(() => device.loadState(state)).toThrow(TypeError)
})

it('asks for a reset where a packet is cut short, or its payload is', async () => {
  for (const length of [1, 43, 44]) {
    const { guest } = setUp()
    const header = { srcCid: 3n, dstCid: 2n, srcPort: 1, dstPort: 2, length: 1, type: 1, op: OP.RW, flags: 0 }
    guest.parts.memory.write(0x8000, encodeHeader({ ...header, bufAlloc: 0, fwdCnt: 0 }))
    guest.parts.drivers[1]!.describe(0, 0x8000, length, 0)
    guest.parts.drivers[1]!.offer(0)
    guest.parts.notify(1)
    expect(guest.parts.registers.get(REGISTER.Status) & STATUS.DEVICE_NEEDS_RESET).toBeTruthy()
  }
})

it('100,000 hostile drivers: writes to their buffers or asks for a reset', { timeout: 120_000 }, async () => {
  const open: VsockConnection[] = []
  const request = (connection: VsockConnection) => {
    open.push(connection)
    if (connection.hostPort % 3 === 0) connection.destroy()
    else connection.accept()
    if (connection.hostPort % 2) connection.resume()
  }
  const device = new VirtioVsock(CID, { request, close: async () => {} })
  const prepare = (seed: number, [receive, transmit]: readonly Driver[], bytes: Uint8Array) => {
    for (let i = 0; i < 3; i++) {
      const at = 0x8000 + 0x400 * i
      const absurd = (seed >> i) % 5 === 0
      const header = {
        ...{ srcCid: 3n, dstCid: 2n, srcPort: seed % 3, dstPort: seed % 4, type: absurd ? seed & 0xffff : 1 },
        ...{
          op: i === 0 ? OP.REQUEST : (seed >> i) % 9,
          length: absurd ? seed * 9973 : (seed * 7) % 0x100,
          flags: seed & 3,
        },
        ...{ bufAlloc: (seed >> 3) % 4 ? 0x1000 : seed * 65537, fwdCnt: (seed >> 4) % 4 ? 0 : seed * 31 },
      }
      bytes.set(encodeHeader(header), at)
      if (seed % 4 === 0) continue
      transmit!.describe(i, at, 44 + ((seed * 7) % 0x100), 0)
      transmit!.offer(i)
      receive!.describe(i, 0xd000 + 0x200 * i, 44 + (seed % 0x100), 2)
      receive!.offer(i)
    }
  }
  const disturb = (seed: number) => {
    for (const connection of open.splice(0)) {
      connection.write('x'.repeat(seed % 0x300))
      if (seed % 5 === 0) connection.end()
      if (seed % 7 === 0) connection.destroy()
    }
    if (seed % 11 === 0) void device.connect(seed).catch(() => {})
  }
  const seen = await beHostile(device, { cases: 100_000, prepare, disturb })
  expect(seen.given).toBeGreaterThan(10_000)
  expect(seen.broken).toBeGreaterThan(10_000)
})
