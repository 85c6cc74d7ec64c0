import { randomBytes } from 'node:crypto'
import { lstatSync, renameSync, unlinkSync } from 'node:fs'
import { connect, createServer, type Server } from 'node:net'
import { ConfigError } from '../errors.js'

/** `sun_path` of `struct sockaddr_un` has 108 bytes: its zero among them, and what a stale one's name is made longer by. */
export const MAX_SOCKET_PATH = 108 - 1 - '.12345678'.length

/** A Unix socket on which this process listens and that only this user can reach; it is removed with the server or the process. */
export interface PrivateSocket {
  readonly path: string
  readonly server: Server
  /** Takes no further connection and removes the socket; resolves once the last connection is closed. */
  close(): Promise<void>
}

export interface PrivateSocketOptions {
  /** For errors: what asked for it, and how it was asked for, by default the path. */
  readonly field: string
  readonly value?: string
  /** For errors: what is wrong where someone answers there, and what to do. */
  readonly inUse?: readonly [problem: string, remedy: string]
  /** For errors: what to do where no socket can be made. */
  readonly remedy?: string
  /** Bytes that its path has at most. */
  readonly maxPath?: number
}

/**
 * Listens on `path`, mode 0600; the readable side's end does not end a connection (`allowHalfOpen`). A socket that nobody answers on any more
 * is replaced.
 * @throws {ConfigError} `field`: someone answers there, or no socket can be made there
 */
export async function listenPrivately(path: string, options: PrivateSocketOptions): Promise<PrivateSocket> {
  const { field, value = path, maxPath = MAX_SOCKET_PATH } = options
  if (path === '' || Buffer.byteLength(path) > maxPath || path.includes('\0')) {
    const problem = `a socket's path has 1 to ${maxPath} bytes`
    throw new ConfigError(field, value, problem, 'give a shorter path, such as a relative one')
  }
  await makeRoom(path, options)
  const server = createServer({ allowHalfOpen: true })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => reject(refusal(path, options, error)))
    // The mode counts from the first moment on; the socket is bound within `listen`.
    const mask = process.umask(0o177)
    try {
      server.listen(path, resolve)
    } finally {
      process.umask(mask)
    }
  })
  server.removeAllListeners('error')
  // A connection that cannot be taken, for want of descriptors, is its client's failure.
  server.on('error', () => {})
  /** `Server.close` does this too; it is not called where the process just exits. */
  const remove = () => {
    try {
      unlinkSync(path)
    } catch {
      // It is gone already.
    }
  }
  process.on('exit', remove)
  const close = async () => {
    const closed = new Promise<void>(resolve => server.close(() => resolve()))
    server.unref()
    await closed
    process.off('exit', remove)
  }
  return { path, server, close }
}

/**
 * Removes a socket on which nobody listens; returns whether there is none any more.
 * @throws a system error where it cannot be removed
 */
export async function removeStale(path: string): Promise<boolean> {
  if (await answers(path)) return false
  // Another one may have replaced it just now: what was moved aside is looked at again before it is removed.
  const aside = `${path}.${randomBytes(4).toString('hex')}`
  try {
    renameSync(path, aside)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return true
    throw error
  }
  if (await answers(aside)) {
    renameSync(aside, path)
    return false
  }
  unlinkSync(aside)
  return true
}

async function makeRoom(path: string, options: PrivateSocketOptions): Promise<void> {
  const stats = lstatSync(path, { throwIfNoEntry: false })
  if (!stats) return
  if (!stats.isSocket()) throw cannot(path, options, `${path} is something else, not a socket`)
  let free: boolean
  try {
    free = await removeStale(path)
  } catch (error) {
    throw refusal(path, options, error as NodeJS.ErrnoException)
  }
  if (!free) throw inUse(path, options)
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

function inUse(path: string, options: PrivateSocketOptions): ConfigError {
  const [problem, remedy] = options.inUse ?? [
    'another machine answers there',
    'give another path, or stop that machine',
  ]
  return cannot(path, options, problem, remedy)
}

function refusal(path: string, options: PrivateSocketOptions, error: NodeJS.ErrnoException): ConfigError {
  if (error.code === 'EADDRINUSE') return inUse(path, options)
  return cannot(path, options, `no socket can be made there (${error.message})`)
}

function cannot(path: string, options: PrivateSocketOptions, problem: string, remedy = options.remedy): ConfigError {
  return new ConfigError(options.field, options.value ?? path, problem, remedy ?? 'give another path')
}
