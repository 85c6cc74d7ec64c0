import type { Socket } from 'node:net'
import { MAX_LINE } from './control-protocol.js'

/**
 * Reads a socket line by line, or, once something else follows the lines, as it comes. It reads no further than it is asked, so that
 * the other side cannot fill this one's memory.
 */
export class LineReader {
  readonly #socket: Socket
  #rest: Buffer = Buffer.alloc(0)
  #wake: () => void = () => {}

  constructor(socket: Socket) {
    this.#socket = socket
    const wake = () => this.#wake()
    for (const event of ['readable', 'end', 'error', 'close']) socket.on(event, wake)
  }

  /**
   * The next line that is not empty, without its end; undefined where there is none. A last line without an end counts.
   * @throws {RangeError} it is longer than any request or answer
   */
  async line(): Promise<Buffer | undefined> {
    for (;;) {
      const end = this.#rest.indexOf(0x0a)
      if ((end < 0 ? this.#rest.length : end) > MAX_LINE)
        throw new RangeError(`a line is longer than ${MAX_LINE} bytes`)
      if (end >= 0) {
        const line = withoutReturn(this.#rest.subarray(0, end))
        this.#rest = this.#rest.subarray(end + 1)
        if (line.length > 0) return line
        continue
      }
      const chunk = await this.#read()
      if (!chunk) {
        const line = withoutReturn(this.#rest)
        this.#rest = Buffer.alloc(0)
        return line.length > 0 ? line : undefined
      }
      this.#rest = this.#rest.length > 0 ? Buffer.concat([this.#rest, chunk]) : chunk
    }
  }

  /** What comes next, lines or not; undefined where there is no more. */
  async bytes(): Promise<Buffer | undefined> {
    if (this.#rest.length === 0) return this.#read()
    const rest = this.#rest
    this.#rest = Buffer.alloc(0)
    return rest
  }

  async #read(): Promise<Buffer | undefined> {
    const socket = this.#socket
    for (;;) {
      const chunk = socket.read() as Buffer | null
      if (chunk) return chunk
      if (socket.readableEnded || socket.destroyed) return undefined
      await new Promise<void>(resolve => {
        this.#wake = resolve
      })
    }
  }
}

function withoutReturn(line: Buffer): Buffer {
  return line.at(-1) === 0x0d ? line.subarray(0, -1) : line
}

/** Writes one value as a line; returns once the other side takes more, or is gone. */
export async function writeLine(socket: Socket, value: unknown): Promise<void> {
  if (socket.destroyed || !socket.writable) return
  if (socket.write(`${JSON.stringify(value)}\n`)) return
  await new Promise<void>(resolve => {
    const done = () => {
      socket.off('drain', done)
      socket.off('close', done)
      resolve()
    }
    socket.on('drain', done)
    socket.on('close', done)
  })
}
