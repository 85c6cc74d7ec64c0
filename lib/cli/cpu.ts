import { readFileSync, statSync } from 'node:fs'
import { Command } from 'commander'
import {
  ConfigError,
  CPU_MODELS,
  type CpuFacts,
  type CpuHost,
  type CpuModel,
  cpuBaseline,
  cpuHost,
  diffCpus,
  dumpCpu,
  extensionWith,
  factsOfHost,
  factsOfModel,
  Kvm,
  KvmError,
  missingOf,
  parseCpuDump,
  parseCpuSpec,
} from '../index.js'
import { formatBaseline, formatDifference, formatModel, formatModels } from './cpu-text.js'
import { exitCode, printJson } from './output.js'

interface JsonFlag {
  readonly json?: boolean
}

/** `nested-kvm cpu`: the CPU models, this host's CPU, and the CPU that several hosts have in common. */
export function cpuCommand(): Command {
  return new Command('cpu')
    .description('CPU models: which there are, which run here, which fit several hosts')
    .addHelpText(
      'after',
      `
A model is given to a machine with \`nested-kvm run --cpu MODEL[,+flag][,-flag][,setting]\`. What vmx and svm offer to the guest's own
hypervisor is switched like flags (host,-vmx-ept; EPYC,+svm,-npt): \`cpu show host\` lists it.

Examples:
  nested-kvm cpu list
  nested-kvm cpu show EPYC-Milan
  nested-kvm cpu diff Haswell Broadwell
  nested-kvm cpu dump > host1.json
  nested-kvm cpu baseline host1.json host2.json`,
    )
    .addCommand(listCommand())
    .addCommand(showCommand())
    .addCommand(diffCommand())
    .addCommand(dumpCommand())
    .addCommand(baselineCommand())
}

function listCommand(): Command {
  return new Command('list')
    .description('list the models, and say which of them this host can give')
    .option('--json', 'print one line of JSON')
    .addHelpText(
      'after',
      '\nWithout KVM, nothing is said of this host. Exit code: 0.\n\nExample:\n  nested-kvm cpu list',
    )
    .action((_flags: JsonFlag, command: Command) => {
      const host = hostIfAny()
      const models = CPU_MODELS.map(({ name, vendor, brand }) => {
        return { name, vendor, brand, missing: host ? missingOf(host, parseCpuSpec(name)) : null }
      })
      if (wantsJson(command)) printJson({ ok: true, models })
      else process.stdout.write(formatModels(models))
      process.exitCode = exitCode.ok
    })
}

function showCommand(): Command {
  return new Command('show')
    .description('say what a model has, and what of it this host lacks')
    .argument('<model>', 'a model, with flags if need be: Haswell, EPYC,+svm, host,-vmx-ept')
    .option('--json', 'print one line of JSON')
    .addHelpText(
      'after',
      `
Told apart are the flags, and what vmx (by QEMU's names) or svm offers to a hypervisor in the guest. With +vmx, a model of Intel has its own
of that, as QEMU's has; only qemu64 has what this host's KVM offers.

Exit code: 0, or 2 where there is no such model or flag.

Examples:
  nested-kvm cpu show Icelake-Server
  nested-kvm cpu show Haswell,+vmx
  nested-kvm cpu show EPYC,+svm --json | jq .missing`,
    )
    .action((text: string, _flags: JsonFlag, command: Command) => {
      const spec = parseCpuSpec(text)
      const host = spec.model === 'host' ? hostHere() : hostIfAny()
      const facts = spec.model === 'host' ? factsOfHost(host!, spec) : factsOfModel(spec, host)
      const more = spec.model === 'host' ? {} : aboutModel(spec.model, facts)
      const { vendor, family, model, stepping, brand, flags, vmx } = facts
      const svm = flags.filter(flag => extensionWith(flag) === 'svm')
      const missing = host ? missingOf(host, spec) : null
      const shown = { cpu: text, vendor, family, model, stepping, brand, flags, vmx, svm, ...more, missing }
      if (wantsJson(command)) printJson({ ok: true, ...shown })
      else process.stdout.write(formatModel(shown, process.stdout.columns))
      process.exitCode = exitCode.ok
    })
}

function diffCommand(): Command {
  return new Command('diff')
    .description('say in what two CPUs differ')
    .argument('<a>', 'a model, host, or a file of `nested-kvm cpu dump`')
    .argument('<b>', 'another')
    .option('--json', 'print one line of JSON')
    .addHelpText(
      'after',
      `
A name with a slash or that ends in .json is a file.

Exit code: 0 if there is no difference, 1 if there is one, 2 where there is no such model or file.

Examples:
  nested-kvm cpu diff EPYC-Rome EPYC-Milan
  nested-kvm cpu diff host Skylake-Server
  nested-kvm cpu diff host1.json host2.json`,
    )
    .action((a: string, b: string, _flags: JsonFlag, command: Command) => {
      const difference = diffCpus(factsOf(a), factsOf(b))
      const { onlyA, onlyB, fields } = difference
      if (wantsJson(command)) printJson({ ok: true, a, b, ...difference })
      else process.stdout.write(formatDifference(a, b, difference, process.stdout.columns))
      const same = onlyA.length + onlyB.length + fields.length === 0
      process.exitCode = same ? exitCode.ok : exitCode.failed
    })
}

function dumpCommand(): Command {
  return new Command('dump')
    .description("print what this host's KVM can give, as JSON")
    .option('--json', 'print one line of JSON; without it, JSON of many')
    .addHelpText(
      'after',
      `
CPUID as KVM supports it and the feature MSRs, with the number of their schema: for \`cpu baseline\` and \`cpu diff\`, on any host.

Exit code: 0, or 2 where there is no KVM.

Example:
  nested-kvm cpu dump > host1.json`,
    )
    .action((_flags: JsonFlag, command: Command) => {
      using kvm = Kvm.open()
      const dump = dumpCpu(kvm)
      if (wantsJson(command)) printJson(dump)
      else process.stdout.write(`${JSON.stringify(dump, null, 2)}\n`)
      process.exitCode = exitCode.ok
    })
}

function baselineCommand(): Command {
  return new Command('baseline')
    .description('find the largest model that all of several hosts can give')
    .argument('<dumps...>', 'files of `nested-kvm cpu dump`, one of each host; `host` is this one')
    .option('--json', 'print one line of JSON')
    .addHelpText(
      'after',
      `
A guest with that CPU can be moved between the hosts. Where a model fits better once some of its flags are withheld, that is told too;
where all hosts nest, also the one for a guest that has guests itself (\`nested\` in JSON).

Exit code: 0, 1 if no model fits as it is, 2 where a file is no dump or from a newer version.

Examples:
  nested-kvm cpu baseline host1.json host2.json
  nested-kvm run --kernel bzImage --cpu $(nested-kvm cpu baseline host1.json host2.json --json | jq -r .cpu)`,
    )
    .action((files: readonly string[], _flags: JsonFlag, command: Command) => {
      const baseline = cpuBaseline(files.map(file => (file === 'host' ? hostHere() : readDump(file))))
      if (wantsJson(command)) printJson({ ok: baseline.model !== null, ...baseline })
      else process.stdout.write(formatBaseline(files, baseline, process.stdout.columns))
      process.exitCode = baseline.model === null ? exitCode.failed : exitCode.ok
    })
}

function wantsJson(command: Command): boolean {
  return command.opts<JsonFlag>().json === true
}

function aboutModel({ source, archCapabilities, flags }: CpuModel, facts: CpuFacts) {
  return { source, archCapabilities, onRequest: flags.filter(flag => !facts.flags.includes(flag)) }
}

function factsOf(text: string): CpuFacts {
  if (text.includes('/') || text.endsWith('.json')) return factsOfHost(readDump(text))
  const spec = parseCpuSpec(text)
  return spec.model === 'host' ? factsOfHost(hostHere(), spec) : factsOfModel(spec)
}

function hostHere(): CpuHost {
  using kvm = Kvm.open()
  return cpuHost(kvm)
}

function hostIfAny(): CpuHost | undefined {
  try {
    return hostHere()
  } catch (error) {
    if (error instanceof KvmError) return undefined
    throw error
  }
}

/** A dump has some ten thousand bytes. */
const LARGEST_DUMP = 2 ** 20

function readDump(path: string): CpuHost {
  const remedy = 'give a file that `nested-kvm cpu dump` has written'
  let text: string
  try {
    if (statSync(path).size > LARGEST_DUMP)
      throw new ConfigError('dump', path, 'it is too large for a CPU dump', remedy)
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if (error instanceof ConfigError) throw error
    throw new ConfigError('dump', path, `it cannot be read (${(error as Error).message})`, remedy)
  }
  return parseCpuDump(text, path)
}
