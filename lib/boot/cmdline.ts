import { CMDLINE_ADDRESS, CMDLINE_ROOM } from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'

/**
 * Writes the kernel's command line, with its terminating zero, where all ways to boot have it.
 *
 * @param max most bytes that the kernel takes, without the terminating zero
 * @throws {ConfigError} `cmdline`: too long or with a zero byte in it
 */
export function writeCmdline(memory: GuestMemory, cmdline: string, max = CMDLINE_ROOM - 1): void {
  const bytes = zeroTerminated('cmdline', cmdline)
  const most = Math.min(max, CMDLINE_ROOM - 1)
  if (bytes.length - 1 > most) {
    const problem = `it is ${bytes.length - 1} bytes long, and this kernel takes at most ${most}`
    throw new ConfigError('cmdline', cmdline, problem, 'shorten it')
  }
  memory.write(CMDLINE_ADDRESS, bytes)
}

/**
 * A text as C has it.
 * @throws {ConfigError} `field`: it has a zero byte in it
 */
export function zeroTerminated(field: string, text: string): Uint8Array {
  const bytes = Buffer.from(`${text}\0`)
  if (bytes.indexOf(0) !== bytes.length - 1) {
    const problem = 'it has a zero byte in it, where the kernel would stop reading'
    throw new ConfigError(field, text, problem, 'remove it')
  }
  return bytes
}
