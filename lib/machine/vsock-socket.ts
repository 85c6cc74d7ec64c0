import { connect, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { VsockConnection } from '../devices/virtio/vsock/connection.js'
import { listenPrivately, type PrivateSocket } from '../sockets/private-socket.js'

/** `path` and what stands behind it in the socket of a port: `_4294967295`. */
const MAX_PATH = 107 - '_4294967295'.length
/** More clients at a time that have not asked for a port yet, or wait for an answer, are turned away. */
const WAITING_MAX = 64
/** Milliseconds that a client has to ask for a port. */
const ASK_TIMEOUT = 10_000
/** Milliseconds that a client has to take what was written to it before the machine ended. */
const LAST_BYTES = 1000
const LINE_MAX = 'CONNECT 4294967295\r\n'.length

type Ask = (port: number, signal: AbortSignal) => Promise<VsockConnection>

/**
 * The host's end of a vsock as Unix sockets, by Firecracker's convention (its docs/vsock.md): who connects to `path` writes `CONNECT port` and
 * reads `OK hostport`, or the end; what the guest connects to a port of the host goes to `path_port`.
 */
export class VsockSocket {
  readonly path: string
  readonly #listening: PrivateSocket
  readonly #sockets = new Set<Socket>()
  readonly #ask: Promise<Ask>
  #setAsk!: (ask: Ask) => void
  #waiting = 0

  /** @throws {ConfigError} `vsock.path`: someone answers there, or no socket can be made there */
  static async listen(path: string): Promise<VsockSocket> {
    return new VsockSocket(await listenPrivately(path, { field: 'vsock.path', maxPath: MAX_PATH }))
  }

  private constructor(listening: PrivateSocket) {
    this.path = listening.path
    this.#listening = listening
    this.#ask = new Promise(resolve => {
      this.#setAsk = resolve
    })
    // Without a machine behind it that runs, it keeps no process.
    listening.server.unref()
    listening.server.on('connection', socket => void this.#serve(this.#keep(socket)))
  }

  /** From now on, `ask` is how clients are connected. */
  serve(ask: Ask): void {
    this.#setAsk(ask)
  }

  /** Connects a connection that the guest asks for to the socket of its port, or refuses it. */
  forward(connection: VsockConnection): void {
    const socket = this.#keep(connect({ path: `${this.path}_${connection.hostPort}`, allowHalfOpen: true }))
    // Whichever goes first, before they are joined.
    const giveUp = () => socket.destroy()
    const refuse = () => connection.destroy()
    connection.once('close', giveUp)
    socket.once('close', refuse)
    socket.once('connect', () => {
      connection.off('close', giveUp)
      socket.off('close', refuse)
      connection.accept()
      join(socket, connection)
    })
  }

  /** Lets all clients go and removes the socket. */
  async close(): Promise<void> {
    const closed = this.#listening.close()
    // What was written to a client can still be read.
    for (const socket of this.#sockets) socket.destroySoon()
    const late = setTimeout(() => {
      for (const socket of this.#sockets) socket.destroy()
    }, LAST_BYTES)
    await closed
    clearTimeout(late)
  }

  async #serve(socket: Socket): Promise<void> {
    if (this.#waiting >= WAITING_MAX) {
      socket.destroy()
      return
    }
    this.#waiting++
    try {
      const port = await readRequest(socket)
      if (port === undefined) {
        socket.destroy()
        return
      }
      // A client that is gone looks like one that has sent all, until it is written to.
      const gone = new AbortController()
      const abort = () => gone.abort()
      socket.once('close', abort)
      const connection = await (await this.#ask)(port, gone.signal)
      socket.off('close', abort)
      socket.write(`OK ${connection.hostPort}\n`)
      join(socket, connection)
    } catch {
      // Refused, as Firecracker says it: by the end.
      socket.destroy()
    } finally {
      this.#waiting--
    }
  }

  #keep(socket: Socket): Socket {
    this.#sockets.add(socket)
    socket.on('close', () => this.#sockets.delete(socket))
    // A client that is gone is no failure of ours.
    socket.on('error', () => socket.destroy())
    return socket
  }
}

/** The port that a client asks for; undefined where it asks for none. What it sends after that stays in the socket. */
function readRequest(socket: Socket): Promise<number | undefined> {
  return new Promise(resolve => {
    let line = Buffer.alloc(0)
    const settle = (port?: number) => {
      clearTimeout(timer)
      socket.off('readable', read).off('close', end).off('end', end)
      resolve(port)
    }
    const end = () => settle()
    const read = () => {
      const chunk: Buffer | null = socket.read()
      if (chunk === null) return
      line = Buffer.concat([line, chunk.subarray(0, LINE_MAX)])
      const at = line.indexOf('\n')
      if (at < 0 && line.length < LINE_MAX) return
      const [, digits] = /^CONNECT (\d{1,10})\r?\n/.exec(line.toString('latin1')) ?? []
      const port = Number(digits)
      if (digits === undefined || port > 2 ** 32 - 2) {
        settle()
        return
      }
      const rest = chunk.subarray(at + 1 - (line.length - Math.min(chunk.length, LINE_MAX)))
      settle(port)
      if (rest.length > 0) socket.unshift(rest)
    }
    const timer = setTimeout(end, ASK_TIMEOUT)
    socket.on('readable', read).on('close', end).on('end', end)
  })
}

/** Passes on what either sends, its end too; where one is cut, so is the other. */
function join(socket: Socket, connection: Duplex): void {
  socket.pipe(connection).pipe(socket)
  connection.once('close', () => {
    // With the guest's end read, what is still to be written is written.
    if (connection.readableEnded) socket.destroySoon()
    else socket.destroy()
  })
  socket.once('close', () => {
    // Who has sent all and read all may go before the guest has taken it.
    if (!socket.readableEnded || !socket.writableFinished) connection.destroy()
  })
}
