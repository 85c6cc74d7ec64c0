/**
 * What is said on the control socket of a machine: a line of JSON for each request, a line of JSON for each answer, in order.
 * An answer has `ok`; where that is false, `reason` says why. After the answer to `console` the connection is the console itself:
 * the last output and all that follows, byte for byte, and what is typed the other way; half-closing it detaches.
 */
import type { SnapshotInfo } from '../index.js'
import type { SaveRequest, Saving } from './saver.js'

/** Requests without members. */
const SIMPLE = ['status', 'pause', 'resume', 'reset', 'power-off', 'stop', 'cancel', 'console'] as const
export type SimpleRequest = (typeof SIMPLE)[number]

export type ControlRequest =
  | ({ readonly do: 'snapshot' } & SaveRequest)
  /** Default: vCPU 0. */
  | { readonly do: 'nmi'; readonly vcpu?: number }
  | { readonly do: SimpleRequest }

export interface ControlStatus {
  readonly ok: true
  readonly state: string
  readonly pid: number
  /** Where it was given one. */
  readonly name?: string
  readonly vcpus: number
  /** Bytes. */
  readonly memory: number
  /** The kernel's path; null where it was given as bytes. */
  readonly kernel: string | null
  /** Seconds since its process began. */
  readonly uptime: number
  /** The save that is under way. */
  readonly saving?: Saving
}

export type ControlAnswer =
  | ({ readonly ok: true; readonly state?: string } & Partial<SnapshotInfo>)
  | ControlStatus
  | { readonly ok: false; readonly reason: string }

/** Bytes of one line. The longest that makes sense has a path in it, which Linux bounds at 4096. */
export const MAX_LINE = 64 * 1024

/** The members that requests have, and their types. */
const MEMBERS: Readonly<Record<string, Readonly<Record<string, 'string' | 'boolean' | 'number'>>>> = {
  snapshot: { directory: 'string', differential: 'boolean', stop: 'boolean' },
  nmi: { vcpu: 'number' },
}
const ALL: readonly string[] = [...Object.keys(MEMBERS), ...SIMPLE]

/**
 * Reads one line of a client, which may be anything.
 * @throws {TypeError} it is no request; the message says why
 */
export function parseRequest(line: Uint8Array): ControlRequest {
  const value = parseJson(line)
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new TypeError('a JSON object is needed')
  const { do: what, ...members } = value as Record<string, unknown>
  if (typeof what !== 'string' || !ALL.includes(what)) {
    throw new TypeError(`do: ${show(what)}: it is none of ${ALL.join(', ')}`)
  }
  const known = new Map(Object.entries(MEMBERS[what] ?? {}))
  for (const [name, member] of Object.entries(members)) {
    const wanted = known.get(name)
    if (wanted === undefined) throw new TypeError(`${show(name)}: ${what} has no such member`)
    if (typeof member !== wanted) throw new TypeError(`${name}: ${show(member)}: a ${wanted} is needed`)
  }
  if (what === 'nmi') return { ...members, do: what }
  if (what !== 'snapshot') return { do: what as SimpleRequest }
  const { directory = '' } = members as { directory?: string }
  if (directory === '' || directory.includes('\0'))
    throw new TypeError(`directory: ${show(directory)}: a path is needed`)
  return { ...members, do: what, directory }
}

function parseJson(line: Uint8Array): unknown {
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(line)
  } catch {
    throw new TypeError('the line is not UTF-8')
  }
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new TypeError(`the line is not JSON: ${(error as Error).message.slice(0, 100)}`)
  }
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'missing'
  return text.length > 100 ? `${text.slice(0, 100)}...` : text
}
