import { printJson } from './output.js'
import { catchSignals, Interrupted } from './signals.js'
import { StatusLine } from './status-line.js'

/** What has been gone through, of how much. */
export interface Progress {
  readonly done: number
  readonly total: number
}

export function percent({ done, total }: Progress): string {
  return `${total > 0 ? Math.floor((done / total) * 100) : 0} %`
}

/** `4.2 MiB`, `4 KiB` */
export function describeSize(bytes: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024
  return `${value.toFixed(1).replace(/\.0$/, '')} ${units[unit]}`
}

export interface LongWork {
  readonly signal: AbortSignal
  /** Changes what the status line says. */
  show(text: string): void
}

/**
 * Work that a person may wait for, with a status line where standard error is a terminal. A signal that asks us to end aborts
 * it, which leaves nothing half-done, and gives the exit code of that signal.
 */
export async function longWork(json: boolean, work: (tools: LongWork) => Promise<number>): Promise<number> {
  const signals = catchSignals()
  const status = new StatusLine(process.stderr.isTTY && !json ? process.stderr : undefined)
  try {
    return await work({ signal: signals.signal, show: text => status.show(text) })
  } catch (error) {
    const { reason } = signals.signal
    // What an abort throws on its way may be another error.
    if (!(reason instanceof Interrupted)) throw error
    status.close()
    if (json) printJson({ ok: false, reason: reason.message })
    else process.stderr.write(`nested-kvm: ${reason.message}\n`)
    return reason.code
  } finally {
    status.close()
    signals.close()
  }
}
