import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as fc from 'fast-check'
import { expect, it, onTestFinished } from 'vitest'
import { ControlServer } from '../../../lib/cli/control.js'
import { ControlClient } from '../../../lib/cli/control-client.js'
import { parseRequest } from '../../../lib/cli/control-protocol.js'
import { Saver } from '../../../lib/cli/saver.js'
import type { MachineConfig, MachineState, SnapshotInfo, SnapshotOptions } from '../../../lib/index.js'

const INFO: SnapshotInfo = { id: 'an id', directory: '/snap', bytes: 4096, pages: 1 }

/** A machine of which only the state is there; a save of it waits for `finish`. */
class FakeMachine {
  state: MachineState = 'running'
  readonly config = { vcpus: 2, memory: 1 << 20 } as MachineConfig
  readonly calls: string[] = []
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
  const server = await ControlServer.listen(path, Promise.resolve({ machine, saver }))
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
