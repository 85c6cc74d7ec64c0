/** restore-image.mjs DIRECTORY: snapshots of guests of 128 MiB and of 2 GiB, all of whose memory is in use. */
import { randomFillSync } from 'node:crypto'
import { join } from 'node:path'
import { Machine } from 'nested-kvm'
import { machineOptions, SAY_X } from './guests.mjs'

const BLOCK = randomFillSync(new Uint8Array(8 << 20))
const FREE = 0x2000000

for (const size of ['128M', '2G']) {
  const machine = await Machine.create(machineOptions(SAY_X, size))
  for (let at = FREE; at < machine.memory.size; at += BLOCK.length) machine.memory.write(at, BLOCK)
  await machine.snapshot(join(process.argv[2], size))
  await machine.stop()
}
