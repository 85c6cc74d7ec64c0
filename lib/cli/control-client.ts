import { connect, type Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { ConfigError, GuestError } from '../index.js'
import { MAX_SOCKET_PATH } from '../sockets/private-socket.js'
import { LineReader } from './control-lines.js'
import { type ControlPlace, placeOf } from './control-names.js'
import type { ControlAnswer, ControlRequest } from './control-protocol.js'

/** A connection to the control socket of a machine, in this or another process. */
export class ControlClient {
  readonly #socket: Socket
  readonly #reader: LineReader

  /**
   * @param machine its name, or, with a slash in it, the path of its control socket
   * @throws {ConfigError} nobody answers there
   */
  static async connect(machine: string): Promise<ControlClient> {
    const place = placeOf(machine)
    const { path } = place
    if (Buffer.byteLength(path) > MAX_SOCKET_PATH) throw refusal(place, `it is longer than ${MAX_SOCKET_PATH} bytes`)
    const socket = connect(path)
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', (error: NodeJS.ErrnoException) => reject(refusal(place, problemOf(place, error))))
    })
    return new ControlClient(socket)
  }

  private constructor(socket: Socket) {
    this.#socket = socket
    // Told by the end of the lines.
    socket.on('error', () => {})
    this.#reader = new LineReader(socket)
  }

  /**
   * Asks one thing and waits for its answer.
   * @throws {GuestError} the answer is no, or the machine went away before it came
   */
  async ask(request: ControlRequest): Promise<Extract<ControlAnswer, { ok: true }>> {
    this.#socket.write(`${JSON.stringify(request)}\n`)
    const line = await this.#reader.line().catch(() => undefined)
    if (!line) throw new GuestError('the machine went away without an answer')
    const answer = JSON.parse(line.toString()) as ControlAnswer
    if (!answer.ok) throw new GuestError(answer.reason)
    return answer
  }

  /**
   * The machine's console: what was said last, and what is said from now on. Destroying it detaches.
   * @throws {GuestError} as `ask`
   */
  async console(): Promise<Duplex> {
    await this.ask({ do: 'console' })
    const [socket, reader] = [this.#socket, this.#reader]
    return new Duplex({
      read() {
        void reader.bytes().then(bytes => this.push(bytes ?? null))
      },
      write(chunk: Uint8Array, _encoding, done) {
        // Where the machine is gone, the end of what it says tells so.
        socket.write(chunk, () => done())
      },
      destroy(error, done) {
        socket.destroy()
        done(error)
      },
    })
  }

  close(): void {
    this.#socket.destroy()
  }
}

function problemOf({ field }: ControlPlace, error: NodeJS.ErrnoException): string {
  if (error.code === 'ENOENT') return field === 'name' ? 'there is no machine of this name' : 'there is no such socket'
  return error.code === 'ECONNREFUSED' ? 'no machine answers there' : error.message
}

function refusal({ field, value }: ControlPlace, problem: string): ConfigError {
  const remedy = field === 'name' ? 'see `nested-kvm ps`' : 'give the path that `nested-kvm run --control` was given'
  return new ConfigError(field, value, problem, remedy)
}
