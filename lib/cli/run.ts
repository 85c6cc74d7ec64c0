import { constants } from 'node:os'
import { Command, InvalidArgumentError } from 'commander'
import { GuestError } from '../errors.js'
import { Machine, type MachineEnd } from '../index.js'
import { exitCode } from './output.js'
import { Terminal, type TerminalKey, terminalHelp } from './terminal.js'

interface RunOptions {
  readonly kernel: string
  readonly initrd?: string
  readonly append?: string
  readonly cpu: string
  readonly cpus: number
  readonly memory: string
}

/** Exit codes of `run` beside those that all subcommands share. */
const runExitCode = { reset: 3, left: 4 } as const

const exitCodes = `
Exit code:
  0    the guest powered off
  1    the guest crashed; its registers are on standard error
  2    something asked for is wrong, or this host cannot do it
  3    the guest reset itself
  4    left with Ctrl-A x
  n    the guest wrote to its debug-exit device: (value * 2) + 1
  129, 130, 143   ended by SIGHUP, SIGINT, SIGTERM

Keys:
${terminalHelp.map(line => `  ${line}`).join('\n')}

Input that is no terminal is forwarded as it is; its end does not end the machine.`

/** `nested-kvm run`: one machine with its console on the terminal. */
export function runCommand(): Command {
  return new Command('run')
    .description('boot a kernel with its console on this terminal')
    .requiredOption('--kernel <file>', 'a Linux bzImage or an ELF image')
    .option('--initrd <file>', 'an initramfs')
    .option('--append <text>', "the kernel's command line; more than one are joined", joinWords)
    .option('--cpu <model>', 'CPU model, flags added or withheld: host, host,-vmx, host,-svm', 'host')
    .option('--cpus <number>', 'how many', parseCount, 1)
    .option('--memory <size>', 'how much: 512M, 2G', '512M')
    .addHelpText('after', exitCodes)
    .action(async (options: RunOptions) => {
      process.exitCode = await runMachine(options)
    })
}

function joinWords(value: string, before: string | undefined): string {
  return before === undefined ? value : `${before} ${value}`
}

function parseCount(value: string): number {
  if (!/^\d{1,6}$/.test(value)) throw new InvalidArgumentError('A whole number is needed.')
  return Number(value)
}

async function runMachine({ kernel, initrd, append, cpu, cpus, memory }: RunOptions): Promise<number> {
  const machine = await Machine.create({
    kernel,
    ...(initrd === undefined ? {} : { initrd }),
    ...(append === undefined ? {} : { cmdline: append }),
    cpu,
    vcpus: cpus,
    memory,
  })
  const onKey = (key: TerminalKey) => {
    if (key === 'help') terminal.writeLines(terminalHelp)
    else void machine.stop()
  }
  const terminal = new Terminal({ input: process.stdin, output: process.stdout, console: machine.console, onKey })
  const signals = watchSignals(() => void machine.stop())
  let end: MachineEnd
  try {
    await machine.start()
    end = await machine.wait()
  } finally {
    signals.close()
    terminal.close()
    await machine.stop()
  }
  if (signals.caught) return 128 + constants.signals[signals.caught]
  return reportEnd(end)
}

/** Says on standard error why the machine ended, unless it powered off, and returns the exit code. */
function reportEnd(end: MachineEnd): number {
  const say = (text: string) => process.stderr.write(`nested-kvm: ${text}\n`)
  switch (end.reason) {
    case 'shutdown':
      return exitCode.ok
    case 'reset':
      say('the guest reset itself')
      return runExitCode.reset
    case 'debug-exit':
      say(`the guest ended through its debug-exit device with code ${end.code}`)
      // An exit code is one byte, and a larger one must not turn into success.
      return end.code & 0xff || exitCode.failed
    case 'stopped':
      say('stopped')
      return runExitCode.left
    case 'crash':
      throw new GuestError(`the guest crashed: ${end.message}`, end.report)
  }
}

/** Calls `onSignal` once for the first signal that asks us to end, and remembers which it was. */
function watchSignals(onSignal: () => void): { readonly caught: NodeJS.Signals | undefined; close(): void } {
  const names = ['SIGHUP', 'SIGINT', 'SIGTERM'] as const
  const watch = {
    caught: undefined as NodeJS.Signals | undefined,
    close() {
      for (const name of names) process.off(name, handler)
    },
  }
  const handler = (name: NodeJS.Signals) => {
    if (watch.caught) return
    watch.caught = name
    onSignal()
  }
  for (const name of names) process.on(name, handler)
  return watch
}
