import { resolve } from 'node:path'
import { Command, InvalidArgumentError } from 'commander'
import type { SnapshotInfo } from '../index.js'
import { ControlClient } from './control-client.js'
import type { ControlRequest, ControlStatus } from './control-protocol.js'
import { exitCode, printJson } from './output.js'
import { describeSize, type LongWork, longWork, percent } from './progress.js'
import { describeUptime } from './ps.js'
import { catchSignals, Interrupted } from './signals.js'
import { Terminal, type TerminalKey } from './terminal.js'

interface JsonFlag {
  readonly json?: boolean
}

interface SnapshotFlags extends JsonFlag {
  readonly differential?: boolean
  readonly stop?: boolean
}

/** Milliseconds between two looks at how far a save is. */
const LOOK = 200

const HELP = `
<machine> is the name that \`nested-kvm run --name\` was given (\`nested-kvm ps\` lists them), or the path, with a slash in it, of the
socket that \`--control\` was given.

Exit code: 0 if it is done, 1 if the machine says no, 2 where no machine answers.

Examples:
  nested-kvm ctl vm1 status
  nested-kvm ctl vm1 snapshot snap --stop && nested-kvm restore snap
  nested-kvm ctl vm1 console
  nested-kvm ctl ./vm.sock reset`

const SNAPSHOT_HELP = `
The machine pauses while it is saved. The directory may be absent, empty, or a snapshot that is replaced: at any moment there is the
old one or the new one whole. Ctrl-C cancels the save; the machine then goes on as if nothing had been asked.

Exit code: 0 if it is saved, 1 if not (the machine goes on), 2 where no machine answers, 130 after Ctrl-C.`

const CONSOLE_HELP = `
The last output comes first. Others may be attached at the same time. The machine goes on when you leave.

Keys:
  Ctrl-A x       leave
  Ctrl-A h       this help
  Ctrl-A Ctrl-A  send Ctrl-A to the guest`

const SIMPLE = {
  pause: 'take its vCPUs out of the guest',
  resume: 'let a paused machine go on',
  reset: 'reset it, as its reset button does: it boots again',
  'power-off': 'press its power button: a guest that attends to it powers off in its time',
  stop: 'end it at once, as pulling its plug does',
} as const

/** `nested-kvm ctl`: steers a machine that another process runs. */
export function ctlCommand(): Command {
  const list = subcommands('')
    .commands.map(({ name, summary, args }) => [args ? `${name} ${args}` : name, summary] as const)
    .map(([usage, summary]) => `  ${usage.padEnd(COLUMN)}${summary}`)
  const ctl = new Command('ctl')
    .description('steer a running machine')
    .usage('<machine> <command> [options]')
    .argument('<machine>', 'its name, or the path of its control socket')
    .argument('<command...>', 'what to do, and its options')
    // They are the inner command's, which is parsed on its own: commander has no arguments before a subcommand.
    .passThroughOptions()
    .addHelpText('after', `\nCommands:\n${list.join('\n')}\n${HELP}`)
    .action(async (machine: string, words: string[]) => {
      const { inner } = subcommands(machine)
      inner.copyInheritedSettings(ctl)
      for (const command of inner.commands) command.copyInheritedSettings(inner)
      await inner.parseAsync(words, { from: 'user' })
    })
  return ctl
}

/** Width of the names in the list of commands. */
const COLUMN = 24

/** What can be done to a machine: a command for each. */
function subcommands(machine: string) {
  const inner = new Command(`nested-kvm ctl ${machine}`).helpCommand(false)
  const commands: { name: string; args: string; summary: string }[] = []
  const add = (command: Command, act: (command: Command) => Promise<number>) => {
    const args = command.registeredArguments.map(arg => (arg.required ? `<${arg.name()}>` : `[${arg.name()}]`))
    commands.push({ name: command.name(), args: args.join(' '), summary: command.description() })
    command.option('--json', 'print one line of JSON').action(async () => {
      process.exitCode = await act(command)
    })
    inner.addCommand(command)
  }
  const json = (command: Command) => command.opts<JsonFlag>().json === true
  add(new Command('status').description('what it is and does'), command => status(machine, json(command)))
  for (const [name, description] of Object.entries(SIMPLE)) {
    add(new Command(name).description(description), command =>
      ask(machine, { do: name as keyof typeof SIMPLE }, json(command)),
    )
  }
  add(
    new Command('nmi')
      .description('inject a non-maskable interrupt, into vCPU 0 unless told otherwise')
      .argument('[vcpu]', 'into which vCPU', parseVcpu),
    command => {
      const [vcpu] = command.processedArgs as [number | undefined]
      return ask(machine, { do: 'nmi', ...(vcpu !== undefined && { vcpu }) }, json(command))
    },
  )
  add(
    new Command('snapshot')
      .description('save it to a directory')
      .argument('<directory>', 'where to')
      .option('--differential', 'save only what was written since its last snapshot, which stays needed')
      .option('--stop', 'end the machine with its snapshot')
      .addHelpText('after', SNAPSHOT_HELP),
    command => takeSnapshot(machine, command.args[0]!, command.opts<SnapshotFlags>()),
  )
  add(
    new Command('console').description('attach this terminal to its console').addHelpText('after', CONSOLE_HELP),
    command => attach(machine, json(command)),
  )
  return { inner, commands }
}

function parseVcpu(value: string): number {
  if (!/^\d{1,6}$/.test(value)) throw new InvalidArgumentError('A whole number is needed.')
  return Number(value)
}

async function withClient<T>(machine: string, act: (client: ControlClient) => Promise<T>): Promise<T> {
  const client = await ControlClient.connect(machine)
  try {
    return await act(client)
  } finally {
    client.close()
  }
}

async function ask(machine: string, request: ControlRequest, json: boolean): Promise<number> {
  const answer = await withClient(machine, client => client.ask(request))
  if (json) printJson(answer)
  else process.stdout.write(`${answer.state}\n`)
  return exitCode.ok
}

async function status(machine: string, json: boolean): Promise<number> {
  const answer = (await withClient(machine, client => client.ask({ do: 'status' }))) as ControlStatus
  if (json) {
    printJson(answer)
    return exitCode.ok
  }
  const { state, pid, name, vcpus, memory, kernel, uptime, saving } = answer
  const facts = {
    ...(name !== undefined && { name }),
    state: saving ? `${state}, saving to ${saving.directory}: ${percent(saving)}` : state,
    pid,
    vcpus,
    memory: describeSize(memory),
    kernel: kernel ?? 'given as bytes',
    uptime: describeUptime(uptime),
  }
  for (const [fact, value] of Object.entries(facts)) process.stdout.write(`${fact.padEnd(8)}${value}\n`)
  return exitCode.ok
}

async function takeSnapshot(machine: string, given: string, flags: SnapshotFlags): Promise<number> {
  const { differential = false, stop = false, json = false } = flags
  // The machine may have another working directory.
  const directory = resolve(given)
  return longWork(json, work =>
    withClient(machine, client =>
      // Requests of one connection wait for each other: the other one watches.
      withClient(machine, async watch => {
        const started = performance.now()
        work.show('saving')
        const look = setInterval(() => void attend(watch, work), LOOK)
        try {
          const answer = await client.ask({ do: 'snapshot', directory, differential, stop })
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
        }
      }),
    ),
  )
}

/** Shows how far the save is, or ends it. If the machine is gone, the connection that waits for the save is told. */
async function attend(watch: ControlClient, { signal, show }: LongWork): Promise<void> {
  const request = { do: signal.aborted ? ('cancel' as const) : ('status' as const) }
  const answer = (await watch.ask(request).catch(() => undefined)) as ControlStatus | undefined
  if (answer?.saving) show(`saving: ${percent(answer.saving)}`)
}

/** Until the machine ends, Ctrl-A x, or a signal. With `--json` the console is on standard error. */
async function attach(machine: string, json: boolean): Promise<number> {
  const signals = catchSignals()
  const client = await ControlClient.connect(machine)
  try {
    const console = await client.console()
    let left = false
    const end = new Promise<void>(resolve => {
      for (const event of ['end', 'close', 'error']) console.once(event, () => resolve())
      signals.signal.addEventListener('abort', () => resolve(), { once: true })
    })
    const onKey = (key: TerminalKey) => {
      if (key === 'help') terminal.writeLines(CONSOLE_HELP.trim().split('\n'))
      else if (key === 'save') terminal.writeLines([`[nested-kvm ctl ${machine} snapshot <directory> saves it]`])
      else {
        left = true
        console.destroy()
      }
    }
    const output = json ? process.stderr : process.stdout
    const terminal = new Terminal({ input: process.stdin, output, console, onKey })
    await end
    terminal.close()
    const { reason } = signals.signal as { reason?: unknown }
    const code = reason instanceof Interrupted ? reason.code : exitCode.ok
    if (json)
      printJson({ ok: code === exitCode.ok, end: left ? 'left' : code === exitCode.ok ? 'ended' : 'interrupted' })
    return code
  } finally {
    client.close()
    signals.close()
  }
}
