import { Command, Option } from 'commander'
import { type ClockMode, Machine } from '../index.js'
import { percent } from './progress.js'
import {
  addSessionOptions,
  type ResetOptions,
  resetOptions,
  runSession,
  type SessionOptions,
  sessionHelp,
} from './session.js'
import { StatusLine } from './status-line.js'

interface RestoreFlags extends SessionOptions, ResetOptions {
  readonly verify?: boolean
  readonly clock: ClockMode
  readonly vsock?: string
}

const HELP = `
The snapshot stays as it is, and can be restored again. Its files must stay in place while the machine runs.

A snapshot that is damaged, or of a host whose CPU has what this one has not, ends with exit code 2; what is missing is named.

Examples:
  nested-kvm restore snap
  nested-kvm restore snap --verify --clock stopped --name vm1`

/** `nested-kvm restore`: goes on with a saved machine in this terminal. */
export function restoreCommand(): Command {
  const command = new Command('restore')
    .description('go on with a saved machine, its console on this terminal')
    .argument('<directory>', 'a snapshot')
    .option('--verify', 'read all of its memory and disks first and check them; only its state is checked otherwise')
    .addOption(
      new Option('--clock <mode>', "whether the guest's clocks make up for the time since, or go on where they stood")
        .choices(['realtime', 'stopped'])
        .default('realtime'),
    )
    .option('--vsock <socket>', 'the Unix socket of its vsock, in place of the one that it had')
  return addSessionOptions(command)
    .addHelpText('after', `${sessionHelp}\n${HELP}`)
    .action(async (directory: string, { verify = false, clock, vsock, ...session }: RestoreFlags) => {
      process.exitCode = await runSession(async signal => {
        const status = new StatusLine(process.stderr.isTTY && !session.json ? process.stderr : undefined)
        const onProgress = (done: number, total: number) => status.show(`checking: ${percent({ done, total })}`)
        try {
          return await Machine.restore(directory, {
            verify,
            clock,
            vsockPath: vsock,
            onProgress,
            signal,
            ...resetOptions(session),
          })
        } finally {
          status.close()
        }
      }, session)
    })
}
