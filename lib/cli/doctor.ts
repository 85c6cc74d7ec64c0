import { Command } from 'commander'
import { diagnoseHost, examineHost, examineHostDeeply, libvirtCpus } from '../index.js'
import { formatLibvirt, formatReport } from './doctor-text.js'
import { exitCode, printJson } from './output.js'

interface Options {
  readonly json?: boolean
  readonly verbose?: boolean
  readonly deep?: boolean
  readonly libvirt?: boolean
}

/** `nested-kvm doctor`: can this host nest, and if not, what would. */
export function doctorCommand(): Command {
  return new Command('doctor')
    .description('say whether guests of this host can run guests of their own, and what to do if not')
    .option('--deep', 'try it: a tiny L1 enters an L2, which is saved and goes on in another VM')
    .option('--verbose', 'list every parameter of the KVM modules with its meaning')
    .option('--libvirt', 'print the <cpu> elements that let a libvirt guest nest, and nothing else')
    .option('--json', 'print the diagnosis as one line of JSON')
    .addHelpText(
      'after',
      `
Each check passes, warns, fails, is for information, or is unknown where it cannot be asked (some need root).

--json: {schema: 1, ok, way, extension, reason, commands, facts, checks: [{id, title, status, detail, remedy}], hypervisor, users,
parameters: [{module, name, value, meaning, nesting}], deep}. Under one schema number fields are added, never changed or taken away.
With --libvirt: {schema: 1, extension, cpus: [{purpose, xml}]}.

Exit code: 0 if nested virtualization works here (with --deep: if it was seen to), 1 if not. With --libvirt: 0.

Examples:
  nested-kvm doctor
  nested-kvm doctor --deep
  nested-kvm doctor --json | jq -r '.checks[] | select(.status == "fail") | .title'`,
    )
    .action(async (options: Options) => {
      if (options.libvirt) return printLibvirt(options)
      const report = options.deep ? await examineHostDeeply() : examineHost()
      if (options.json) printJson(report)
      else process.stdout.write(formatReport(report, { verbose: options.verbose === true }))
      process.exitCode = report.ok ? exitCode.ok : exitCode.failed
    })
}

function printLibvirt({ json }: Options): void {
  const { extension, facts } = diagnoseHost()
  const here = extension ?? facts.cpu[0] ?? null
  const cpus = libvirtCpus(here)
  if (json) printJson({ schema: 1, extension: here, cpus })
  else process.stdout.write(formatLibvirt(cpus))
  process.exitCode = exitCode.ok
}
