import { basename } from 'node:path'
import { Command } from 'commander'
import { removeStale } from '../sockets/private-socket.js'
import { ControlClient } from './control-client.js'
import { placeOf, registeredNames } from './control-names.js'
import type { ControlStatus } from './control-protocol.js'
import { exitCode, printJson } from './output.js'
import { describeSize } from './progress.js'

/** Milliseconds that a machine has to answer: one that hangs must not hide the others. */
const PATIENCE = 2000

/** A machine that answers, or one that has a socket and does not. */
export type Listed =
  | ({ readonly name: string } & Omit<ControlStatus, 'ok'>)
  | { readonly name: string; readonly state: 'no answer' }

/** `nested-kvm ps`: the named machines of this user. */
export function psCommand(): Command {
  return new Command('ps')
    .description('list the machines that run with a name')
    .option('--json', 'print one line of JSON')
    .addHelpText(
      'after',
      '\nThose started with `nested-kvm run --name` or `restore --name` by this user. Exit code: 0.',
    )
    .action(async ({ json = false }: { readonly json?: boolean }) => {
      const machines = await listMachines()
      if (json) printJson({ ok: true, machines })
      else process.stdout.write(table(machines))
      process.exitCode = exitCode.ok
    })
}

/** The named machines, in order. What a dead one has left behind is removed. */
export async function listMachines(patience = PATIENCE): Promise<Listed[]> {
  const listed = await Promise.all(registeredNames().map(name => look(name, patience)))
  return listed.filter(machine => machine !== undefined)
}

async function look(name: string, patience: number): Promise<Listed | undefined> {
  let client: ControlClient
  try {
    client = await ControlClient.connect(name)
  } catch {
    // Only where nobody listens: one that is too busy to be connected to is none the less there.
    const gone = await removeStale(placeOf(name).path).catch(() => true)
    return gone ? undefined : { name, state: 'no answer' }
  }
  const late = setTimeout(() => client.close(), patience)
  try {
    const { ok: _, ...status } = (await client.ask({ do: 'status' })) as ControlStatus
    return { ...status, name }
  } catch {
    return { name, state: 'no answer' }
  } finally {
    clearTimeout(late)
    client.close()
  }
}

const HEADER = ['NAME', 'PID', 'STATE', 'VCPUS', 'MEMORY', 'UPTIME', 'KERNEL'] as const

function table(machines: readonly Listed[]): string {
  const rows = machines.map(machine =>
    'pid' in machine
      ? [
          machine.name,
          String(machine.pid),
          machine.saving ? 'saving' : machine.state,
          String(machine.vcpus),
          describeSize(machine.memory),
          describeUptime(machine.uptime),
          machine.kernel === null ? '-' : basename(machine.kernel),
        ]
      : [machine.name, '-', machine.state, '-', '-', '-', '-'],
  )
  const lines = [[...HEADER], ...rows]
  const widths = HEADER.map((_, column) => Math.max(...lines.map(line => line[column]!.length)))
  return lines
    .map(
      line =>
        `${line
          .map((cell, i) => cell.padEnd(widths[i]!))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('')
}

/** `12 s`, `3 min 5 s`, `2 h 7 min`, `4 d 1 h` */
export function describeUptime(seconds: number): string {
  const whole = Math.floor(seconds)
  const units = [
    ['d', 86_400],
    ['h', 3600],
    ['min', 60],
    ['s', 1],
  ] as const
  const first = units.findIndex(([, size]) => whole >= size)
  if (first < 0) return '0 s'
  const parts = units.slice(first, first + 2).map(([unit, size], i) => {
    const within = i === 0 ? whole : whole % units[first]![1]
    return `${Math.floor(within / size)} ${unit}`
  })
  return parts.join(' ')
}
