import { once } from 'node:events'
import { lstatSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex, Readable } from 'node:stream'
import { expect, it, onTestFinished, vi } from 'vitest'
import { OP, SHUTDOWN } from '../../../lib/devices/virtio/vsock/packet.js'
import { Vsock } from '../../../lib/machine/vsock.js'
import { VsockSocket } from '../../../lib/machine/vsock-socket.js'
import { CID, ops, VsockGuest } from '../devices/virtio/vsock-guest.js'

async function setUp() {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-vsock-'))
  const path = join(directory, 'v.sock')
  const vsock = new Vsock(CID, await VsockSocket.listen(path))
  const guest = new VsockGuest(vsock)
  vsock.attach(guest.device)
  onTestFinished(async () => {
    await guest.device.close()
    await rm(directory, { recursive: true })
  })
  const client = () => {
    const socket = connect({ path, allowHalfOpen: true })
    socket.on('error', () => {})
    onTestFinished(() => void socket.destroy())
    return socket
  }
  return { guest, vsock, path, client }
}

async function text(stream: Readable): Promise<string> {
  let all = ''
  for await (const chunk of stream) all += String(chunk)
  return all
}

it('connects who asks for a port of the guest, and passes on what comes after', async () => {
  const { guest, client, path } = await setUp()
  expect(lstatSync(path).mode & 0o777).toBe(0o600)
  const socket = client()
  socket.write('CONN')
  socket.end('ECT 1000\nsent early')
  const { srcPort } = await guest.until(OP.REQUEST)
  const ports = { guestPort: 1000, hostPort: srcPort }
  await guest.send(OP.RESPONSE, ports)
  expect((await guest.until(OP.RW)).payload).toBe('sent early')
  expect(await guest.until(OP.SHUTDOWN)).toMatchObject({ flags: SHUTDOWN.SEND })
  await guest.send(OP.RW, ports, { payload: 'answer' })
  await guest.send(OP.SHUTDOWN, ports, { flags: SHUTDOWN.BOTH })
  expect(await text(socket)).toBe(`OK ${srcPort}\nanswer`)
})

it('ends the connection of a client that the guest refuses, or that asks for nothing that there is', async () => {
  const { guest, client } = await setUp()
  const refused = client()
  refused.write('CONNECT 1000\n')
  const { srcPort } = await guest.until(OP.REQUEST)
  await guest.send(OP.RST, { guestPort: 1000, hostPort: srcPort })
  expect(await text(refused)).toBe('')
  for (const junk of [
    'GET / HTTP/1.1\r\n\r\n',
    'CONNECT\n',
    'CONNECT 4294967295\n',
    'CONNECT -1\n',
    '\n',
    'x'.repeat(1e5),
  ]) {
    const socket = client()
    socket.write(junk)
    expect(await text(socket).catch(() => '')).toBe('')
  }
  guest.parts.notify(0)
  expect(guest.received()).toEqual([])
})

it('turns away clients that wait without asking, and those who come then', { timeout: 60_000 }, async () => {
  const { client } = await setUp()
  const sockets = Array.from({ length: 64 }, client)
  await Promise.all(sockets.map(socket => once(socket, 'connect')))
  expect(await text(client()).catch(() => '')).toBe('')
  // The others have 10 s.
  const ended = once(sockets[0]!, 'end')
  sockets[0]!.resume()
  await ended
})

it('takes what the guest connects to a port to the socket of that port', async () => {
  const { guest, path } = await setUp()
  const ports = { guestPort: 1000, hostPort: 52 }
  await guest.send(OP.REQUEST, ports)
  await guest.until(OP.RST)
  const server = createServer({ allowHalfOpen: true }).listen(`${path}_52`)
  onTestFinished(() => void server.close())
  const accepted = once(server, 'connection') as Promise<[Socket]>
  await guest.send(OP.REQUEST, ports)
  const [socket] = await accepted
  await guest.until(OP.RESPONSE)
  await guest.send(OP.RW, ports, { payload: 'hello' })
  await guest.send(OP.SHUTDOWN, ports, { flags: SHUTDOWN.SEND })
  const ended = once(socket, 'end')
  const [hello] = (await once(socket, 'data')) as [Buffer]
  expect(String(hello)).toBe('hello')
  await ended
  socket.end('bye')
  expect((await guest.until(OP.RW)).payload).toBe('bye')
  // That it sends no more may be told first, or with that it is done.
  let { flags } = await guest.until(OP.SHUTDOWN)
  if (flags !== SHUTDOWN.BOTH) flags = (await guest.until(OP.SHUTDOWN)).flags
  expect(flags).toBe(SHUTDOWN.BOTH)
})

it('a client that is gone is a reset for the guest, and a reset of the guest the end for the client', async () => {
  const { guest, client, path } = await setUp()
  const gone = client()
  gone.write('CONNECT 1\n')
  const { srcPort } = await guest.until(OP.REQUEST)
  gone.destroy()
  await guest.send(OP.RESPONSE, { guestPort: 1, hostPort: srcPort })
  await guest.until(OP.RST)

  const server = createServer().listen(`${path}_7`)
  onTestFinished(() => void server.close())
  const accepted = once(server, 'connection') as Promise<[Socket]>
  await guest.send(OP.REQUEST, { guestPort: 1, hostPort: 7 })
  const [socket] = await accepted
  await guest.until(OP.RESPONSE)
  await guest.send(OP.RST, { guestPort: 1, hostPort: 7 })
  expect(await text(socket)).toBe('')
})

it('a slow client makes the guest wait', async () => {
  const { guest, path } = await setUp()
  const server = createServer(socket => socket.pause()).listen(`${path}_7`)
  onTestFinished(() => void server.close())
  const accepted = once(server, 'connection') as Promise<[Socket]>
  const ports = { guestPort: 1, hostPort: 7 }
  await guest.send(OP.REQUEST, ports)
  const [socket] = await accepted
  const { bufAlloc } = await guest.until(OP.RESPONSE)
  const payload = 'x'.repeat(0x3000)
  let [sent, forwarded] = [0, 0]
  for (let i = 0; i < 400 && sent + payload.length - forwarded <= bufAlloc; i++) {
    await guest.send(OP.RW, ports, { payload })
    sent += payload.length
    await guest.send(OP.CREDIT_REQUEST, ports)
    forwarded = (await guest.until(OP.CREDIT_UPDATE)).fwdCnt
  }
  expect(sent + payload.length - forwarded).toBeGreaterThan(bufAlloc)
  let read = 0
  socket.on('data', chunk => {
    read += chunk.length
  })
  socket.resume()
  await vi.waitFor(() => expect(read).toBe(sent), { timeout: 10_000 })
  socket.destroy()
})

it('a program has streams without sockets', async () => {
  const vsock = new Vsock(CID, undefined)
  const guest = new VsockGuest(vsock)
  vsock.attach(guest.device)
  const streams: Duplex[] = []
  const listener = vsock.listen(5, stream => void streams.push(stream))
  expect(() => vsock.listen(5, () => {})).toThrow(/somebody listens there/)
  expect(() => vsock.listen(2 ** 32 - 1, () => {})).toThrow(/it is no port/)
  await expect(vsock.connect(-1)).rejects.toThrow(/it is no port/)
  await guest.send(OP.REQUEST, { guestPort: 1, hostPort: 5 })
  await guest.send(OP.REQUEST, { guestPort: 1, hostPort: 6 })
  expect(ops(await guest.answers()).sort()).toEqual(['RESPONSE', 'RST'])
  expect(streams).toHaveLength(1)
  listener.close()
  await guest.send(OP.REQUEST, { guestPort: 2, hostPort: 5 })
  expect(ops(guest.received())).toEqual(['RST'])
  const closed = once(streams[0]!, 'error')
  await guest.device.close()
  expect(String((await closed)[0])).toMatch(/the machine has ended/)
})

it('a path that is in use, taken or too long is refused', async () => {
  const { path } = await setUp()
  await expect(VsockSocket.listen(path)).rejects.toThrow(/^vsock.path: .*another machine answers there/)
  await writeFile(`${path}.file`, '')
  await expect(VsockSocket.listen(`${path}.file`)).rejects.toThrow(/something else, not a socket/)
  await expect(VsockSocket.listen(`/tmp/${'x'.repeat(92)}`)).rejects.toThrow(/1 to 96 bytes/)
})
