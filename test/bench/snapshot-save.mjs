/** snapshot-save.mjs DIRECTORY: a guest whose memory is `memory.dense`, every page of it touched, saved. See snapshot-save-cp.mjs. */
import { closeSync, openSync, readSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { Machine } from 'nested-kvm'
import { checksum } from './checksum.mjs'
import { machineOptions, SAY_X } from './guests.mjs'

const directory = process.argv[2]
const saved = join(directory, 'saved')
const machine = await Machine.create(machineOptions(SAY_X, '1G'))
const dense = openSync(join(directory, 'memory.dense'), 'r')
for (const part of machine.memory.parts(0, machine.memory.size)) {
  for (let at = 0; at < part.length; ) at += readSync(dense, part, at, part.length - at, null)
}
closeSync(dense)
const start = performance.now()
await machine.snapshot(saved)
const value = performance.now() - start
const check = checksum(join(saved, 'memory'))
await machine.stop()
rmSync(saved, { recursive: true })
console.log(JSON.stringify({ value, check }))
