import { resolve } from 'node:path'
import { Command } from 'commander'
import { ConfigError, readSnapshot, SnapshotError, type SnapshotInfo, squashSnapshot, verifyMemory } from '../index.js'
import { ControlClient } from './control-client.js'
import type { ControlStatus } from './control-protocol.js'
import { exitCode, printJson, reportFailure } from './output.js'
import { describeSize, type LongWork, longWork, percent } from './progress.js'

interface JsonFlag {
  readonly json?: boolean
}

interface SnapshotFlags extends JsonFlag {
  readonly control?: string
  readonly differential?: boolean
  readonly stop?: boolean
}

/** Milliseconds between two looks at how far a save is. */
const LOOK = 200

const HELP = `
The machine is one of \`nested-kvm run --control <socket>\` or \`restore --control <socket>\`; it pauses while it is saved. The
directory may be absent, empty, or a snapshot that is replaced: at any moment there is the old one or the new one whole.
Ctrl-C cancels the save; the machine then goes on as if nothing had been asked.

Exit code: 0 if it is saved, 1 if not (the machine goes on), 2 where no machine answers, 130 after Ctrl-C.

Examples:
  nested-kvm snapshot --control vm.sock snap
  nested-kvm snapshot --control vm.sock monday --differential
  nested-kvm snapshot --control vm.sock snap --stop && nested-kvm restore snap
  nested-kvm snapshot verify snap
  nested-kvm snapshot squash monday whole`

/** `nested-kvm snapshot`: saves a machine that runs elsewhere, and what there is to do with a saved one. */
export function snapshotCommand(): Command {
  const verify = new Command('verify')
    .description('read a snapshot and all it is based on, and check it')
    .argument('<directory>', 'a snapshot')
    .option('--json', 'print one line of JSON')
    .addHelpText('after', '\nExit code: 0 if every byte is what was written, 1 if not; what is wrong is named.')
    .action(async (directory: string, _flags: JsonFlag, command: Command) => {
      process.exitCode = await verifySnapshot(directory, json(command))
    })
  const squash = new Command('squash')
    .description('make one full snapshot of a differential and all it is based on')
    .argument('<directory>', 'a snapshot')
    .argument('<target>', 'where to; it may be the same')
    .option('--json', 'print one line of JSON')
    .addHelpText(
      'after',
      `
It is the same moment of the same machine: differentials that are based on it stay valid if it takes its place.

Exit code: 0 if it is made, 2 if not: what is wrong is named, and nothing is left behind.`,
    )
    .action(async (directory: string, target: string, _flags: JsonFlag, command: Command) => {
      process.exitCode = await squashTo(directory, target, json(command))
    })
  return new Command('snapshot')
    .description('save a running machine to a directory')
    .argument('[directory]', 'where to')
    .option('--control <socket>', 'the control socket of the machine')
    .option('--differential', 'save only what was written since its last snapshot, which stays needed')
    .option('--stop', 'end the machine with its snapshot')
    .option('--json', 'print one line of JSON')
    .addHelpText('after', HELP)
    .addCommand(verify)
    .addCommand(squash)
    .action(async (directory: string | undefined, flags: SnapshotFlags) => {
      process.exitCode = await takeSnapshot(directory, flags)
    })
}

/** `--json` may stand before or after the name of the subcommand. */
function json(command: Command): boolean {
  return command.optsWithGlobals<JsonFlag>().json === true
}

async function takeSnapshot(given: string | undefined, flags: SnapshotFlags): Promise<number> {
  const { control, differential = false, stop = false, json = false } = flags
  if (control === undefined) {
    throw new ConfigError(
      'control',
      '',
      'a machine to save is needed',
      'give --control, as its `nested-kvm run` was given',
    )
  }
  if (given === undefined) {
    throw new ConfigError('directory', '', 'a place to save to is needed', 'name a directory after the options')
  }
  // The machine may have another working directory.
  const directory = resolve(given)
  return longWork(json, async work => {
    const started = performance.now()
    const machine = await ControlClient.connect(control)
    // Requests of one connection wait for each other: this one watches.
    const watch = await ControlClient.connect(control)
    work.show('saving')
    const look = setInterval(() => void attend(watch, work), LOOK)
    try {
      const answer = await machine.ask({ do: 'snapshot', directory, differential, stop })
      const { id, bytes, pages } = answer as SnapshotInfo
      const seconds = Math.round(performance.now() - started) / 1000
      if (json) printJson({ ok: true, directory, id, bytes, pages, differential, stopped: stop, seconds })
      else
        process.stdout.write(
          `saved ${directory}: ${describeSize(bytes)} in ${seconds.toFixed(1)} s${stop ? '; stopped' : ''}\n`,
        )
      return exitCode.ok
    } finally {
      clearInterval(look)
      machine.close()
      watch.close()
    }
  })
}

/** Shows how far the save is, or ends it. If the machine is gone, the connection that waits for the save is told. */
async function attend(watch: ControlClient, { signal, show }: LongWork): Promise<void> {
  const request = { do: signal.aborted ? ('cancel' as const) : ('status' as const) }
  const answer = (await watch.ask(request).catch(() => undefined)) as ControlStatus | undefined
  if (answer?.saving) show(`saving: ${percent(answer.saving)}`)
}

function verifySnapshot(directory: string, json: boolean): Promise<number> {
  return longWork(json, async ({ signal, show }) => {
    let bytes = 0
    const onProgress = (done: number, total: number) => {
      bytes = total
      show(`checking memory: ${percent({ done, total })}`)
    }
    try {
      await verifyMemory(directory, { signal, onProgress })
    } catch (error) {
      if (!(error instanceof SnapshotError)) throw error
      // It was asked, and this is the answer.
      reportFailure(error, json)
      return exitCode.failed
    }
    const { id, created, chain } = await readSnapshot(directory)
    if (json) printJson({ ok: true, directory: chain[0], id, created, chain, bytes })
    else {
      const based = chain.length > 1 ? `, with ${chain.length - 1} that it is based on` : ''
      process.stdout.write(`${directory}: intact${based}: ${describeSize(bytes)} of memory checked\n`)
    }
    return exitCode.ok
  })
}

function squashTo(directory: string, target: string, json: boolean): Promise<number> {
  return longWork(json, async ({ signal, show }) => {
    const started = performance.now()
    const onProgress = (done: number, total: number) => show(`squashing: ${percent({ done, total })}`)
    const { directory: place, id, bytes, pages } = await squashSnapshot(directory, target, { signal, onProgress })
    const seconds = Math.round(performance.now() - started) / 1000
    if (json) printJson({ ok: true, directory: place, id, bytes, pages, seconds })
    else process.stdout.write(`saved ${place}: ${describeSize(bytes)} in ${seconds.toFixed(1)} s\n`)
    return exitCode.ok
  })
}
