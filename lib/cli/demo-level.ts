import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { GuestError, MARK, Machine, QUICK_CMDLINE } from '../index.js'

/** What a level says of itself. */
export interface LevelFacts {
  readonly kernel: string
  /** `vmx` or `svm`: the extension that its CPU shows. */
  readonly flag: string
  /** The signature in its hypervisor leaf; empty on bare metal. */
  readonly hypervisor: string
}

/**
 * What comes up from the levels: a line each, behind `MARK`. None has a time in it: the clocks of the levels are not that of whoever hears
 * of them.
 */
export type LevelEvent =
  | (LevelFacts & { readonly level: number })
  /** What begins at a level, until the next of its events. */
  | { readonly level: number; readonly doing: string }
  /** The last level counts, and this is where it is. */
  | { readonly level: number; readonly count: number }
  /** The machine was saved with all above it, and its process is about to end. */
  | { readonly level: number; readonly saved: { readonly bytes: number } }
  /** In another process it goes on. */
  | { readonly level: number; readonly restored: true }
  /** Everything above this level has powered off. */
  | { readonly level: number; readonly done: true }
  | { readonly level: number; readonly failed: string }

interface FollowOptions {
  /** Milliseconds until its power-off. */
  readonly timeout: number
  /** Ends it at once, with the signal's reason. */
  readonly abort?: AbortSignal
}

export interface BootOptions extends FollowOptions {
  /** The level that boots: 1 or higher. */
  readonly level: number
  readonly kernel: string
  readonly initrd: string
  readonly memory: string
  /** Where the machine is saved once the last level counts; then it ends. */
  readonly saveTo?: string
}

/**
 * Boots the next level on this machine's KVM, tells what it and the levels above it tell, and returns once it has
 * powered off, or was saved: then what it had written of a line.
 * @throws {LevelError} it ended in another way, or did not say what it is
 */
export async function bootLevel(options: BootOptions, tell: (event: LevelEvent) => void): Promise<string | undefined> {
  const { level, kernel, initrd, memory } = options
  tell({ level, doing: `creating the L${level} machine` })
  await using machine = await Machine.create({ kernel, initrd, memory, cmdline: QUICK_CMDLINE, reboot: false })
  await machine.start()
  tell({ level, doing: `booting the L${level} kernel` })
  return await follow(machine, options, tell)
}

export interface RestoreOptions extends FollowOptions {
  /** The snapshot of L1. */
  readonly directory: string
  /** What L1 had written of a line. */
  readonly begun: string
}

/**
 * Lets L1, saved with all above it, go on in this process, tells what they tell and returns once L1 has powered off.
 * @throws {LevelError} it ended in another way
 */
export async function restoreLevel(options: RestoreOptions, tell: (event: LevelEvent) => void): Promise<void> {
  tell({ level: 1, doing: 'restoring L1' })
  await using machine = await Machine.restore(options.directory)
  await machine.resume()
  tell({ level: 1, restored: true })
  await follow(machine, { ...options, level: 1 }, tell)
}

/** `restoreLevel` in a process of its own. */
export async function restoreInNewProcess(
  { directory, begun, timeout, abort }: RestoreOptions,
  tell: (event: LevelEvent) => void,
): Promise<void> {
  const main = fileURLToPath(new URL('./main.js', import.meta.url))
  const args = ['demo', '--level', '0', '--timeout', String(timeout / 1000), '--restore', directory, '--begun', begun]
  const child = spawn(process.execPath, [main, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
    ...(abort && { signal: abort }),
  })
  let failure: LevelError | undefined
  let rest = ''
  child.stdout.on('data', (bytes: Buffer) => {
    const lines = (rest + bytes.toString()).split('\n')
    rest = lines.pop()!
    for (const line of lines) {
      const event = JSON.parse(line.slice(MARK.length)) as LevelEvent
      if ('failed' in event) failure = new LevelError(event.level, event.failed, '')
      else tell(event)
    }
  })
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', error => reject(abort?.aborted ? (abort.reason as Error) : error))
    child.once('close', resolve)
  })
  if (failure) throw failure
  if (code !== 0) throw new LevelError(1, `the process that restored L1 ended with code ${code}`, '')
}

/** What the shell in a guest writes: no level, it does not know that. */
type GuestLine = Partial<LevelFacts> & { readonly level?: number; readonly status?: number; readonly count?: number }

/** Where the last level is with its counting when L1 is saved. */
const SAVE_AT = 5

type Following = Pick<BootOptions, 'level' | 'timeout' | 'abort' | 'saveTo'> & { readonly begun?: string }

async function follow(
  machine: Machine,
  { level, timeout, abort, saveTo, begun }: Following,
  tell: (event: LevelEvent) => void,
): Promise<string | undefined> {
  const { console } = machine
  const started = performance.now()
  // A restored one has said so before.
  let come = begun !== undefined
  let failure: LevelError | undefined
  let count = 0
  const hear = (line: string) => {
    const json = /@nested-kvm (\{.*\})/.exec(line)?.[1]
    if (json === undefined) return
    const said = JSON.parse(json) as GuestLine
    if (said.status !== undefined) {
      if (said.status !== 0) {
        failure ??= new LevelError(level, `the program in L${level} ended with code ${said.status}`, '')
      }
    } else if (said.count !== undefined) {
      count = said.count
      tell({ level: said.level ?? level, count })
    } else if (said.level !== undefined) {
      if ('failed' in said) failure = new LevelError(said.level, String(said.failed), '')
      else tell(said as LevelEvent)
    } else {
      come = true
      const { kernel = '', flag = '', hypervisor = '' } = said
      tell({ level, kernel, flag, hypervisor })
    }
  }
  const reading = async (): Promise<string> => {
    let line = begun ?? ''
    while (saveTo === undefined || count < SAVE_AT) {
      const { before } = await console.expect('\n', { timeout: started + timeout - performance.now() })
      hear(line + before)
      line = ''
    }
    await machine.pause()
    tell({ level, doing: `saving L${level}` })
    const { bytes } = await machine.snapshot(saveTo)
    const lines = console.takeText().split('\n')
    const left = lines.pop()!
    lines.forEach(hear)
    tell({ level, saved: { bytes } })
    return left
  }
  const aborted = new Promise<never>((_, reject) => {
    abort?.addEventListener('abort', () => reject(abort.reason as Error), { once: true })
  })
  const read = reading()
  const ended = machine.wait()
  try {
    // Where the machine has ended, the rest of what it said is in the console.
    const left = await Promise.race([read, ended.then(() => read.catch(() => undefined)), aborted])
    if (left !== undefined) return left
  } catch (error) {
    if (abort?.aborted || machine.state !== 'ended')
      throw new LevelError(level, (error as Error).message, console.tail())
  }
  const end = await ended
  if (failure) throw new LevelError(failure.level, failure.message, console.tail())
  if (end.reason === 'crash') throw new LevelError(level, `L${level} crashed: ${end.message}`, end.report)
  if (end.reason !== 'shutdown') throw new LevelError(level, `L${level} ended by ${end.reason}`, console.tail())
  if (!come) throw new LevelError(level, `L${level} powered off without a word`, console.tail())
  tell({ level, done: true })
  return undefined
}

/** A level that failed. */
export class LevelError extends GuestError {
  readonly level: number

  constructor(level: number, reason: string, report: string) {
    super(reason, report)
    this.level = level
  }
}

/** Writes an event for the level below. */
export function tellBelow(event: LevelEvent): void {
  process.stdout.write(`${MARK}${JSON.stringify(event)}\n`)
}
