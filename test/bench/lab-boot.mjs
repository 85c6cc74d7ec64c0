/** lab-boot.mjs DIRECTORY: from nothing to the line that L1's init writes. See vmm.c, its baseline. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Machine } from 'nested-kvm'

const options = JSON.parse(readFileSync(join(process.argv[2], 'options.json'), 'utf8'))
const start = performance.now()
const machine = await Machine.create(options)
await machine.start()
await machine.console.expect('@init', { timeout: 120_000 })
const value = (performance.now() - start) / 1e3
const { reason } = await machine.wait()
if (reason !== 'shutdown') throw new Error(`the guest ended by ${reason}`)
console.log(JSON.stringify({ value, check: 1 }))
