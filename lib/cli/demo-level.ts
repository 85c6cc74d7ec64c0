import { GuestError, Machine } from '../index.js'
import { MARK } from './demo-image.js'

/** What a level says of itself. */
export interface LevelFacts {
  readonly kernel: string
  /** `vmx` or `svm`: the extension that its CPU shows. */
  readonly flag: string
  /** The signature in its hypervisor leaf; empty on bare metal. */
  readonly hypervisor: string
}

/** What comes up from the levels: a line each, behind `MARK`. */
export type LevelEvent =
  | (LevelFacts & { readonly level: number; readonly bootSeconds?: number })
  /** What is being done at a level. */
  | { readonly level: number; readonly doing: string }
  /** Everything above this level has powered off. */
  | { readonly level: number; readonly done: true }
  | { readonly level: number; readonly failed: string }

export interface BootOptions {
  /** The level that boots: 1 or 2. */
  readonly level: number
  readonly kernel: string
  readonly initrd: string
  readonly memory: string
  /** Milliseconds from its start to its power-off. */
  readonly timeout: number
  /** Ends it at once, with the signal's reason. */
  readonly abort?: AbortSignal
}

/** What the shell in a guest writes: no level, it does not know that. */
type GuestLine = Partial<LevelFacts> & { readonly level?: number; readonly status?: number }

/**
 * Boots the next level on this machine's KVM, tells what it and the levels above it tell, and returns once it has
 * powered off.
 * @throws {GuestError} it ended in another way, or did not say what it is
 */
export async function bootLevel(options: BootOptions, tell: (event: LevelEvent) => void): Promise<void> {
  const { level, timeout, abort } = options
  tell({ level, doing: `creating the L${level} machine` })
  const cmdline = 'console=ttyS0 panic=-1 quiet mitigations=off audit=0 cryptomgr.notests'
  const { kernel, initrd, memory } = options
  await using machine = await Machine.create({ kernel, initrd, memory, cmdline })
  const started = performance.now()
  const deadline = started + timeout
  let come = false
  let failed: string | undefined
  let failedLevel = level
  await machine.start()
  tell({ level, doing: `booting the L${level} kernel` })
  const reading = (async () => {
    for (;;) {
      const { groups } = await machine.console.expect(/@nested-kvm (\{.*\})\s*\r?\n/, {
        timeout: deadline - performance.now(),
      })
      const line = JSON.parse(groups[0]!) as GuestLine
      if (line.status !== undefined) {
        if (line.status !== 0) failed ??= `the program in L${level} ended with code ${line.status}`
      } else if (line.level === undefined) {
        come = true
        const { kernel = '', flag = '', hypervisor = '' } = line
        tell({ level, kernel, flag, hypervisor, bootSeconds: (performance.now() - started) / 1000 })
      } else {
        if ('failed' in line) {
          failed = String(line.failed)
          failedLevel = line.level
        } else {
          tell(line as LevelEvent)
        }
      }
    }
  })()
  // It ends with the machine: then there is nothing more to expect.
  const ended = machine.wait()
  const aborted = new Promise<never>((_, reject) => {
    abort?.addEventListener('abort', () => reject(abort.reason as Error), { once: true })
  })
  const problem = await Promise.race([ended.then(() => undefined), reading.catch((error: Error) => error), aborted])
  if (problem && machine.state !== 'ended') throw new LevelError(level, problem.message, machine.console.tail())
  const end = await ended
  await reading.catch(() => {})
  if (failed !== undefined) throw new LevelError(failedLevel, failed, machine.console.tail())
  if (end.reason === 'crash') throw new LevelError(level, `L${level} crashed: ${end.message}`, end.report)
  if (end.reason !== 'shutdown') throw new LevelError(level, `L${level} ended by ${end.reason}`, machine.console.tail())
  if (!come) throw new LevelError(level, `L${level} powered off without a word`, machine.console.tail())
  tell({ level, done: true })
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
