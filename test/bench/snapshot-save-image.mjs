/** snapshot-save-image.mjs DIRECTORY: 1 GiB, half random bytes and half zero in turns of 64 KiB, as a file without holes. */
import { randomFillSync } from 'node:crypto'
import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'

const TURN = 64 << 10
const BLOCK = Buffer.alloc(8 << 20)

const file = openSync(join(process.argv[2], 'memory.dense'), 'w')
for (let done = 0; done < 1 << 30; done += BLOCK.length) {
  for (let at = 0; at < BLOCK.length; at += 2 * TURN) randomFillSync(BLOCK, at, TURN)
  writeSync(file, BLOCK)
}
// So that nothing of it is still on its way when the clock runs.
fsyncSync(file)
closeSync(file)
