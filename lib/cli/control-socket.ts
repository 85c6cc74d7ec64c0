import { randomBytes } from 'node:crypto'
import { lstatSync, renameSync, unlinkSync } from 'node:fs'
import { connect, createServer, type Server } from 'node:net'
import { ConfigError } from '../index.js'
import type { ControlPlace } from './control-names.js'
import { MAX_SOCKET_PATH } from './control-protocol.js'

/**
 * Listens on a Unix socket that only this user can reach. One that nobody answers on any more is replaced.
 * @throws {ConfigError} another machine answers there, or no socket can be made there
 */
export async function listenOn(place: ControlPlace): Promise<Server> {
  const { path, field, value } = place
  if (path === '' || Buffer.byteLength(path) > MAX_SOCKET_PATH || path.includes('\0')) {
    const problem = `a socket's path has 1 to ${MAX_SOCKET_PATH} bytes`
    throw new ConfigError(field, value, problem, 'give a shorter path, such as a relative one')
  }
  await makeRoom(place)
  const server = createServer({ allowHalfOpen: true })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => reject(refusal(place, error)))
    // The mode counts from the first moment on; the socket is bound within `listen`.
    const mask = process.umask(0o177)
    try {
      server.listen(path, resolve)
    } finally {
      process.umask(mask)
    }
  })
  server.removeAllListeners('error')
  return server
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

async function makeRoom(place: ControlPlace): Promise<void> {
  const { path, field, value } = place
  const stats = lstatSync(path, { throwIfNoEntry: false })
  if (!stats) return
  if (!stats.isSocket()) {
    const problem =
      field === 'name' ? `${path} is something else, not a socket` : 'there is something else, not a socket'
    throw new ConfigError(field, value, problem, `give another ${field === 'name' ? 'name' : 'path'}`)
  }
  let free: boolean
  try {
    free = await removeStale(path)
  } catch (error) {
    throw refusal(place, error as NodeJS.ErrnoException)
  }
  if (!free) throw inUse(place)
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

function inUse({ field, value }: ControlPlace): ConfigError {
  if (field === 'name') {
    const remedy = `give another name, or stop that machine: nested-kvm ctl ${value} stop`
    return new ConfigError(field, value, 'a machine of this name runs already', remedy)
  }
  return new ConfigError(field, value, 'another machine answers there', 'give another path, or stop that machine')
}

function refusal(place: ControlPlace, error: NodeJS.ErrnoException): ConfigError {
  if (error.code === 'EADDRINUSE') return inUse(place)
  const remedy = place.field === 'name' ? 'set XDG_RUNTIME_DIR to a directory of your own' : 'give another path'
  return new ConfigError(place.field, place.value, `no socket can be made there (${error.message})`, remedy)
}
