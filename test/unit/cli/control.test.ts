import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import * as fc from 'fast-check'
import { describe, expect, it, onTestFinished } from 'vitest'
import { ControlServer } from '../../../lib/cli/control.js'
import { ControlClient } from '../../../lib/cli/control-client.js'
import { parseRequest } from '../../../lib/cli/control-protocol.js'
import { Saver } from '../../../lib/cli/saver.js'
import { GuestError } from '../../../lib/errors.js'
import type { MachineConfig, MachineState, SnapshotInfo, SnapshotOptions } from '../../../lib/index.js'
import { Console } from '../../../lib/machine/console.js'

const INFO: SnapshotInfo = { id: 'an id', directory: '/snap', bytes: 4096, pages: 1 }

/** A machine of which only the state is there; a save of it waits for `finish`. */
class FakeMachine {
  state: MachineState = 'running'
  readonly config = { vcpus: 2, memory: 1 << 20, kernel: '/boot/vmlinuz' } as MachineConfig
  readonly calls: string[] = []
  /** What was typed; while `reads` is false, the guest takes nothing. */
  typed = ''
  reads = true
  readonly console = new Console(bytes => {
    this.typed += Buffer.from(bytes).toString()
    return this.reads
  })
  finish: (error?: Error) => void = () => {}
  progress: (done: number, total: number) => void = () => {}

  async pause() {
    this.#become('paused', 'pause')
  }
  async resume() {
    this.#become('running', 'resume')
  }
  async stop() {
    this.#become('ended', 'stop')
  }
  async reset() {
    this.calls.push('reset')
  }
  async injectNmi(vcpu = 0) {
    if (vcpu > 1) throw new GuestError('there is no such vCPU')
    this.calls.push(`nmi ${vcpu}`)
  }
  powerButton() {
    this.calls.push('power button')
  }
  snapshot(directory: string, { differential, onProgress, signal }: SnapshotOptions = {}): Promise<SnapshotInfo> {
    this.calls.push(`snapshot ${directory}${differential ? ' differential' : ''}`)
    this.progress = onProgress!
    return new Promise((resolve, reject) => {
      this.finish = error => (error ? reject(error) : resolve(INFO))
      signal!.addEventListener('abort', () => reject(signal!.reason))
    })
  }
  #become(state: MachineState, call: string) {
    this.calls.push(call)
    this.state = state
  }
}

async function serve(machine = new FakeMachine()) {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-control-'))
  const path = join(directory, 'control')
  const saver = new Saver(machine)
  const server = await ControlServer.listen(
    { path, field: 'control', value: path },
    Promise.resolve({ machine, saver }),
  )
  onTestFinished(async () => {
    await server.close()
    await rm(directory, { recursive: true })
  })
  const client = async () => {
    const client = await ControlClient.connect(path)
    onTestFinished(() => client.close())
    return client
  }
  return { machine, saver, server, path, client }
}

const until = async (what: () => boolean) => {
  while (!what()) await new Promise(resolve => setTimeout(resolve, 1))
}

async function hear(socket: Socket): Promise<string> {
  let text = ''
  for await (const chunk of socket) text += chunk
  return text
}

it('one client watches and cancels what another one has asked for', async () => {
  const { machine, client } = await serve()
  const [first, second] = [await client(), await client()]
  const saved = first.ask({ do: 'snapshot', directory: '/a', differential: true })
  await until(() => machine.calls.length > 0)
  machine.progress(3, 8)
  const saving = { directory: '/a', done: 3, total: 8 }
  expect(await second.ask({ do: 'status' })).toEqual({
    ok: true,
    state: 'running',
    pid: process.pid,
    vcpus: 2,
    memory: 1 << 20,
    kernel: '/boot/vmlinuz',
    uptime: expect.any(Number),
    saving,
  })
  await expect(second.ask({ do: 'snapshot', directory: '/b' })).rejects.toThrow(/a snapshot to \/a is being made/)
  const cancelled = expect(saved).rejects.toThrow('the save was cancelled')
  expect(await second.ask({ do: 'cancel' })).toEqual({ ok: true, state: 'running' })
  await cancelled
  await expect(second.ask({ do: 'cancel' })).rejects.toThrow('no snapshot is being made')
  const again = first.ask({ do: 'snapshot', directory: '/c' })
  await until(() => machine.calls.length > 1)
  machine.finish()
  expect(await again).toEqual({ ok: true, ...INFO, state: 'running' })
  expect(machine.calls).toEqual(['snapshot /a differential', 'snapshot /c'])
})

it('a machine that is to stop with its snapshot does not run in between, and goes on if that fails', async () => {
  const machine = new FakeMachine()
  const saver = new Saver(machine)
  const failing = saver.save({ directory: '/a', stop: true })
  await until(() => machine.calls.length > 1)
  machine.finish(new Error('full'))
  await expect(failing).rejects.toThrow('full')
  const saving = saver.save({ directory: '/a', stop: true })
  await until(() => machine.calls.length > 4)
  machine.finish()
  await saving
  expect(machine.calls).toEqual(['pause', 'snapshot /a', 'resume', 'pause', 'snapshot /a', 'stop'])
  expect(saver.current).toBe(undefined)
})

it('answers what was asked before it closes, and lets idle clients go', async () => {
  const { server, machine, path, client } = await serve()
  const idle = connect(path)
  await once(idle, 'connect')
  const busy = (await client()).ask({ do: 'snapshot', directory: '/a' })
  await until(() => machine.calls.length > 0)
  const begin = performance.now()
  const closed = server.close()
  machine.finish()
  expect(await busy).toMatchObject({ ok: true })
  expect(await hear(idle)).toBe('')
  await closed
  // Nobody had to be thrown out.
  expect(performance.now() - begin).toBeLessThan(900)
  await expect(ControlClient.connect(path)).rejects.toThrow('there is no such socket')
})

it('a client that is done asking still gets its answers', async () => {
  const { path } = await serve()
  const socket = connect({ path, allowHalfOpen: true })
  socket.end('{"do":"pause"}\n{"do":"status"}')
  const lines = (await hear(socket)).trim().split('\n')
  expect(lines.map(line => JSON.parse(line))).toMatchObject([{ state: 'paused' }, { state: 'paused' }])
})

it('too many clients are turned away, and others take their place', async () => {
  const { path } = await serve()
  const sockets = Array.from({ length: 33 }, () => connect(path))
  const last = sockets.pop()!
  await Promise.all(sockets.map(socket => once(socket, 'connect')))
  expect(JSON.parse(await hear(last))).toEqual({ ok: false, reason: 'there are 32 clients already' })
  sockets[0]!.destroy()
  await new Promise(resolve => setTimeout(resolve, 50))
  const next = await ControlClient.connect(path)
  expect(await next.ask({ do: 'status' })).toMatchObject({ ok: true })
  next.close()
  for (const socket of sockets) socket.destroy()
})

it('resets, injects an NMI and presses the power button', async () => {
  const { machine, client } = await serve()
  const one = await client()
  for (const request of [{ do: 'reset' }, { do: 'nmi' }, { do: 'nmi', vcpu: 1 }, { do: 'power-off' }] as const) {
    expect(await one.ask(request)).toEqual({ ok: true, state: 'running' })
  }
  await expect(one.ask({ do: 'nmi', vcpu: 2 })).rejects.toThrow('there is no such vCPU')
  expect(machine.calls).toEqual(['reset', 'nmi 0', 'nmi 1', 'power button'])
})

describe('the console', () => {
  const text = (stream: Readable) => {
    let all = ''
    stream.on('data', chunk => {
      all += chunk
    })
    return () => all
  }

  it('shows the last output and all that follows to everybody attached, and takes what they type', async () => {
    const { machine, client, server } = await serve()
    machine.console.output(Buffer.from('before\n'))
    const [one, two] = [await (await client()).console(), await (await client()).console()]
    const [first, second] = [text(one), text(two)]
    await until(() => first() === 'before\n' && second() === 'before\n')
    machine.console.output(Buffer.from('after\n'))
    one.write('1')
    two.write('2')
    await until(() => machine.typed.length === 2)
    expect(first()).toBe('before\nafter\n')
    one.destroy()
    machine.console.output(Buffer.from('more\n'))
    await until(() => second() === 'before\nafter\nmore\n')
    const ended = once(two, 'end')
    await server.close()
    await ended
  })

  it('what comes in the same piece as the request is typed', async () => {
    const { path, machine } = await serve()
    const socket = connect({ path, allowHalfOpen: true })
    socket.end('{"do":"console"}\n{"do":"stop"}\n')
    expect(await hear(socket)).toBe('{"ok":true,"state":"running"}\n')
    expect([machine.typed, machine.calls]).toEqual(['{"do":"stop"}\n', []])
  })

  it('a client that does not read loses output and is told, and holds nothing up', async () => {
    const { path, machine } = await serve()
    const socket = connect(path)
    socket.write('{"do":"console"}\n')
    await once(socket, 'readable')
    const piece = Buffer.alloc(1 << 16, 'x')
    const before = process.memoryUsage().external
    for (let i = 0; i < 1024; i++) machine.console.output(piece.subarray())
    // The console itself keeps 16 MiB for a reader; of the rest of the 64 MiB, this client's share is bounded.
    expect(process.memoryUsage().external - before).toBeLessThan(8 << 20)
    let all = ''
    socket.on('data', chunk => {
      all += chunk
    })
    await until(() => all.includes('bytes dropped]'))
    machine.console.output(Buffer.from('at last'))
    await until(() => all.endsWith('at last'))
    const [, dropped] = /\[(\d+) bytes dropped\]/.exec(all)!
    expect([...all].filter(letter => letter === 'x').length + Number(dropped)).toBe(1024 << 16)
    socket.destroy()
  })

  it('what the guest does not read waits within bounds, and those that wait for it give way', async () => {
    const { machine, client, path } = await serve()
    machine.reads = false
    const sockets = Array.from({ length: 32 }, () => connect(path))
    for (const socket of sockets) {
      socket.on('error', () => {})
      socket.write(`{"do":"console"}\n${'y'.repeat(300_000)}`)
    }
    await until(() => machine.console.writableLength > 0)
    await new Promise(resolve => setTimeout(resolve, 100))
    expect(machine.console.writableLength + machine.typed.length).toBeLessThan(32 * 4096 + 65_536)
    // All places are taken, by clients of which nobody knows whether they are still there.
    expect(await (await client()).ask({ do: 'status' })).toMatchObject({ ok: true })
    machine.reads = true
    machine.console.drain()
    await until(() => machine.typed.length > 1_000_000)
    for (const socket of sockets) socket.destroy()
  })
})

it('hostile clients: lines in pieces, floods, and those that go in the middle of an answer', async () => {
  const { path, client } = await serve()
  const slow = connect({ path, allowHalfOpen: true })
  for (const letter of '{"do":"status"}\n') {
    slow.write(letter)
    await new Promise(resolve => setImmediate(resolve))
  }
  slow.end()
  expect(JSON.parse(await hear(slow))).toMatchObject({ ok: true })
  for (let i = 0; i < 100; i++) {
    const socket = connect(path)
    socket.on('error', () => {})
    socket.write('{"do":"status"}\n'.repeat(50))
    if (i % 2 === 0) await once(socket, 'connect')
    socket.destroy()
  }
  // It asks on and on and reads no answer: then it is asked no more.
  const flood = connect(path)
  flood.on('error', () => {})
  let taken = 0
  for (let i = 0; i < 200; i++) flood.write('{"do":"status"}\n'.repeat(1000), () => taken++)
  await new Promise(resolve => setTimeout(resolve, 200))
  expect(taken).toBeLessThan(200)
  expect(await (await client()).ask({ do: 'status' })).toMatchObject({ ok: true })
  flood.destroy()
})

it('reads requests, and refuses everything else with a reason', () => {
  const read = (text: string) => parseRequest(Buffer.from(text))
  expect(read('{"do":"snapshot","directory":"a","differential":true,"stop":false}')).toEqual({
    do: 'snapshot',
    directory: 'a',
    differential: true,
    stop: false,
  })
  expect(() => read('{"do":"snapshot","directory":"a","diferential":true}')).toThrow(
    '"diferential": snapshot has no such',
  )
  expect(() => read('{"do":"snapshot","directory":"a","__proto__":1}')).toThrow('"__proto__": snapshot has no such')
  expect(() => read('{"do":"snapshot","directory":"a","toString":"string"}')).toThrow('"toString"')
  expect(read('{"do":"nmi","vcpu":3}')).toEqual({ do: 'nmi', vcpu: 3 })
  expect(() => read('{"do":"nmi","vcpu":"3"}')).toThrow('vcpu: "3": a number is needed')
  expect(() => read('{"do":"toString"}')).toThrow('do: "toString": it is none of')
  expect(() => read('{"do":"reset","toString":"string"}')).toThrow('"toString": reset has no such')
  expect(() => read('{}')).toThrow('do: missing: it is none of')
  const outcome = (bytes: Uint8Array) => {
    try {
      return parseRequest(bytes).do
    } catch (error) {
      return error
    }
  }
  const hostile = fc.oneof(
    fc.uint8Array(),
    fc.json().map(text => Buffer.from(text)),
    fc.record({ do: fc.string(), directory: fc.anything() }).map(value => Buffer.from(JSON.stringify(value))),
  )
  fc.assert(fc.property(hostile, bytes => typeof outcome(bytes) === 'string' || outcome(bytes) instanceof TypeError))
})
