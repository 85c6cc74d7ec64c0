/**
 * idle-machines.mjs COUNT: what this process has resident when so many machines of 64 MiB stand idle in it, less what the guests have
 * touched, in MiB; and how long the first and the last took to start.
 */
import { readFileSync } from 'node:fs'
import { Machine } from 'nested-kvm'
import { machineOptions, SAY_X } from './guests.mjs'

const count = Number(process.argv[2])
const MEMORY_KB = 64 << 10

/** The mappings of this process, by address: size and what is resident of them, in KiB. */
function mappings() {
  const text = readFileSync('/proc/self/smaps', 'latin1')
  const found = text.matchAll(/^([0-9a-f]+)-([0-9a-f]+) (?:.*\n)*?Rss: +(\d+) kB/gm)
  return new Map(
    [...found].map(([, start, end, rss]) => {
      return [start, { size: (Number.parseInt(end, 16) - Number.parseInt(start, 16)) / 1024, rss: Number(rss) }]
    }),
  )
}

const before = mappings()
const starts = []
const machines = []
for (let i = 0; i < count; i++) {
  const start = performance.now()
  const machine = await Machine.create(machineOptions(SAY_X, '64M'))
  await machine.start()
  await machine.console.expect('x', { timeout: 20_000 })
  starts.push(performance.now() - start)
  machines.push(machine)
}
let resident = 0
let touched = 0
let guests = 0
for (const [start, { size, rss }] of mappings()) {
  resident += rss
  // The kernel joins neighbours: they are whole numbers of guests' memories.
  if (before.has(start) || size % MEMORY_KB !== 0) continue
  touched += rss
  guests += size / MEMORY_KB
}
if (guests < count) throw new Error(`the memories of ${guests} guests found, not ${count}`)
for (const machine of machines) await machine.stop()
const parts =
  count > 0 ? { 'first start in ms': starts[0], 'last start in ms': starts.at(-1), touched: touched / 1024 } : undefined
console.log(JSON.stringify({ value: (resident - touched) / 1024, check: 1, parts }))
