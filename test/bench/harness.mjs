/**
 * Runs a benchmark: every trial is a process of its own, ours and the baseline take turns, the medians are compared.
 * @import { Benchmark } from './benchmarks.mjs'
 */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { ensureAssets } from 'nested-kvm'

const run = promisify(execFile)
const here = import.meta.dirname

const PAIRS = 7
const TRIAL_TIMEOUT_MS = 120_000

/** A benchmark could not be run; the message says all there is to say. */
export class BenchError extends Error {}

/**
 * Makes a baseline ready to run: one in C is compiled into `directory`, as a release build would be.
 * @param {string} source
 * @param {string} directory
 * @returns {Promise<[command: string, ...args: string[]]>}
 */
async function ready(source, directory) {
  if (source.endsWith('.mjs')) return [process.execPath, join(here, source)]
  const program = join(directory, source.replace(/\.c$/, ''))
  const flags = ['-O2', '-Wall', '-Wextra', '-Werror', '-pthread', '-static']
  try {
    await run('cc', [...flags, '-o', program, join(here, source)])
  } catch (error) {
    const { code, stderr } = /** @type {{ code?: unknown, stderr?: string }} */ (error)
    if (code === 'ENOENT') throw new BenchError('cc: not found: the baselines are C; install build-essential')
    throw new BenchError(`cc ${source}: ${stderr}`)
  }
  return [program]
}

/**
 * Runs a part of a benchmark to its end and returns what it printed.
 * @param {string} name
 * @param {string} command
 * @param {string[]} args
 */
async function script(name, command, args) {
  try {
    return (await run(command, args, { timeout: TRIAL_TIMEOUT_MS, killSignal: 'SIGKILL' })).stdout
  } catch (error) {
    const { message, stderr, killed } = /** @type {{ message: string, stderr?: string, killed?: boolean }} */ (error)
    const reason = killed ? `did not end within ${TRIAL_TIMEOUT_MS / 1000} s` : stderr?.trim() || message
    throw new BenchError(`${name}: ${[command, ...args].join(' ')}: ${reason}`)
  }
}

/**
 * @param {string} name
 * @param {string} command
 * @param {string[]} args
 * @returns {Promise<{ value: number, check: number, parts?: Record<string, number> }>}
 */
async function trial(name, command, args) {
  const stdout = await script(name, command, args)
  const { value, check, parts } = JSON.parse(stdout)
  if (!Number.isFinite(value) || !Number.isInteger(check)) throw new BenchError(`${name}: ${command} printed ${stdout}`)
  return { value, check, parts }
}

/** @param {number[]} values */
function median(values) {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/**
 * The median of each part over the trials that told of it.
 * @param {Record<string, number>[]} trials
 */
function medians(trials) {
  const names = Object.keys(trials[0] ?? {})
  return Object.fromEntries(names.map(name => [name, median(trials.map(parts => parts[name]))]))
}

/**
 * A benchmark of the lab runs inside it, by this same program.
 * @param {Benchmark} benchmark
 * @param {(line: string) => void} progress
 * @returns {Promise<Awaited<ReturnType<typeof measure>>>}
 */
export async function measureInLab({ name, lab, assets }, progress) {
  if (assets) await ensureAssets(assets, { onProgress: progress })
  progress(`${name}: starting the ${lab} lab`)
  const cli = join(here, '../../dist/cli/main.js')
  const inside = [process.execPath, join(here, 'main.mjs'), '--json', name]
  const child = spawn(process.execPath, [cli, 'lab', '--vendor', `${lab}`, '--timeout', '1800', '--', ...inside], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let stdout = ''
  child.stdout.on('data', data => {
    stdout += data
  })
  let last = ''
  createInterface({ input: child.stderr }).on('line', line => {
    last = line
    progress(line)
  })
  await once(child, 'close')
  try {
    return JSON.parse(stdout)[0]
  } catch {
    throw new BenchError(`${name}: the lab ended without a result: ${last}`)
  }
}

/**
 * @param {Benchmark} benchmark
 * @param {string} directory where compiled baselines go
 * @param {(line: string) => void} progress
 */
export async function measure(benchmark, directory, progress) {
  const { name, unit, target, absolute, pairs = PAIRS } = benchmark
  progress(`${name}: compiling the baseline`)
  const programs = {
    ours: await ready(benchmark.ours, directory),
    baseline: await ready(benchmark.baseline, directory),
  }
  if (benchmark.prepare) {
    progress(`${name}: preparing`)
    await script(name, process.execPath, [join(here, benchmark.prepare), directory])
  }
  const made = benchmark.prepare ? [directory] : []
  const given = benchmark.arguments ?? []
  const args = { ours: [...made, ...given], baseline: [...made, ...(benchmark.baselineArguments ?? given)] }
  /** @type {{ ours: number[], baseline: number[] }} */
  const values = { ours: [], baseline: [] }
  /** @type {Record<string, number>[]} */
  const partsOfOurs = []
  /** @type {number | undefined} */
  let expected
  for (let pair = 0; pair < pairs; pair++) {
    // Who goes first alternates, so that neither always has the warmer machine.
    const order = /** @type {const} */ (pair % 2 ? ['baseline', 'ours'] : ['ours', 'baseline'])
    for (const side of order) {
      const [command, ...first] = programs[side]
      const { value, check, parts } = await trial(name, command, [...first, ...args[side]])
      progress(`${name}: pair ${pair + 1} of ${pairs}, ${side}: ${value.toPrecision(4)} ${unit}`)
      expected ??= check
      if (check !== expected) throw new BenchError(`${name}: ${side} did other work: check ${check}, not ${expected}`)
      values[side].push(value)
      if (side === 'ours' && parts) partsOfOurs.push(parts)
    }
  }
  const ours = median(values.ours)
  const baseline = median(values.baseline)
  const ratio = absolute ? null : ours / baseline
  const ok = ratio === null ? ours - baseline <= target : ratio <= target
  return { name, ours, baseline, unit, ratio, target, ok, parts: partsOfOurs.length ? medians(partsOfOurs) : undefined }
}
