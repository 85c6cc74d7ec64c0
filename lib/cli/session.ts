import { homedir } from 'node:os'
import { resolve } from 'node:path'
import type { Command } from 'commander'
import { GuestError, type Machine, type MachineEnd } from '../index.js'
import { type Controlled, ControlServer } from './control.js'
import { describeFailure, exitCode, printJson } from './output.js'
import { describeSize, percent } from './progress.js'
import { Saver } from './saver.js'
import { catchSignals, Interrupted } from './signals.js'
import { StatusLine } from './status-line.js'
import { Terminal, type TerminalKey, terminalHelp } from './terminal.js'

/** The options of the commands that have a machine in this terminal. */
export interface SessionOptions {
  readonly control?: string
  readonly snapshotTo?: string
  readonly json?: boolean
}

/** Exit codes of these commands beside those that all subcommands share. */
const sessionExitCode = { reset: 3, left: 4 } as const

export const sessionHelp = `
Exit code:
  0    the guest powered off
  1    the guest crashed; its registers are on standard error
  2    something asked for is wrong, or this host cannot do it
  3    the guest reset itself
  4    left with Ctrl-A x, or stopped through its control socket
  n    the guest wrote to its debug-exit device: (value * 2) + 1
  129, 130, 143   ended by SIGHUP, SIGINT, SIGTERM

Keys:
${terminalHelp.map(line => `  ${line}`).join('\n')}

Input that is no terminal is forwarded as it is; its end does not end the machine.

The control socket takes a line of JSON for each request, and answers each with a line: {"do":"status"}, "pause", "resume",
"stop", "cancel" (the snapshot that is being made), {"do":"snapshot","directory":"...","differential":true,"stop":true}.
Only this user can reach it. It is what \`nested-kvm snapshot --control\` talks to.`

export function addSessionOptions(command: Command): Command {
  return command
    .option('--control <socket>', 'a Unix socket to steer the machine through while it runs')
    .option('--snapshot-to <directory>', 'where Ctrl-A s saves to; it asks otherwise')
    .option('--json', 'print one line of JSON at the end; the console is on standard error then')
}

/**
 * A machine with its console on this terminal, from its making to its end: `make` gives one that does not run yet. Returns the
 * exit code.
 */
export async function runSession(
  make: (signal: AbortSignal) => Promise<Machine>,
  { control: path, snapshotTo, json = false }: SessionOptions,
): Promise<number> {
  const signals = catchSignals()
  const { signal } = signals
  let ready!: (controlled: Controlled) => void
  let failed!: (error: Error) => void
  const controlled = new Promise<Controlled>((resolve, reject) => {
    ready = resolve
    failed = reject
  })
  let control: ControlServer | undefined
  try {
    if (path !== undefined) control = await ControlServer.listen(path, controlled)
    signal.throwIfAborted()
    const machine = await make(signal)
    const saver = new Saver(machine)
    const end = await runAttached(machine, saver, { snapshotTo, json, signal }, () => ready({ machine, saver }))
    signal.throwIfAborted()
    return reportEnd(end, json)
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error
    if (json) printJson({ ok: false, reason: error.message })
    return error.code
  } finally {
    failed(new GuestError('there is no machine'))
    await control?.close()
    signals.close()
  }
}

interface Attachment {
  readonly snapshotTo: string | undefined
  readonly json: boolean
  readonly signal: AbortSignal
}

async function runAttached(
  machine: Machine,
  saver: Saver,
  { snapshotTo, json, signal }: Attachment,
  started: () => void,
): Promise<MachineEnd> {
  const onKey = (key: TerminalKey) => {
    if (key === 'help') terminal.writeLines(terminalHelp)
    else if (key === 'save') void saveByKey(terminal, saver, snapshotTo)
    else void machine.stop()
  }
  const output = json ? process.stderr : process.stdout
  const terminal = new Terminal({ input: process.stdin, output, console: machine.console, onKey })
  const stop = () => void machine.stop()
  signal.addEventListener('abort', stop, { once: true })
  if (signal.aborted) stop()
  try {
    if (machine.state === 'created') await machine.start()
    else if (machine.state === 'paused') await machine.resume()
    started()
    return await machine.wait()
  } finally {
    signal.removeEventListener('abort', stop)
    terminal.close()
    await machine.stop()
  }
}

/** Saves to `snapshotTo`, or asks where to, and tells on the terminal what came of it. */
async function saveByKey(terminal: Terminal, saver: Saver, snapshotTo: string | undefined): Promise<void> {
  const say = (text: string) => terminal.writeLines([`[${text}]`])
  if (saver.current) {
    say(`a snapshot to ${saver.current.directory} is being made: ${percent(saver.current)}`)
    return
  }
  const answer = snapshotTo ?? (await terminal.ask('Save a snapshot to which directory? '))
  if (!answer) {
    say('not saved')
    return
  }
  const directory = resolve(answer.replace(/^~(?=\/|$)/, homedir()))
  say(`saving a snapshot to ${directory}`)
  const status = new StatusLine(process.stderr.isTTY ? process.stderr : undefined)
  const look = setInterval(() => {
    if (saver.current) status.show(`saving: ${percent(saver.current)}`)
  }, 200)
  const started = performance.now()
  try {
    const { bytes } = await saver.save({ directory })
    const seconds = ((performance.now() - started) / 1000).toFixed(1)
    status.close()
    say(`saved: ${describeSize(bytes)} in ${seconds} s`)
  } catch (error) {
    status.close()
    say(`not saved: ${describeFailure(error).reason}`)
  } finally {
    clearInterval(look)
  }
}

/** Says why the machine ended, on standard error unless it powered off, or as JSON; returns the exit code. */
function reportEnd(end: MachineEnd, json: boolean): number {
  if (end.reason === 'crash') throw new GuestError(`the guest crashed: ${end.message}`, end.report)
  const [code, text] = endOf(end)
  if (json) printJson({ ok: code === exitCode.ok, end: end.reason, exitCode: code })
  else if (text) process.stderr.write(`nested-kvm: ${text}\n`)
  return code
}

function endOf(end: Exclude<MachineEnd, { reason: 'crash' }>): [code: number, text?: string] {
  switch (end.reason) {
    case 'shutdown':
      return [exitCode.ok]
    case 'reset':
      return [sessionExitCode.reset, 'the guest reset itself']
    case 'debug-exit':
      // An exit code is one byte, and a larger one must not turn into success.
      return [end.code & 0xff || exitCode.failed, `the guest ended through its debug-exit device with code ${end.code}`]
    case 'stopped':
      return [sessionExitCode.left, 'stopped']
  }
}
