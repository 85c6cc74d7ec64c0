import { lstatSync, mkdirSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { isAbsolute, join } from 'node:path'
import { ConfigError } from '../index.js'
import { MAX_SOCKET_PATH } from '../sockets/private-socket.js'

const SUFFIX = '.sock'
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*$/
const MOST_LETTERS = 48

/** Where the control socket of a machine is, or is to be; `field` and `value` are what the user gave for it. */
export interface ControlPlace {
  readonly path: string
  readonly field: 'name' | 'control'
  readonly value: string
}

/** The directory of this user's named machines: in $XDG_RUNTIME_DIR, or where there is none, /run (root) or the temporary files. */
export function runtimeDirectory(): string {
  const { XDG_RUNTIME_DIR: given } = process.env
  if (given && isAbsolute(given)) return join(given, 'nested-kvm')
  const user = process.getuid!()
  return user === 0 ? '/run/nested-kvm' : join(tmpdir(), `nested-kvm-${user}`)
}

/**
 * The socket of the machine with this name; or, where there is a slash in it, that path.
 * @throws {ConfigError} it is no name
 */
export function placeOf(nameOrPath: string): ControlPlace {
  if (nameOrPath.includes('/')) return { path: nameOrPath, field: 'control', value: nameOrPath }
  const refuse = (problem: string, remedy: string) => new ConfigError('name', nameOrPath, problem, remedy)
  if (!NAME.test(nameOrPath)) {
    throw refuse('a name has letters, digits, ".", "_" and "-", the first a letter or digit', 'give for example vm1')
  }
  if (nameOrPath.length > MOST_LETTERS) throw refuse(`a name has at most ${MOST_LETTERS} letters`, 'give a shorter one')
  const path = join(runtimeDirectory(), nameOrPath + SUFFIX)
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH) {
    throw refuse(`${path} is too long for a socket`, 'set XDG_RUNTIME_DIR to a directory with a shorter path')
  }
  return { path, field: 'name', value: nameOrPath }
}

/**
 * Makes the directory of named machines, which is to be this user's only: whoever can write there could answer in a machine's place.
 * @throws {ConfigError} `name`: it cannot be made, or others can write there
 */
export function makeRuntimeDirectory(name: string): void {
  const directory = runtimeDirectory()
  const refuse = (problem: string) =>
    new ConfigError('name', name, `${directory} ${problem}`, 'set XDG_RUNTIME_DIR to a directory of your own')
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw refuse(`cannot be made (${(error as NodeJS.ErrnoException).code})`)
  }
  const stats = lstatSync(directory)
  if (!stats.isDirectory()) throw refuse('is no directory')
  if (stats.uid !== process.getuid!() || (stats.mode & 0o077) !== 0) throw refuse('is not for this user alone')
}

/** The names that have a socket, whether somebody answers there or not, in order. */
export function registeredNames(): string[] {
  try {
    const files = readdirSync(runtimeDirectory())
    return files
      .filter(file => file.endsWith(SUFFIX))
      .map(file => file.slice(0, -SUFFIX.length))
      .filter(name => NAME.test(name) && name.length <= MOST_LETTERS)
      .sort()
  } catch {
    // Nobody has made it yet, or it is not ours to read.
    return []
  }
}
