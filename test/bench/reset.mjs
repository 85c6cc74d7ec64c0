/** reset.mjs DIRECTORY: from the reset of an L1 that has booted to the line that its init writes again. `parts`: until vCPUs run again, and from there. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Machine } from 'nested-kvm'

const TIMEOUT = { timeout: 60_000 }
const machine = await Machine.create(JSON.parse(readFileSync(join(process.argv[2], 'options.json'), 'utf8')))
await machine.start()
await machine.console.expect('@init', TIMEOUT)
const start = performance.now()
await machine.reset()
const running = performance.now()
await machine.console.expect('@init', TIMEOUT)
const end = performance.now()
await machine.stop()
const parts = { reset: (running - start) / 1e3, boot: (end - running) / 1e3 }
console.log(JSON.stringify({ value: (end - start) / 1e3, check: 1, parts }))
