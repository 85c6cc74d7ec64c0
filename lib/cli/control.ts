import { randomBytes } from 'node:crypto'
import { lstatSync, renameSync, unlinkSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { ConfigError, type Machine } from '../index.js'
import { linesOf, writeLine } from './control-lines.js'
import { type ControlAnswer, type ControlRequest, MAX_SOCKET_PATH, parseRequest } from './control-protocol.js'
import { describeFailure } from './output.js'
import type { Saver } from './saver.js'

/** More clients at a time are turned away. */
const MAX_CLIENTS = 32
/** Milliseconds that a client has to take its last answer. */
const LAST_ANSWER = 1000

/** What requests are about. */
export interface Controlled {
  readonly machine: Pick<Machine, 'state' | 'config' | 'pause' | 'resume' | 'stop'>
  readonly saver: Saver
}

/** `--control`: a Unix socket, this user's only, through which other processes steer a machine. */
export class ControlServer {
  readonly path: string
  readonly #server: Server
  /** Requests wait for it. */
  readonly #controlled: Promise<Controlled>
  readonly #clients = new Set<{ socket: Socket; busy: boolean }>()
  #closing = false

  /**
   * Listens on `path`. A socket that nobody answers on any more is replaced.
   * @throws {ConfigError} another machine answers there, or no socket can be made there
   */
  static async listen(path: string, controlled: Promise<Controlled>): Promise<ControlServer> {
    if (path === '' || Buffer.byteLength(path) > MAX_SOCKET_PATH || path.includes('\0')) {
      const problem = `a socket's path has 1 to ${MAX_SOCKET_PATH} bytes`
      throw new ConfigError('control', path, problem, 'give a shorter path, such as a relative one')
    }
    await removeStale(path)
    const server = createServer({ allowHalfOpen: true })
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error: NodeJS.ErrnoException) => reject(refusal(path, error)))
      // The mode counts from the first moment on; the socket is bound within `listen`.
      const mask = process.umask(0o177)
      try {
        server.listen(path, resolve)
      } finally {
        process.umask(mask)
      }
    })
    return new ControlServer(path, server, controlled)
  }

  private constructor(path: string, server: Server, controlled: Promise<Controlled>) {
    this.path = path
    this.#server = server
    this.#controlled = controlled
    // Who waits for it is told; if nobody does, it is no failure of ours.
    controlled.catch(() => {})
    server.removeAllListeners('error')
    server.on('error', () => {})
    server.on('connection', socket => void this.#serve(socket))
    process.on('exit', this.#remove)
  }

  /** Answers what is being done, lets the clients go and removes the socket. */
  async close(): Promise<void> {
    this.#closing = true
    const closed = new Promise<void>(resolve => this.#server.close(() => resolve()))
    this.#server.unref()
    for (const { socket, busy } of this.#clients) if (!busy) socket.end()
    const late = setTimeout(() => {
      for (const { socket } of this.#clients) socket.destroy()
    }, LAST_ANSWER)
    await closed
    clearTimeout(late)
    process.off('exit', this.#remove)
  }

  /** `Server.close` does this too; it is not called where the process just exits. */
  readonly #remove = (): void => {
    try {
      unlinkSync(this.path)
    } catch {
      // It is gone already.
    }
  }

  async #serve(socket: Socket): Promise<void> {
    // A client that is gone is no failure of ours.
    socket.on('error', () => socket.destroy())
    if (this.#clients.size >= MAX_CLIENTS) {
      await writeLine(socket, { ok: false, reason: `there are ${MAX_CLIENTS} clients already` })
      socket.destroySoon()
      return
    }
    const client = { socket, busy: false }
    this.#clients.add(client)
    socket.on('close', () => this.#clients.delete(client))
    try {
      for await (const line of linesOf(socket)) {
        client.busy = true
        await writeLine(socket, await this.#answer(line))
        client.busy = false
        if (this.#closing) break
      }
    } catch (error) {
      await writeLine(socket, { ok: false, reason: (error as Error).message })
    }
    socket.destroySoon()
  }

  async #answer(line: Uint8Array): Promise<ControlAnswer> {
    try {
      return await act(parseRequest(line), await this.#controlled)
    } catch (error) {
      return { ok: false, reason: error instanceof TypeError ? error.message : describeFailure(error).reason }
    }
  }
}

async function act(request: ControlRequest, { machine, saver }: Controlled): Promise<ControlAnswer> {
  switch (request.do) {
    case 'status': {
      const { vcpus, memory } = machine.config
      const { current: saving } = saver
      return { ok: true, state: machine.state, pid: process.pid, vcpus, memory, ...(saving && { saving }) }
    }
    case 'snapshot': {
      const { do: _, ...save } = request
      return { ok: true, ...(await saver.save(save)), state: machine.state }
    }
    case 'cancel':
      if (!saver.cancel()) return { ok: false, reason: 'no snapshot is being made' }
      break
    case 'pause':
    case 'resume':
    case 'stop':
      await machine[request.do]()
  }
  return { ok: true, state: machine.state }
}

async function removeStale(path: string): Promise<void> {
  const stats = lstatSync(path, { throwIfNoEntry: false })
  if (!stats) return
  const remedy = 'give another path'
  if (!stats.isSocket()) throw new ConfigError('control', path, 'there is something else, not a socket', remedy)
  if (await answers(path)) throw inUse(path)
  // Another one may have replaced it just now: what was moved aside is looked at again before it is removed.
  const aside = `${path}.${randomBytes(4).toString('hex')}`
  try {
    renameSync(path, aside)
  } catch (error) {
    throw refusal(path, error as NodeJS.ErrnoException)
  }
  if (await answers(aside)) {
    renameSync(aside, path)
    throw inUse(path)
  }
  unlinkSync(aside)
}

/** Whether someone listens on a socket. Only a refusal says that nobody does. */
function answers(path: string): Promise<boolean> {
  return new Promise(resolve => {
    const socket = connect(path)
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', (error: NodeJS.ErrnoException) =>
      resolve(!['ECONNREFUSED', 'ENOENT'].includes(error.code ?? '')),
    )
  })
}

function inUse(path: string): ConfigError {
  return new ConfigError('control', path, 'another machine answers there', 'give another path, or stop that machine')
}

function refusal(path: string, error: NodeJS.ErrnoException): ConfigError {
  if (error.code === 'EADDRINUSE') return inUse(path)
  return new ConfigError('control', path, `no socket can be made there (${error.message})`, 'give another path')
}
