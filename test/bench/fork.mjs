/** fork.mjs SIZE COUNT WARMUP: a guest of that size with 64 MiB in use is forked, the fork ended again. Its baseline is itself. */
import { randomFillSync } from 'node:crypto'
import { Machine } from 'nested-kvm'
import { machineOptions, SAY_X } from './guests.mjs'

const [size, count, warmup] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])]
const USED = { start: 0x2000000, length: 64 << 20 }

const machine = await Machine.create(machineOptions(SAY_X, size))
const content = randomFillSync(new Uint8Array(USED.length))
machine.memory.write(USED.start, content)
await machine.start()
await machine.console.expect('x')
await machine.pause()

/** @param {number} times */
async function forks(times) {
  const taken = []
  for (let i = 0; i < times; i++) {
    const start = performance.now()
    const twin = await machine.fork()
    taken.push(performance.now() - start)
    await twin.stop()
  }
  return taken.toSorted((a, b) => a - b)[times >> 1]
}

await forks(warmup)
const value = await forks(count)
// Only now: a view of 2 GiB has V8 collect its garbage, and then not in the fork that is measured.
const twin = await machine.fork()
const check = Buffer.compare(twin.memory.read(USED.start, USED.length), content) === 0 ? 1 : 0
await twin.stop()
await machine.stop()
console.log(JSON.stringify({ value, check }))
