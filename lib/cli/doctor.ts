import { Command } from 'commander'
import { diagnoseHost, type HostDiagnosis, type HostFacts } from '../index.js'
import { exitCode, printJson } from './output.js'

/** `nested-kvm doctor`: can this host nest, and if not, what would. */
export function doctorCommand(): Command {
  return new Command('doctor')
    .description('say whether guests of this host can run guests of their own, and what to do if not')
    .option('--json', 'print the diagnosis as one line of JSON')
    .addHelpText('after', '\nExit code: 0 if nested virtualization works here, 1 if not.')
    .action((options: { json?: boolean }) => {
      const diagnosis = diagnoseHost()
      if (options.json) printJson(diagnosis)
      else process.stdout.write(formatDiagnosis(diagnosis))
      process.exitCode = diagnosis.ok ? exitCode.ok : exitCode.failed
    })
}

/** The diagnosis as text for people: the facts, then the verdict, then what to type. */
export function formatDiagnosis(diagnosis: HostDiagnosis): string {
  const { way, reason, commands, extension, facts } = diagnosis
  const rows = factRows(facts)
  const width = Math.max(...rows.map(([name]) => name.length))
  const lines = rows.map(([name, value]) => `  ${name.padEnd(width)}  ${value}`)
  const verdict = {
    'nested-here': `Nested virtualization works here (${extension}).`,
    enable: 'Nested virtualization can be switched on here.',
    lab: 'Nested virtualization needs the lab here.',
  }[way]
  const advice = {
    'nested-here': ['Try it:', '  nested-kvm demo'],
    enable: [
      'As root:',
      ...commands.map(command => `  ${command}`),
      'Until then, the lab works anywhere:',
      '  nested-kvm lab -- <command>',
    ],
    lab: ['The lab emulates a host that nests, and runs a command in it:', '  nested-kvm lab -- <command>'],
  }[way]
  return `${['Host', ...lines, '', verdict, `  ${reason}.`, '', ...advice].join('\n')}\n`
}

function factRows({
  kernel,
  device,
  apiVersion,
  modules,
  nestedStateBytes,
  offered,
  cpu,
  virtual,
}: HostFacts): [string, string][] {
  const unknown = 'cannot be asked'
  const nested = Object.entries(modules.nested).map(([module, value]) => `${module} nested=${value}`)
  const extensions = (list: readonly string[]) => list.join(', ') || 'neither vmx nor svm'
  return [
    ['kernel', `${kernel ?? unknown}${virtual ? ' (in a virtual machine)' : ''}`],
    ['CPU', extensions(cpu)],
    [
      device.path,
      device.present ? (device.permitted ? 'present, may be opened' : 'present, not permitted') : 'missing',
    ],
    ...(device.problem ? [['', device.problem] as [string, string]] : []),
    ['KVM API version', String(apiVersion ?? unknown)],
    ['vendor module', modules.vendor.join(', ') || 'none'],
    ['nested parameter', nested.join(', ') || 'none'],
    ['offered to guests', offered ? extensions(offered) : unknown],
    [
      'nested state',
      nestedStateBytes === null ? unknown : nestedStateBytes === 0 ? 'none' : `up to ${nestedStateBytes} bytes`,
    ],
  ]
}
