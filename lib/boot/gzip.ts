import { gunzipSync } from 'node:zlib'
import { ConfigError } from '../errors.js'

/** No kernel is larger; a small file that claims to be is made to fill the host's memory. */
const UNPACKED_MAX = 512 * 2 ** 20

/**
 * What is in `file`, where it is gzip'd (RFC 1952), as Xen and ELF kernels often are; else `file` itself.
 *
 * @throws {ConfigError} `kernel`: the packed data is damaged, or becomes too large
 */
export function unpacked(file: Uint8Array, max = UNPACKED_MAX): Uint8Array {
  if (file[0] !== 0x1f || file[1] !== 0x8b) return file
  try {
    return gunzipSync(file, { maxOutputLength: max })
  } catch (error) {
    const value = `gzip file of ${file.length} bytes`
    if ((error as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE') {
      throw new ConfigError('kernel', value, `it unpacks to more than ${max} bytes`, 'give it without symbols')
    }
    throw new ConfigError(
      'kernel',
      value,
      `it cannot be unpacked (${(error as Error).message})`,
      'give an intact copy of it',
    )
  }
}
