/** rollback.mjs DIRECTORY COUNT WARMUP: a guest writes 100 pages, is paused, and goes back. See rollback.c, its baseline. */
import { join } from 'node:path'
import { Machine } from 'nested-kvm'
import { DIRTY_PAGES, DIRTY_START, DIRTY_STRIDE } from './guests.mjs'
import * as parts from './rollback-parts.mjs'

const [directory, count, warmup] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])]
const machine = await Machine.restore(join(directory, 'saved'))

async function runOn() {
  machine.console.takeText()
  const said = machine.console.expect('x')
  await machine.resume()
  await said
  await machine.pause()
}

/** How many pages are other than at the checkpoint. */
function changed() {
  let pages = 0
  for (let i = 0; i < DIRTY_PAGES; i++) {
    const at = DIRTY_START + i * DIRTY_STRIDE
    if (machine.memory.view(at, 8)[0] !== counter) pages++
  }
  return pages
}

await runOn()
const checkpoint = await machine.checkpoint()
const counter = machine.memory.read(DIRTY_START, 8)[0]
let check = 0

/**
 * The median: a cycle in which the process was put aside counts no more than another.
 * @param {number} times
 */
async function cycles(times) {
  const spent = []
  for (let i = 0; i < times; i++) {
    await runOn()
    check += changed()
    parts.start()
    const start = performance.now()
    await machine.rollback(checkpoint)
    spent.push(performance.now() - start)
    parts.end()
    check -= changed()
  }
  return spent.toSorted((a, b) => a - b)[times >> 1] * 1e3
}

await cycles(warmup)
const value = await cycles(count)
const cycled = check
// With a clock at each part it takes a little longer: not in the value.
parts.putClocks()
await cycles(count)
await machine.stop()
console.log(JSON.stringify({ value, check: cycled, parts: parts.medians() }))
