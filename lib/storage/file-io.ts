import { fdatasync, readv, writev } from 'node:fs'
import { type Done, lengthOf, slice } from './block-storage.js'

type Vectored = typeof readv | typeof writev

/** Fills `buffers` from a file. An end before that is an error: the file was cut short. */
export function readFully(fd: number, buffers: readonly Uint8Array[], position: number, done: Done): void {
  transfer(readv, 'read', fd, buffers, position, done)
}

export function writeFully(fd: number, buffers: readonly Uint8Array[], position: number, done: Done): void {
  transfer(writev, 'written', fd, buffers, position, done)
}

export function sync(fd: number, done: Done): void {
  fdatasync(fd, done)
}

const ZEROS = new Uint8Array(2 ** 20)

/** Writes zeros, a piece after the other. */
export function writeZeros(fd: number, position: number, length: number, done: Done): void {
  const piece = ZEROS.subarray(0, Math.min(length, ZEROS.length))
  writeFully(fd, [piece], position, error => {
    if (error || piece.length === length) done(error)
    else writeZeros(fd, position + piece.length, length - piece.length, done)
  })
}

function transfer(
  call: Vectored,
  what: string,
  fd: number,
  buffers: readonly Uint8Array[],
  position: number,
  done: Done,
): void {
  call(fd, buffers as Uint8Array[], position, (error, count) => {
    if (error) {
      done(error)
      return
    }
    const length = lengthOf(buffers)
    if (count === length) done(null)
    else if (count === 0) done(new Error(`nothing could be ${what} at ${position}: the file was cut short`))
    // The kernel does less than it was asked for where a signal or a limit is in the way.
    else transfer(call, what, fd, slice(buffers, count, length - count), position + count, done)
  })
}
