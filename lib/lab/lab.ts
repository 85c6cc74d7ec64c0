import { realpath } from 'node:fs/promises'
import { totalmem } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { buildInitramfs } from '../boot/initramfs.js'
import { parseSize } from '../config/machine-config.js'
import { ConfigError, GuestError, TimeoutError } from '../errors.js'
import type { Progress } from './apt.js'
import { cacheDirectory, ensureAssets, setUpLab } from './assets.js'
import { bochsEmulator } from './bochs.js'
import { ConsoleLog } from './console-log.js'
import type { Clock, Emulator, RunningEmulator, Share } from './emulator.js'
import { labEnvironment } from './environment.js'
import { GUEST_OWN_DIRECTORIES, guestFiles } from './guest-files.js'
import { ModuleTree } from './modules.js'
import { qemuEmulator } from './qemu.js'

const MIB = 1 << 20
const DEFAULT_MEMORY = '3G'
/** Less, and the kernel and Node do not fit beside each other. */
const LEAST_MEMORY = 512 * MIB
/**
 * More gain little, and QEMU 7.2 can go on with old code for ever where one processor patches what another is about to run (seen as
 * soft lockups of both): KVM's static keys patch the scheduler with every first and last VM.
 */
const DEFAULT_CPUS = 1
const TAIL_LINES = 25
const DEFAULT_VENDOR = 'svm'

export type Vendor = Emulator['vendor']

export interface LabOptions {
  /** The virtualization extension of the emulated host. Default: `svm`, which is the quicker one. */
  readonly vendor?: Vendor
  /** The command's working directory, which it may write to. Default: ours. */
  readonly cwd?: string
  /** Added to what `labEnvironment` takes over from ours. */
  readonly env?: Readonly<Record<string, string>>
  /** Memory of the emulated host: bytes, or as in `3G`, the default. */
  readonly memory?: number | string
  /** Processors of the emulated host. Default: 1. */
  readonly cpus?: number
  /**
   * What its clock counts. By `instructions` a second in it lasts several of ours, however busy this machine is: guests in guests then
   * get more done between two ticks of their timers, each of which costs them many exits. In the svm lab this builds the mended QEMU where
   * `setUpLab` has not. Default: `host`; vmx has only `instructions`.
   */
  readonly clock?: Clock
  /** Seconds for boot and command together, always ours. Default: no limit. */
  readonly timeout?: number
  /** Further directories that the command may write to. */
  readonly writable?: readonly string[]
  /** Further directories that it is to see although they are below one that the guest has for itself (`/tmp`, `/run`, ...). */
  readonly readable?: readonly string[]
  /** What the command reads. Default: nothing. */
  readonly stdin?: Readable
  /** Where its output goes as it comes. Default: it is collected in the result. They are not ended. */
  readonly stdout?: Writable
  readonly stderr?: Writable
  /** Where the emulated host's console goes; given, the kernel also says more. */
  readonly console?: Writable
  /** Ends the lab at once; `wait` then rejects with the signal's reason. */
  readonly abort?: AbortSignal
  /** Told what is being fetched, where something is. */
  readonly onFetch?: (message: string) => void
  /** Told when the emulated host is started and when it is up. */
  readonly onBoot?: (message: string) => void
}

export interface LabResult {
  /** The command's exit code; 128 + n when signal n ended it, 127 when it was not found, as in a shell. */
  readonly exitCode: number
  /** What it wrote, where no stream was given for it. */
  readonly stdout: string
  readonly stderr: string
  /** From the emulator's start until the command's. */
  readonly bootSeconds: number
  /** From the emulator's start to the command's end. */
  readonly seconds: number
  /** The last lines of the emulated host's console. */
  readonly console: readonly string[]
}

/**
 * Boots an emulated host whose KVM nests, and runs a command in it: this machine's root file system is there read-only, the
 * working directory is writable, and `/dev/kvm` is that host's.
 *
 * @throws ConfigError when an option is wrong or a part is missing and cannot be fetched, TimeoutError after
 * `options.timeout`, GuestError when the emulator or its guest dies before the command ends.
 */
export async function runInLab(command: readonly string[], options: LabOptions = {}): Promise<LabResult> {
  const lab = await Lab.start(command, options)
  return lab.wait()
}

/** A command that runs in a lab. */
export class Lab {
  readonly #running: RunningEmulator
  readonly #log = new ConsoleLog()
  readonly #result: Promise<LabResult>
  readonly #started = performance.now()
  #bootSeconds = 0
  #seconds = 0
  #exitCode: number | undefined
  #failure: Error | undefined

  /** Throws as `runInLab` does, for all that is found before the command runs. */
  static async start(command: readonly string[], options: LabOptions = {}): Promise<Lab> {
    if (command.length === 0) throw new ConfigError('command', '', 'is missing', 'say what to run in the lab')
    const memory = checkMemory(options.memory ?? DEFAULT_MEMORY)
    const cpus = checkCpus(options.cpus ?? DEFAULT_CPUS)
    checkTimeout(options.timeout)
    const { onFetch, onBoot } = options
    const shares = await sharesOf(options)
    options.abort?.throwIfAborted()

    const fetching = onFetch ? { onProgress: onFetch } : {}
    const emulator = await emulatorFor(options.vendor ?? DEFAULT_VENDOR, options.clock, fetching)
    const assets = await ensureAssets(['labKernel', 'busybox'], fetching)
    const tree = await ModuleTree.open(assets.labKernel.modulesDir)
    const modules = await tree.load(...emulator.guestModules, emulator.kvmModule)
    const cwd = shares.cwd
    const initrd = await buildInitramfs(
      guestFiles({
        busybox: assets.busybox.program,
        modules,
        emulator,
        shares: shares.list,
        visible: shares.visible,
        command,
        nestedKvm: [process.execPath, join(packageRoot(), 'dist/cli/main.js')],
        cwd,
        env: { ...labEnvironment(process.env, process.execPath, emulator.vendor), ...options.env },
        stdin: options.stdin !== undefined,
      }),
    )
    options.abort?.throwIfAborted()
    onBoot?.(`starting ${emulator.name}, Linux ${assets.labKernel.release}`)
    const running = await emulator.start({
      kernel: assets.labKernel.image,
      initrd,
      commandLine: commandLine(emulator, options.console !== undefined),
      memoryBytes: memory,
      cpus,
      shares: shares.list,
    })
    return new Lab(running, emulator.name, options)
  }

  /** A lab over an emulator that was started already; `Lab.start` is the usual way to one. `emulator` is its name. */
  constructor(running: RunningEmulator, emulator: string, options: LabOptions = {}) {
    this.#running = running
    this.#result = this.#run(emulator, options)
    // Whoever never waits is told of nothing, and is not ended by it either.
    this.#result.catch(() => {})
  }

  /** From the emulator's start until the command's; 0 before that. */
  get bootSeconds(): number {
    return this.#bootSeconds
  }

  /** The command's end. Rejects as `runInLab` says. The emulator is gone when this settles. */
  wait(): Promise<LabResult> {
    return this.#result
  }

  /** Sends a signal to the command and all that it started. False where none runs (yet), so that nobody got it. */
  signal(name: NodeJS.Signals): boolean {
    if (this.#bootSeconds === 0 || this.#exitCode !== undefined) return false
    this.#running.signals.write(`${name.replace(/^SIG/, '')}\n`)
    return true
  }

  /** Ends the lab at once; `wait` rejects with `reason`. */
  kill(reason: Error = new GuestError('the lab was ended before the command did')): void {
    this.#failure ??= reason
    this.#running.kill()
  }

  async #run(emulator: string, options: LabOptions): Promise<LabResult> {
    const running = this.#running
    running.console.on('data', (bytes: Buffer) => {
      this.#log.add(bytes)
      options.console?.write(bytes)
    })
    const stdout = forward(running.stdout, options.stdout, error => this.kill(error))
    const stderr = forward(running.stderr, options.stderr, error => this.kill(error))
    options.stdin?.pipe(running.stdin)
    running.stdin.resume()
    running.signals.resume()
    const { timeout } = options
    const timer = timeout === undefined ? undefined : setTimeout(() => this.#timedOut(timeout), timeout * 1000)
    const aborted = () => this.kill(asError(options.abort?.reason))
    options.abort?.addEventListener('abort', aborted)
    readLines(running.control, line => this.#hear(line, options))
    try {
      const end = await running.ended
      const [stdoutText, stderrText] = await Promise.all([stdout, stderr])
      if (this.#exitCode !== undefined) {
        return {
          exitCode: this.#exitCode,
          stdout: stdoutText,
          stderr: stderrText,
          bootSeconds: this.#bootSeconds,
          seconds: this.#seconds,
          console: this.#log.lines(TAIL_LINES),
        }
      }
      if (this.#failure) throw this.#failure
      const how = this.#log.panic() ?? end.message
      const ended = end.signal ? `by ${end.signal}` : `with code ${end.exitCode}`
      const what = `the lab's ${emulator} ended (${ended}) before the command did`
      throw new GuestError(how ? `${what}: ${how}` : what, this.#log.lines(TAIL_LINES).join('\n'))
    } finally {
      clearTimeout(timer)
      options.abort?.removeEventListener('abort', aborted)
      options.stdin?.unpipe(running.stdin)
      // A standard input that still waits for a key would keep the process alive.
      options.stdin?.pause()
    }
  }

  #hear(line: string, options: LabOptions): void {
    const seconds = (performance.now() - this.#started) / 1000
    if (line === 'ready') {
      this.#bootSeconds = seconds
      options.onBoot?.(`the lab is up after ${seconds.toFixed(1)} s`)
      return
    }
    const exit = /^exit (\d{1,3})$/.exec(line)
    if (!exit || this.#exitCode !== undefined) return
    this.#exitCode = Number(exit[1])
    this.#seconds = seconds
    // All is written out and synced when the guest says so: its way to power-off is of no use to anyone.
    this.#running.kill()
  }

  #timedOut(timeout: number): void {
    const where = this.#bootSeconds === 0 ? 'the lab did not come up' : 'the command in the lab did not end'
    this.kill(new TimeoutError(`${where} within ${timeout} s`, this.#log.lines(TAIL_LINES).join('\n')))
  }
}

async function emulatorFor(
  vendor: Vendor,
  clock: Clock | undefined,
  fetching: { onProgress?: Progress },
): Promise<Emulator> {
  if (clock !== undefined && clock !== 'host' && clock !== 'instructions') {
    throw new ConfigError('clock', clock, 'is not what a clock can count', 'give host or instructions')
  }
  switch (vendor) {
    case 'svm':
      // Each timer of the emulated host would have what is not mended deliver an interrupt twice.
      if (clock === 'instructions') await setUpLab(vendor, fetching)
      return qemuEmulator((await ensureAssets(['labQemu'], fetching)).labQemu, clock)
    case 'vmx':
      if (clock === 'host') {
        const remedy = 'leave it out, or use the svm lab'
        throw new ConfigError('clock', clock, 'is not to be had with vmx: Bochs counts instructions', remedy)
      }
      return bochsEmulator((await ensureAssets(['bochs'], fetching)).bochs)
    default:
      throw new ConfigError('vendor', vendor, 'is not an extension that can be emulated', 'give svm or vmx')
  }
}

/**
 * What the kernel is told beside what its emulator needs. Mitigations, audit and self-tests cost time and protect nobody here, and the
 * emulator's TSC needs no comparison with other clocks. A panic ends the emulator (`-no-reboot`) instead of hanging.
 */
function commandLine(emulator: Emulator, verbose: boolean): string {
  const words = [...emulator.commandLine, 'panic=-1', 'oops=panic', 'mitigations=off', 'audit=0', 'cryptomgr.notests']
  words.push('tsc=reliable', 'no_timer_check', 'random.trust_cpu=on', 'rcupdate.rcu_expedited=1')
  if (!verbose) words.push('quiet')
  return words.join(' ')
}

/** Passes a stream on, or collects it; resolves with what was collected once it has all been taken. */
function forward(from: Readable, to: Writable | undefined, failed: (error: Error) => void): Promise<string> {
  return new Promise(resolve => {
    if (to === undefined) {
      const pieces: Buffer[] = []
      from.on('data', piece => pieces.push(piece))
      from.once('close', () => resolve(Buffer.concat(pieces).toString()))
      return
    }
    // What is left must still be taken, or the stream would never close.
    const lost = (error?: Error) => {
      failed(error ?? new Error('the stream for its output was closed'))
      from.resume()
    }
    to.once('error', lost).once('close', lost)
    from.pipe(to, { end: false })
    from.once('close', () => {
      to.removeListener('error', lost).removeListener('close', lost)
      resolve('')
    })
  })
}

function readLines(from: Readable, take: (line: string) => void): void {
  let rest = ''
  from.on('data', (bytes: Buffer) => {
    const lines = (rest + bytes.toString('latin1')).split('\n')
    rest = lines.pop()!.slice(-1024)
    for (const line of lines) take(line.trim())
  })
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason))
}

async function sharesOf(options: LabOptions): Promise<{ list: Share[]; visible: string[]; cwd: string }> {
  const cwd = await directory('working directory', options.cwd ?? process.cwd())
  const writable = new Set<string>()
  for (const path of [cwd, ...(options.writable ?? [])]) {
    const real = await directory('writable directory', path)
    // The root itself stays read-only, and so do the devices and the kernel's own file systems.
    if (real !== '/') writable.add(real)
  }
  const needed = [dirname(process.execPath), packageDirectory(), cacheDirectory()]
  const visible = new Set<string>()
  for (const path of [...needed, ...(options.readable ?? [])]) {
    const real = await realpath(path).catch(() => undefined)
    if (real === undefined || writable.has(real)) continue
    if (GUEST_OWN_DIRECTORIES.some(own => isBelow(real, own))) visible.add(real)
  }
  const list: Share[] = [{ tag: 'root', path: '/', writable: false }]
  for (const path of writable) list.push({ tag: `share${list.length}`, path, writable: true })
  return { list, visible: [...visible], cwd }
}

function packageRoot(): string {
  return fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')
}

/** This package, and where it is installed also those that it depends on. */
function packageDirectory(): string {
  const own = packageRoot()
  return basename(dirname(own)) === 'node_modules' ? dirname(own) : own
}

async function directory(field: string, path: string): Promise<string> {
  const real = await realpath(resolve(path)).catch((error: NodeJS.ErrnoException) => {
    throw new ConfigError(field, path, `cannot be used (${error.code})`, 'give a directory that exists')
  })
  if (['/proc', '/sys', '/dev'].some(own => isBelow(real, own)) || GUEST_OWN_DIRECTORIES.includes(real)) {
    throw new ConfigError(field, path, 'the lab has its own directory in its place', 'use another directory')
  }
  return real
}

function isBelow(path: string, parent: string): boolean {
  return path === parent || path.startsWith(`${parent}/`)
}

function checkMemory(value: number | string): number {
  const memory = parseSize('memory', value)
  if (memory < LEAST_MEMORY) {
    throw new ConfigError('memory', value, 'is too little for the lab', 'give at least 512M')
  }
  if (memory > totalmem()) {
    const most = `${Math.floor(totalmem() / MIB)}M`
    throw new ConfigError('memory', value, 'is more than this machine has', `give at most ${most}`)
  }
  return memory
}

function checkCpus(cpus: number): number {
  if (Number.isInteger(cpus) && cpus >= 1 && cpus <= 16) return cpus
  throw new ConfigError('cpus', cpus, 'is not a number of processors', 'give 1 to 16')
}

function checkTimeout(timeout: number | undefined): void {
  // setTimeout takes at most 2^31 - 1 ms.
  if (timeout === undefined || (timeout > 0 && timeout <= 2_147_483)) return
  throw new ConfigError('timeout', timeout, 'is not a time', 'give seconds, above 0 and up to 2147483')
}
