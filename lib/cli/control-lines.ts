import type { Socket } from 'node:net'
import { MAX_LINE } from './control-protocol.js'

/**
 * The lines that come through a socket, without their ends; empty ones are left out. A last line without an end counts.
 * @throws {RangeError} a line is longer than any request or answer
 */
export async function* linesOf(socket: Socket): AsyncGenerator<Buffer> {
  let rest: Buffer = Buffer.alloc(0)
  const line = (bytes: Buffer) => (bytes.at(-1) === 0x0d ? bytes.subarray(0, -1) : bytes)
  // The other side may be done asking and still want the answer.
  for await (const chunk of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    let data = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk
    for (let end = data.indexOf(0x0a); end >= 0; end = data.indexOf(0x0a)) {
      const found = line(data.subarray(0, end))
      data = data.subarray(end + 1)
      if (found.length > MAX_LINE) throw new RangeError(`a line is longer than ${MAX_LINE} bytes`)
      if (found.length > 0) yield found
    }
    if (data.length > MAX_LINE) throw new RangeError(`a line is longer than ${MAX_LINE} bytes`)
    rest = data
  }
  if (line(rest).length > 0) yield line(rest)
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
