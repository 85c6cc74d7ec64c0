/** restore.mjs DIRECTORY SIZE: from the snapshot to the `x` that the guest's first instructions write. Its baseline is itself. */
import { join } from 'node:path'
import { Machine } from 'nested-kvm'

const [directory, size] = process.argv.slice(2)
const start = performance.now()
const machine = await Machine.restore(join(directory, size))
const said = machine.console.expect('x')
await machine.resume()
await said
const value = performance.now() - start
await machine.stop()
console.log(JSON.stringify({ value, check: 1 }))
