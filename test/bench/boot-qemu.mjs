/** boot-qemu.mjs DIRECTORY: the baseline of lab-boot's guest under QEMU, from its start to the line of L1's init: the faster of its `pc` and `microvm` machines. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { runGuest } from './linux-guest.mjs'

const options = JSON.parse(readFileSync(join(process.argv[2], 'options.json'), 'utf8'))
const times = []
for (const machine of /** @type {const} */ (['pc', 'microvm'])) {
  const start = performance.now()
  await runGuest(machine, options, /@init/)
  times.push((performance.now() - start) / 1e3)
}
const [pc, microvm] = times
console.log(JSON.stringify({ value: Math.min(...times), check: 1, parts: { pc, microvm } }))
