import { connect, type Socket } from 'node:net'
import { ConfigError, GuestError } from '../index.js'
import { linesOf } from './control-lines.js'
import { type ControlAnswer, type ControlRequest, MAX_SOCKET_PATH } from './control-protocol.js'

/** A connection to the control socket of a machine, in this or another process. */
export class ControlClient {
  readonly #socket: Socket
  readonly #lines: AsyncGenerator<Buffer>

  /** @throws {ConfigError} nobody answers there */
  static async connect(path: string): Promise<ControlClient> {
    const refuse = (problem: string) =>
      new ConfigError('control', path, problem, 'give the path that `nested-kvm run --control` was given')
    if (Buffer.byteLength(path) > MAX_SOCKET_PATH) throw refuse(`it is longer than ${MAX_SOCKET_PATH} bytes`)
    const socket = connect(path)
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', (error: NodeJS.ErrnoException) => {
        const reasons: Record<string, string> = {
          ENOENT: 'there is no such socket',
          ECONNREFUSED: 'no machine answers there',
        }
        reject(refuse(reasons[error.code ?? ''] ?? error.message))
      })
    })
    return new ControlClient(socket)
  }

  private constructor(socket: Socket) {
    this.#socket = socket
    this.#lines = linesOf(socket)
    // Told by the end of the lines.
    socket.on('error', () => {})
  }

  /**
   * Asks one thing and waits for its answer.
   * @throws {GuestError} the answer is no, or the machine went away before it came
   */
  async ask(request: ControlRequest): Promise<Extract<ControlAnswer, { ok: true }>> {
    this.#socket.write(`${JSON.stringify(request)}\n`)
    const line = await this.#lines.next().catch(() => undefined)
    if (!line || line.done) throw new GuestError('the machine went away without an answer')
    const answer = JSON.parse(line.value.toString()) as ControlAnswer
    if (!answer.ok) throw new GuestError(answer.reason)
    return answer
  }

  close(): void {
    this.#socket.destroy()
  }
}
