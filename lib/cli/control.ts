import type { Socket } from 'node:net'
import type { Machine } from '../index.js'
import { listenPrivately, type PrivateSocket } from '../sockets/private-socket.js'
import { type Attached, attachConsole } from './control-console.js'
import { LineReader, writeLine } from './control-lines.js'
import type { ControlPlace } from './control-names.js'
import { type ControlAnswer, type ControlRequest, parseRequest } from './control-protocol.js'
import { describeFailure } from './output.js'
import type { Saver } from './saver.js'

/** More clients at a time are turned away. */
const MAX_CLIENTS = 32
/** Milliseconds that a client has to take its last answer. */
const LAST_ANSWER = 1000

/** What requests are about. */
export interface Controlled {
  readonly machine: Pick<
    Machine,
    'state' | 'config' | 'console' | 'pause' | 'resume' | 'reset' | 'injectNmi' | 'powerButton' | 'stop'
  >
  readonly saver: Saver
}

interface Client extends Attached {
  busy: boolean
}

/** `--name`, `--control`: a Unix socket, this user's only, through which other processes steer a machine. */
export class ControlServer {
  readonly #name: string | undefined
  readonly #listening: PrivateSocket
  /** Requests wait for it. */
  readonly #controlled: Promise<Controlled>
  readonly #clients = new Set<Client>()
  #closing = false

  /**
   * Listens there. A socket that nobody answers on any more is replaced.
   * @throws {ConfigError} another machine answers there, or no socket can be made there
   */
  static async listen(place: ControlPlace, controlled: Promise<Controlled>): Promise<ControlServer> {
    const { path, field, value } = place
    const named = {
      inUse: [
        'a machine of this name runs already',
        `give another name, or stop that machine: nested-kvm ctl ${value} stop`,
      ],
      remedy: 'set XDG_RUNTIME_DIR to a directory of your own',
    } as const
    const listening = await listenPrivately(path, { field, value, ...(field === 'name' && named) })
    return new ControlServer(place, listening, controlled)
  }

  private constructor({ field, value }: ControlPlace, listening: PrivateSocket, controlled: Promise<Controlled>) {
    this.#name = field === 'name' ? value : undefined
    this.#listening = listening
    this.#controlled = controlled
    // Who waits for it is told; if nobody does, it is no failure of ours.
    controlled.catch(() => {})
    listening.server.on('connection', socket => void this.#serve(socket))
  }

  get path(): string {
    return this.#listening.path
  }

  /** Answers what is being done, lets the clients go and removes the socket. */
  async close(): Promise<void> {
    this.#closing = true
    const closed = this.#listening.close()
    for (const { socket, busy } of this.#clients) if (!busy) socket.end()
    const late = setTimeout(() => {
      for (const { socket } of this.#clients) socket.destroy()
    }, LAST_ANSWER)
    await closed
    clearTimeout(late)
  }

  async #serve(socket: Socket): Promise<void> {
    // A client that is gone is no failure of ours.
    socket.on('error', () => socket.destroy())
    if (this.#clients.size >= MAX_CLIENTS) {
      const stalled = [...this.#clients].find(client => client.stalled)
      if (!stalled) {
        await writeLine(socket, { ok: false, reason: `there are ${MAX_CLIENTS} clients already` })
        socket.destroySoon()
        return
      }
      this.#clients.delete(stalled)
      stalled.socket.destroy()
    }
    const reader = new LineReader(socket)
    const client: Client = { socket, reader, stalled: false, busy: false }
    this.#clients.add(client)
    socket.on('close', () => this.#clients.delete(client))
    try {
      for (let line = await reader.line(); line; line = await reader.line()) {
        client.busy = true
        const attaches = await this.#serveLine(client, line)
        client.busy = false
        if (this.#closing) break
        if (!attaches) continue
        await attachConsole(client, (await this.#controlled).machine.console)
        break
      }
    } catch (error) {
      await writeLine(socket, { ok: false, reason: (error as Error).message })
    }
    socket.destroySoon()
  }

  /** Answers one request; returns whether the connection is to become the console. */
  async #serveLine({ socket }: Client, line: Uint8Array): Promise<boolean> {
    let answer: ControlAnswer
    let attaches = false
    try {
      const request = parseRequest(line)
      answer = await act(request, await this.#controlled, this.#name)
      attaches = request.do === 'console'
    } catch (error) {
      answer = { ok: false, reason: error instanceof TypeError ? error.message : describeFailure(error).reason }
    }
    await writeLine(socket, answer)
    return attaches
  }
}

async function act(
  request: ControlRequest,
  { machine, saver }: Controlled,
  name: string | undefined,
): Promise<ControlAnswer> {
  switch (request.do) {
    case 'status': {
      const { vcpus, memory, kernel } = machine.config
      const { current: saving } = saver
      return {
        ok: true,
        state: machine.state,
        pid: process.pid,
        ...(name !== undefined && { name }),
        vcpus,
        memory,
        kernel: typeof kernel === 'string' ? kernel : null,
        uptime: Math.round(process.uptime() * 10) / 10,
        ...(saving && { saving }),
      }
    }
    case 'snapshot': {
      const { do: _, ...save } = request
      return { ok: true, ...(await saver.save(save)), state: machine.state }
    }
    case 'cancel':
      if (!saver.cancel()) return { ok: false, reason: 'no snapshot is being made' }
      break
    case 'nmi':
      await machine.injectNmi(request.vcpu)
      break
    case 'power-off':
      machine.powerButton()
      break
    case 'pause':
    case 'resume':
    case 'reset':
    case 'stop':
      await machine[request.do]()
  }
  return { ok: true, state: machine.state }
}
