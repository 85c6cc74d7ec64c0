/**
 * `npm run bench [-- [--json] [NAME...]]`: measures the package against the same work done in C, and prints a table, or
 * with `--json` an array of `{"name","ours","baseline","unit","ratio","target","ok"}` and nothing else. A row may also have
 * `parts`, what the time of ours is made up of; without `--json` they go to stderr.
 *
 * `ratio` is ours / baseline, and `target` the most it may be; where `ratio` is null (idle-cpu, restore) `target` is the most that
 * ours may lie above the baseline. Exit code 0: all reach their target; 1: one does not, or could not be measured; 2: bad usage.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { benchmarks } from './benchmarks.mjs'
import { BenchError, measure, measureInLab } from './harness.mjs'

/** @param {string} message */
function usage(message) {
  const list = benchmarks.map(({ name, what }) => `  ${name.padEnd(16)}${what}`).join('\n')
  process.stderr.write(`${message}\n\nusage: npm run bench -- [--json] [NAME...]\n\n${list}\n`)
  process.exit(2)
}

function parse() {
  try {
    return parseArgs({ options: { json: { type: 'boolean', default: false } }, allowPositionals: true })
  } catch (error) {
    return usage(error instanceof Error ? error.message : String(error))
  }
}

const live = process.stderr.isTTY
/** @param {string} line */
function progress(line) {
  process.stderr.write(live ? `\r\x1b[K${line}` : `${line}\n`)
}

/** @param {number} value */
const shown = value => value.toFixed(value < 10 ? 2 : 1)

/** @param {Awaited<ReturnType<typeof measure>>} row */
function line({ name, ours, baseline, unit, ratio, target, ok }) {
  const limit = ratio === null ? `+${target} ${unit}` : `${target.toFixed(2)}x`
  const found = ratio === null ? `+${shown(ours - baseline)}` : `${ratio.toFixed(2)}x`
  const columns = [
    shown(ours),
    shown(baseline),
    unit.padEnd(9),
    found.padStart(8),
    limit.padEnd(12),
    ok ? 'ok' : 'MISSED',
  ]
  return `${name.padEnd(16)}${columns[0].padStart(10)}${columns[1].padStart(10)} ${columns.slice(2).join('  ')}\n`
}

/** @param {Awaited<ReturnType<typeof measure>>} row */
function showParts({ parts = {}, unit }) {
  const list = Object.entries(parts).map(([name, value]) => `${name} ${shown(value)}`)
  if (list.length) process.stderr.write(`  of ours, ${unit}: ${list.join(', ')}\n`)
}

const { values, positionals } = parse()
const unknown = positionals.find(name => !benchmarks.some(benchmark => benchmark.name === name))
if (unknown !== undefined) usage(`unknown benchmark: ${unknown}`)
const chosen = positionals.length ? benchmarks.filter(({ name }) => positionals.includes(name)) : benchmarks

const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-bench-'))
try {
  const rows = []
  if (!values.json) {
    process.stdout.write('medians; each trial is a process of its own, ours and the baseline in turns\n')
    process.stdout.write(
      `${'name'.padEnd(16)}${'ours'.padStart(10)}${'baseline'.padStart(10)} ${'unit'.padEnd(9)}     ratio  target\n`,
    )
  }
  for (const benchmark of chosen) {
    const outside = benchmark.lab && benchmark.lab !== process.env.NESTED_KVM_LAB
    const row = outside ? await measureInLab(benchmark, progress) : await measure(benchmark, directory, progress)
    if (live) process.stderr.write('\r\x1b[K')
    if (!values.json) {
      process.stdout.write(line(row))
      showParts(row)
    }
    rows.push(row)
  }
  if (values.json) process.stdout.write(`${JSON.stringify(rows, null, 2)}\n`)
  process.exitCode = rows.every(({ ok }) => ok) ? 0 : 1
} catch (error) {
  if (!(error instanceof BenchError)) throw error
  if (live) process.stderr.write('\r\x1b[K')
  process.stderr.write(`${error.message}\n`)
  process.exitCode = 1
} finally {
  await rm(directory, { recursive: true, force: true })
}
