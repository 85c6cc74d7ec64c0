import { homedir } from 'node:os'
import { resolve } from 'node:path'
import { type Command, Option } from 'commander'
import { ConfigError, GuestError, type GuestPanic, type Machine, type MachineEnd, type TripleFault } from '../index.js'
import { type Controlled, ControlServer } from './control.js'
import { type ControlPlace, makeRuntimeDirectory, placeOf } from './control-names.js'
import { describeFailure, exitCode, printJson } from './output.js'
import { describeSize, percent } from './progress.js'
import { Saver } from './saver.js'
import { catchSignals, Interrupted } from './signals.js'
import { StatusLine } from './status-line.js'
import { Terminal, type TerminalKey, terminalHelp } from './terminal.js'

/** The options of the commands that have a machine in this terminal. */
export interface SessionOptions {
  readonly name?: string
  readonly control?: string
  readonly snapshotTo?: string
  readonly json?: boolean
}

/** What a reset and a triple fault do, where that was asked for. */
export interface ResetOptions {
  /** False with `--no-reboot`. */
  readonly reboot: boolean
  readonly onTripleFault?: TripleFault
}

/** As the library takes it: what was not asked for stays as it is. */
export function resetOptions({ reboot, onTripleFault }: ResetOptions): {
  readonly reboot?: boolean
  readonly onTripleFault?: TripleFault
} {
  return { ...(reboot ? {} : { reboot }), ...(onTripleFault && { onTripleFault }) }
}

/** Exit codes of these commands beside those that all subcommands share. */
const sessionExitCode = { reset: 3, left: 4 } as const

export const sessionHelp = `
Exit code:
  0    the guest powered off
  1    the guest crashed; its registers are on standard error
  2    something asked for is wrong, or this host cannot do it
  3    the guest reset itself, with --no-reboot
  4    left with Ctrl-A x, or stopped through its control socket
  n    the guest wrote to its debug-exit device: (value * 2) + 1
  129, 130, 143   ended by SIGHUP, SIGINT, SIGTERM

Keys:
${terminalHelp.map(line => `  ${line}`).join('\n')}

Input that is no terminal is forwarded as it is; its end does not end the machine.

A machine with a name is seen by \`nested-kvm ps\` and steered by \`nested-kvm ctl <name>\`: paused, reset, saved, attached to. What they
talk to is a Unix socket that only this user can reach: a line of JSON for each request, a line for each answer. {"do":"status"},
"pause", "resume", "reset", "power-off" (the power button), "stop" (the plug), "cancel" (the snapshot that is being made),
{"do":"nmi","vcpu":0}, {"do":"snapshot","directory":"...","differential":true,"stop":true}, and "console": after its answer the
connection is the console.`

export function addSessionOptions(command: Command): Command {
  return command
    .option(
      '--name <name>',
      'what `nested-kvm ps` and `nested-kvm ctl` know the machine by; its network cards keep their addresses',
    )
    .addOption(new Option('--control <socket>', 'a path for its control socket instead of a name').conflicts('name'))
    .option('--no-reboot', 'end with a reset of the guest, which boots again otherwise')
    .addOption(
      new Option('--on-triple-fault <what>', 'crash, with a report, unless told otherwise').choices(['crash', 'reset']),
    )
    .option('--snapshot-to <directory>', 'where Ctrl-A s saves to; it asks otherwise')
    .option('--json', 'print one line of JSON at the end; the console is on standard error then')
}

/**
 * A machine with its console on this terminal, from its making to its end: `make` gives one that does not run yet. Returns the
 * exit code.
 */
export async function runSession(
  make: (signal: AbortSignal) => Promise<Machine>,
  { name, control: path, snapshotTo, json = false }: SessionOptions,
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
    const place = controlPlace(name, path)
    if (place) control = await ControlServer.listen(place, controlled)
    signal.throwIfAborted()
    const machine = await make(signal)
    const saver = new Saver(machine)
    const { end, panic } = await runAttached(machine, saver, { snapshotTo, json, signal }, () =>
      ready({ machine, saver }),
    )
    signal.throwIfAborted()
    return reportEnd(end, panic, json)
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

function controlPlace(name: string | undefined, path: string | undefined): ControlPlace | undefined {
  if (path !== undefined) return { path, field: 'control', value: path }
  if (name === undefined) return undefined
  if (name.includes('/')) throw new ConfigError('name', name, 'it is a path', 'give a name, or the path to --control')
  const place = placeOf(name)
  makeRuntimeDirectory(name)
  return place
}

interface Outcome {
  readonly end: MachineEnd
  /** What the guest told of before it ended. */
  readonly panic: GuestPanic | undefined
}

/** Messages that differ in an offset are others. */
const MOST_WARNINGS = 10

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
): Promise<Outcome> {
  let panic: GuestPanic | undefined
  machine.on('panic', told => {
    panic = told
    terminal.writeLines(['[the guest has panicked]'])
  })
  machine.on('reset', () => {
    if (machine.state === 'ended') return
    panic = undefined
    terminal.writeLines(['[the machine was reset, and boots again]'])
  })
  // Each once: a guest may ask for what fails again and again.
  const told = new Set<string>()
  machine.on('warning', (device, { message }) => {
    const text = `[${device}: ${message}]`
    if (told.size > MOST_WARNINGS || told.has(text)) return
    told.add(text)
    terminal.writeLines([text])
  })
  const onKey = (key: TerminalKey) => {
    if (key === 'help') terminal.writeLines(terminalHelp)
    else if (key === 'save') void saveByKey(terminal, saver, snapshotTo)
    else void machine.stop()
  }
  const output = json ? process.stderr : process.stdout
  const terminal = new Terminal({ input: process.stdin, output, console: machine.console, onKey })
  // The guest's programs draw for a terminal of this size, where its console can tell them.
  const resize = () => machine.console.resize(process.stdout.columns, process.stdout.rows)
  if (!json && process.stdout.isTTY) {
    resize()
    process.stdout.on('resize', resize)
  }
  const stop = () => void machine.stop()
  signal.addEventListener('abort', stop, { once: true })
  if (signal.aborted) stop()
  try {
    if (machine.state === 'created') await machine.start()
    else if (machine.state === 'paused') await machine.resume()
    started()
    const end = await machine.wait()
    return { end, panic }
  } finally {
    signal.removeEventListener('abort', stop)
    process.stdout.off('resize', resize)
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
function reportEnd(end: MachineEnd, panic: GuestPanic | undefined, json: boolean): number {
  if (end.reason === 'crash') throw new GuestError(`the guest crashed: ${end.message}`, end.report)
  const [code, text] = endOf(end)
  const tail = end.reason === 'reset' && { tail: end.tail }
  if (json) printJson({ ok: code === exitCode.ok, end: end.reason, exitCode: code, ...tail, ...(panic && { panic }) })
  else if (text) process.stderr.write(`nested-kvm: ${panic ? 'the guest panicked; ' : ''}${text}\n`)
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
