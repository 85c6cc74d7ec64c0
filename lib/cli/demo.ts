import { readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { release, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { Command, Option } from 'commander'
import {
  ConfigError,
  diagnoseHost,
  ensureAssets,
  GuestError,
  hypervisorSignature,
  LAST_COUNT,
  Lab,
  type LabOptions,
  MARK,
  NEXT_INITRD,
  NEXT_KERNEL,
  writeTowerImage,
} from '../index.js'
import {
  bootLevel,
  LevelError,
  type LevelEvent,
  type LevelFacts,
  restoreInNewProcess,
  restoreLevel,
  tellBelow,
} from './demo-level.js'
import { describeFailure, exitCode, printJson } from './output.js'
import { catchSignals } from './signals.js'
import { StatusLine } from './status-line.js'

interface DemoOptions {
  readonly json?: boolean
  readonly where: 'auto' | 'host' | 'lab'
  readonly timeout?: string
  readonly levels: string
  readonly level?: string
  readonly kernel?: string
  readonly initrd?: string
  readonly restore?: string
  readonly begun?: string
}

/** A level that has come up. */
type Level = LevelFacts & { readonly level: number; readonly bootSeconds: number }

/** Memory of the levels, from the last one down: each holds the image of the next one, twice while that starts, and its memory. */
const MEMORY = ['256M', '1G', '2560M']
/**
 * The lab for a tower of so many guests. Its memory also holds the snapshot. L3 spends most of its time in ticks of its timer where the lab's clock is
 * this machine's.
 */
const LAB: Record<number, Pick<LabOptions, 'memory' | 'clock'>> = {
  2: { memory: '3G', clock: 'host' },
  3: { memory: '6G', clock: 'instructions' },
}
/** Seconds that a tower of so many guests is given. */
const TIMEOUT: Record<number, number> = { 2: 900, 3: 3600 }

const HELP = `
What it does: L1, a machine of this package, boots a stock Debian kernel and loads kvm_amd or kvm_intel; in it this same
package runs and boots L2, and with --levels 3 in that one L3. Each level tells its kernel, its CPU flag and its hypervisor. The last
one then counts; meanwhile L1 is saved with all in it, the process that ran them ends, and a new one restores them: it must count on
without a gap. Then all power off. Where this host cannot nest, everything runs in the lab, an emulated host.

The last line of output is JSON. Exit code: 0 if every level came up, 1 if one failed, 2 if something is missing.`

/** `nested-kvm demo`: L1 boots, its own hypervisor boots L2, and that one's, if wanted, L3. */
export function demoCommand(): Command {
  return new Command('demo')
    .description('boot a guest, and a guest in that guest; save and restore both; with nothing configured')
    .option('--json', 'print only the last line')
    .addOption(
      new Option('--where <place>', 'run on this host, or in the lab').choices(['auto', 'host', 'lab']).default('auto'),
    )
    .addOption(
      new Option('--levels <number>', 'how many guests, each in the one before').choices(['2', '3']).default('2'),
    )
    .option('--timeout <seconds>', `give up after this time (default: ${TIMEOUT[2]}; with 3 levels ${TIMEOUT[3]})`)
    .addOption(new Option('--level <number>').hideHelp())
    .addOption(new Option('--kernel <file>').hideHelp())
    .addOption(new Option('--initrd <file>').hideHelp())
    .addOption(new Option('--restore <directory>').hideHelp())
    .addOption(new Option('--begun <text>').hideHelp())
    .addHelpText('after', HELP)
    .action(async (options: DemoOptions) => {
      process.exitCode = options.level === undefined ? await demo(options) : await runLevel(options)
    })
}

/** The part inside the tower: at level 0 in the lab, at level 1 in L1. Tells the level below, by lines on its output. */
async function runLevel(options: DemoOptions): Promise<number> {
  const here = Number(options.level)
  const levels = Number(options.levels)
  const timeout = timeoutOf(options) * 1000
  try {
    if (options.restore !== undefined) {
      await restoreLevel({ directory: options.restore, begun: options.begun ?? '', timeout }, tellBelow)
      return exitCode.ok
    }
    const { kernel = NEXT_KERNEL, initrd = NEXT_INITRD } = options
    if (here === 0) {
      tellBelow({ level: 0, ...hostFacts() })
      await bootTower({ kernel, initrd, levels, timeout }, tellBelow)
    } else {
      const level = here + 1
      await bootLevel({ level, kernel, initrd, memory: memoryOf(level, levels), timeout }, tellBelow)
    }
    return exitCode.ok
  } catch (error) {
    const { reason, details } = describeFailure(error)
    if (details) process.stderr.write(`${details}\n`)
    tellBelow({ level: error instanceof LevelError ? error.level : here + 1, failed: reason })
    return exitCode.failed
  }
}

interface TowerOptions {
  readonly kernel: string
  readonly initrd: string
  readonly levels: number
  /** Milliseconds. */
  readonly timeout: number
  readonly abort?: AbortSignal
}

function memoryOf(level: number, levels: number): string {
  return MEMORY[levels - level]!
}

/** Boots L1 with all above it on this host, saves them while the last one counts, and lets them go on in a new process. */
async function bootTower({ kernel, initrd, levels, timeout, abort }: TowerOptions, tell: (event: LevelEvent) => void) {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-tower-'))
  const saveTo = join(directory, 'l1')
  const common = { timeout, ...(abort && { abort }) }
  try {
    const memory = memoryOf(1, levels)
    const begun = await bootLevel({ level: 1, kernel, initrd, memory, saveTo, ...common }, tell)
    if (begun === undefined) {
      throw new LevelError(1, `L1 powered off before L${levels} counted far enough to be saved`, '')
    }
    await restoreInNewProcess({ directory: saveTo, begun, ...common }, tell)
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

async function demo(options: DemoOptions): Promise<number> {
  const started = performance.now()
  const timeout = timeoutOf(options)
  const last = Number(options.levels)
  const status = new StatusLine(options.json ? undefined : process.stderr)
  const levels: Level[] = []
  const tower: TowerFacts = { counts: [] }
  const say = (text: string) => {
    if (!options.json) status.print(text)
  }
  const since = new Map<number, number>()
  const elapsed = ({ level }: LevelEvent) => (performance.now() - since.get(level)!) / 1000
  const hear = (event: LevelEvent, bootSeconds?: number) => {
    if ('doing' in event) {
      status.show(event.doing)
      since.set(event.level, performance.now())
    } else if ('kernel' in event) {
      const level = { ...event, bootSeconds: round(bootSeconds ?? elapsed(event)) }
      levels.push(level)
      say(describeLevel(level))
      if (event.level > 0 && event.level < last) status.show(`starting Node in L${event.level}`)
    } else if ('count' in event) {
      tower.counts.push(event.count)
      status.show(`L${last} counts: ${event.count}`)
    } else if ('saved' in event) {
      tower.saved = { ...event.saved, seconds: elapsed(event), count: tower.counts.at(-1)! }
      say(describeSave(tower.saved, last))
    } else if ('restored' in event) {
      tower.restoreSeconds = elapsed(event)
      say(`It was restored in a new process in ${tower.restoreSeconds.toFixed(2)} s.`)
    } else if ('done' in event) status.show(`L${event.level} has powered off`)
  }
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-demo-'))
  const interruption = catchSignals()
  const abort = interruption.signal
  try {
    const where = place(options.where)
    say(where.reason)
    status.show('looking for the parts')
    const onProgress = (message: string) => status.show(message)
    const assets = await ensureAssets(['guestKernel', 'busybox'], { onProgress })
    abort.throwIfAborted()
    status.show('making the image of L1')
    const initrd = join(directory, 'l1.cpio')
    const common = ['--levels', options.levels, '--timeout', String(timeout)]
    const hosts = Array.from({ length: last - 1 }, (_, i) => ['demo', '--level', String(i + 1), ...common])
    await writeTowerImage(initrd, assets, hosts)
    const kernel = assets.guestKernel.vmlinuz
    if (where.lab) {
      await inLab({ kernel, initrd, levels: last, directory, timeout, onProgress, hear, abort })
    } else {
      hear({ level: 0, ...hostFacts() }, 0)
      await bootTower({ kernel, initrd, levels: last, timeout: timeout * 1000, abort }, hear)
    }
    if (levels.length !== last + 1) {
      throw new GuestError(`only ${levels.length} of ${last + 1} levels told what they are`)
    }
    const snapshot = checkTower(tower, last)
    status.close()
    const { count, lastCount } = snapshot
    say(`L${last} counted on from ${count + 1} to ${lastCount} without a gap. All levels have powered off.`)
    const vendor = levels[0]!.flag
    printJson({
      ok: true,
      where: where.lab ? 'lab' : 'host',
      vendor,
      seconds: round((performance.now() - started) / 1000),
      levels: levels.map(({ level, kernel, flag, hypervisor, bootSeconds }) => ({
        level,
        kernel,
        flag,
        hypervisor,
        bootSeconds,
      })),
      snapshot,
    })
    return exitCode.ok
  } catch (error) {
    status.close()
    const { reason, details, code } = describeFailure(error)
    if (!options.json) process.stderr.write(`nested-kvm: ${reason}\n${details ? `${details}\n` : ''}`)
    printJson({ ok: false, level: error instanceof LevelError ? error.level : levels.length, reason })
    return code
  } finally {
    status.close()
    interruption.close()
    await rm(directory, { recursive: true, force: true })
  }
}

/** What was seen of the saved tower. */
interface TowerFacts {
  readonly counts: number[]
  saved?: { readonly seconds: number; readonly bytes: number; readonly count: number }
  restoreSeconds?: number
}

/** @throws {GuestError} it was not saved and restored, or the last level did not go on as if nothing had happened */
function checkTower({ counts, saved, restoreSeconds }: TowerFacts, last: number) {
  if (!saved || restoreSeconds === undefined) throw new GuestError('L1 was not saved and restored')
  const expected = Array.from({ length: LAST_COUNT }, (_, i) => i + 1)
  if (counts.join() !== expected.join()) throw new GuestError(`L${last} did not count on: ${counts.join(' ')}`)
  return {
    count: saved.count,
    lastCount: counts.at(-1)!,
    bytes: saved.bytes,
    saveSeconds: round(saved.seconds),
    restoreSeconds: Math.round(restoreSeconds * 1000) / 1000,
  }
}

function describeSave({ seconds, bytes, count }: NonNullable<TowerFacts['saved']>, last: number): string {
  const size = `${Math.round(bytes / 2 ** 20)} MiB`
  return `L1 was saved while L${last} had counted to ${count}: ${size} in ${seconds.toFixed(1)} s. Its process has ended.`
}

interface Place {
  readonly lab: boolean
  readonly reason: string
}

function place(where: DemoOptions['where']): Place {
  if (where === 'lab') return { lab: true, reason: 'In the lab, as asked.' }
  const { ok, reason } = diagnoseHost()
  if (ok) return { lab: false, reason: 'This host nests: everything runs on it.' }
  if (where === 'host') throw new ConfigError('where', where, reason, 'leave --where out to use the lab')
  return { lab: true, reason: `This host does not nest (${reason}): everything runs in the lab.` }
}

interface InLab {
  readonly kernel: string
  readonly initrd: string
  readonly levels: number
  readonly directory: string
  readonly timeout: number
  onProgress(message: string): void
  /** `bootSeconds` are told of the lab. */
  hear(event: LevelEvent, bootSeconds?: number): void
  readonly abort: AbortSignal
}

async function inLab({ kernel, initrd, levels, directory, timeout, onProgress, hear, abort }: InLab): Promise<void> {
  const main = fileURLToPath(new URL('./main.js', import.meta.url))
  let failure: LevelError | undefined
  let complaints = ''
  const stdout = lines(line => {
    if (!line.startsWith(MARK)) return
    const event = JSON.parse(line.slice(MARK.length)) as LevelEvent
    if ('failed' in event) failure = new LevelError(event.level, event.failed, complaints)
    else hear(event, event.level === 0 ? lab.bootSeconds : undefined)
  })
  const stderr = lines(line => {
    complaints = `${complaints}${line}\n`.slice(-10_000)
  })
  const files = ['--kernel', kernel, '--initrd', initrd]
  const args = ['demo', '--level', '0', '--levels', String(levels), '--timeout', String(timeout), ...files]
  const options = {
    ...LAB[levels],
    cwd: process.cwd(),
    readable: [directory],
    timeout,
    stdout,
    stderr,
    abort,
    onFetch: onProgress,
    onBoot: onProgress,
  }
  const lab = await Lab.start([process.execPath, main, ...args], options)
  const { exitCode: code } = await lab.wait()
  if (failure) throw new LevelError(failure.level, failure.message, complaints)
  if (code !== 0) throw new LevelError(1, `the program in the lab ended with code ${code}`, complaints)
}

/** A stream that hands on whole lines. */
function lines(take: (line: string) => void): Writable {
  let rest = ''
  return new Writable({
    write(chunk: Buffer, _encoding, done) {
      const parts = (rest + chunk.toString()).split(/\r?\n/)
      rest = parts.pop()!
      for (const line of parts) take(line)
      done()
    },
  })
}

function hostFacts(): LevelFacts {
  const flags = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]?.split(' ') ?? []
  const flag = ['svm', 'vmx'].find(name => flags.includes(name)) ?? ''
  return { kernel: release(), flag, hypervisor: hypervisorSignature() ?? '' }
}

function describeLevel({ level, kernel, flag, hypervisor, bootSeconds }: Level): string {
  const under = hypervisor ? `under ${hypervisor}` : 'on bare metal'
  const time = bootSeconds > 0 ? `, up after ${bootSeconds.toFixed(1)} s` : ''
  return `L${level}: Linux ${kernel}, ${flag || 'no vmx or svm'}, ${under}${time}`
}

/** Seconds. */
function timeoutOf({ timeout: text, levels }: DemoOptions): number {
  if (text === undefined) return TIMEOUT[Number(levels)]!
  const value = Number(text)
  if (value > 0 && value <= 86_400) return value
  throw new ConfigError('timeout', text, 'it is no time in seconds', 'give a number from 1 to 86400')
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}
