import type { Socket } from 'node:net'
import type { Console } from '../index.js'
import type { LineReader } from './control-lines.js'

/** Bytes of output that wait for a client: what comes when they are more is dropped for it, and it is told. */
const MOST_WAITING = 1 << 20
/** Bytes that are handed to the guest at once. */
const INPUT_PIECE = 4096

/** Who is attached. */
export interface Attached {
  readonly socket: Socket
  readonly reader: LineReader
  /** What it types waits until the guest reads: it may be gone, and that is not seen. */
  stalled: boolean
}

/**
 * Makes a connection a stream of the guest's console, after its request was answered: what the guest wrote last and all that it
 * writes from now on goes out, what comes in is typed. Returns once the client is gone or done typing.
 *
 * A client that reads slowly loses output, and one that types what the guest does not read waits: neither holds up the guest or
 * fills memory.
 */
export async function attachConsole(attached: Attached, console: Console): Promise<void> {
  const { socket } = attached
  let dropped = 0
  const send = (bytes: Uint8Array) => {
    if (socket.writableLength > MOST_WAITING) dropped += bytes.length
    else if (!socket.destroyed && socket.writable) socket.write(bytes)
  }
  const tellDropped = () => {
    if (dropped > 0 && socket.writable) socket.write(`\r\n[${dropped} bytes dropped]\r\n`)
    dropped = 0
  }
  // In one go with what follows: nothing is said twice, nothing left out.
  send(console.recent())
  const unwatch = console.watch(send)
  socket.on('drain', tellDropped)
  try {
    await type(attached, console)
  } finally {
    unwatch()
    socket.off('drain', tellDropped)
  }
}

async function type(attached: Attached, console: Console): Promise<void> {
  const { socket, reader } = attached
  for (let bytes = await reader.bytes(); bytes; bytes = await reader.bytes()) {
    for (let at = 0; at < bytes.length; at += INPUT_PIECE) {
      // What others have typed comes first: so nobody leaves much behind that the guest does not read.
      while (console.writableNeedDrain && !socket.destroyed) {
        attached.stalled = true
        await roomOrGone(console, socket)
      }
      attached.stalled = false
      if (socket.destroyed || !console.writable) return
      console.write(bytes.subarray(at, at + INPUT_PIECE))
    }
  }
}

function roomOrGone(console: Console, socket: Socket): Promise<void> {
  return new Promise(resolve => {
    const done = () => {
      console.off('drain', done)
      console.off('close', done)
      socket.off('close', done)
      resolve()
    }
    console.on('drain', done)
    console.on('close', done)
    socket.on('close', done)
  })
}
