import { ConfigError, GuestError, KvmError, NestedStateError, SnapshotError, TimeoutError } from '../errors.js'
import { Interrupted } from './signals.js'

/** The exit codes of every subcommand. A signal ends a command with 128 plus its number. */
export const exitCode = {
  ok: 0,
  /** The guest failed, or the answer is no. */
  failed: 1,
  /** What was asked for is wrong or cannot be done here. */
  usage: 2,
  /** It took too long, as with timeout(1). */
  timeout: 124,
} as const

/** Writes one JSON value and a newline to standard output. */
export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

/** What a failure looks like from outside: the lines for people, the one line for programs, the exit code. */
export interface Failure {
  readonly reason: string
  readonly details: string
  readonly code: number
}

/** Turns whatever was thrown into a reason of one line, details of any length, and the exit code. */
export function describeFailure(error: unknown): Failure {
  const stack = process.env.NESTED_KVM_DEBUG === '1' && error instanceof Error ? (error.stack ?? '') : ''
  const message = error instanceof Error ? error.message : String(error)
  const [firstLine = '', ...rest] = message.split('\n')
  const failure = (code: number, details: string): Failure => ({
    reason: firstLine,
    details: [details, stack].filter(Boolean).join('\n'),
    code,
  })
  if (error instanceof Interrupted) return failure(error.code, '')
  const refused = [ConfigError, KvmError, SnapshotError, NestedStateError].some(kind => error instanceof kind)
  if (refused) return failure(exitCode.usage, rest.join('\n'))
  if (error instanceof GuestError) return failure(exitCode.failed, [...rest, error.report].join('\n').trim())
  if (error instanceof TimeoutError) return failure(exitCode.timeout, rest.join('\n'))
  const hint = stack ? '' : 'this is not expected; NESTED_KVM_DEBUG=1 shows where it comes from'
  return failure(exitCode.failed, [...rest, hint].filter(Boolean).join('\n'))
}

/**
 * Reports what was thrown and returns the exit code: `nested-kvm: <reason>` on standard error with the details below
 * it, or with `json` only `{"ok":false,"reason":...}` on standard output.
 */
export function reportFailure(error: unknown, json: boolean): number {
  const { reason, details, code } = describeFailure(error)
  if (json) printJson({ ok: false, reason })
  else process.stderr.write(`nested-kvm: ${reason}\n${details ? `${details}\n` : ''}`)
  return code
}
