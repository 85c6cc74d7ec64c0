import { closeSync, openSync, readSync } from 'node:fs'
import { crc32 } from 'node:zlib'

/**
 * The CRC-32 of a file.
 * @param {string} path
 */
export function checksum(path) {
  const block = Buffer.alloc(4 << 20)
  const file = openSync(path, 'r')
  let sum = 0
  let count = 0
  do {
    count = readSync(file, block)
    sum = crc32(block.subarray(0, count), sum)
  } while (count > 0)
  closeSync(file)
  return sum
}
