import { constants } from 'node:os'
import { Command, InvalidArgumentError, Option } from 'commander'
import { Lab, type LabOptions, setUpLab } from '../index.js'
import { printJson } from './output.js'

type Vendor = NonNullable<LabOptions['vendor']>

interface LabFlags {
  vendor: Vendor
  json?: boolean
  memory?: string
  cpus?: number
  clock?: NonNullable<LabOptions['clock']>
  timeout?: number
  verbose?: boolean
}

const HELP = `
The lab is an emulated host (no KVM needed) with a stock kernel whose KVM nests: AMD's extension (svm) under QEMU, or
Intel's (vmx) under Bochs, which is slower. The command sees this machine's files, read-only except for the current
directory, its own /tmp and /run, and that host's /dev/kvm; NESTED_KVM_LAB=svm (or vmx) is in its environment. The first
time, a kernel and the emulator are fetched through apt. Run the setup first: it builds the emulator from Debian's source.
For svm, a QEMU whose VMRUN is mended: the packaged one now and then delivers an interrupt twice, of which a guest's
kernel can hang. For vmx, a fast Bochs: the packaged one takes several times as long. In the vmx lab the clock counts
instructions (--timeout is in real seconds, all times inside are not) and there is one processor. --clock instructions
does so in the svm lab, too, and builds its QEMU where the setup has not: each second takes longer, but a guest in a
guest in a guest gets more done between two ticks of its timer.

Ctrl-C goes to the command; a second one ends the lab at once. Standard input is passed on unless it is a terminal.

Exit code: the command's (128 + n when signal n ended it); 124 at the timeout; 2 where the lab cannot be set up.

Examples:
  nested-kvm lab setup --vendor vmx
  nested-kvm lab --vendor vmx -- nested-kvm doctor
  nested-kvm lab -- nested-kvm doctor
  nested-kvm lab --timeout 300 -- node vmm.js
  nested-kvm lab -- sh -c 'dmesg | grep -i kvm'
`

/** `nested-kvm lab -- <command...>`: runs a command where nested virtualization works; `lab setup` fetches what that takes. */
export function labCommand(): Command {
  return new Command('lab')
    .description('run a command in an emulated host where nested virtualization works')
    .argument('<command...>', 'the command and its arguments, after --')
    .addOption(vendorOption())
    .option('--memory <size>', 'memory of the emulated host (default: 3G)')
    .option('--cpus <n>', 'its processors (default: 1; with more, QEMU 7.2 can hang)', numeric)
    .addOption(
      new Option('--clock <what>', 'what its clock counts (default: host; vmx has only instructions)').choices([
        'host',
        'instructions',
      ]),
    )
    .option('--timeout <seconds>', 'end it after this time, boot included (default: no limit)', numeric)
    .option('--json', 'print the result as one line of JSON: {ok, exitCode, stdout, stderr, bootSeconds, seconds}')
    .option('--verbose', "show the emulated host's console and what is being done, on standard error")
    .passThroughOptions()
    .addHelpText('after', HELP)
    .action(async (command: string[], flags: LabFlags) => {
      process.exitCode = await run(command, flags)
    })
    .addCommand(setupCommand())
}

function setupCommand(): Command {
  return new Command('setup')
    .description(
      'fetch and build what the lab needs, so that it starts at once: a mended QEMU, or a fast Bochs (some minutes)',
    )
    .addOption(vendorOption())
    .option('--json', 'print the result as one line of JSON: {ok, vendor}')
    .action(async ({ vendor, json }: { vendor: Vendor; json?: boolean }) => {
      await setUpLab(vendor, { onProgress: say })
      if (json) printJson({ ok: true, vendor })
      else say(`the ${vendor} lab is set up`)
    })
}

function vendorOption(): Option {
  const vendors: readonly Vendor[] = ['svm', 'vmx']
  return new Option('--vendor <extension>', 'the virtualization extension that it has').choices(vendors).default('svm')
}

function say(message: string): void {
  process.stderr.write(`nested-kvm lab: ${message}\n`)
}

async function run(command: string[], flags: LabFlags): Promise<number> {
  const options: LabOptions = {
    vendor: flags.vendor,
    onFetch: say,
    ...(flags.verbose || process.stderr.isTTY ? { onBoot: say } : {}),
    ...(flags.memory === undefined ? {} : { memory: flags.memory }),
    ...(flags.cpus === undefined ? {} : { cpus: flags.cpus }),
    ...(flags.clock === undefined ? {} : { clock: flags.clock }),
    ...(flags.timeout === undefined ? {} : { timeout: flags.timeout }),
    ...(flags.verbose ? { console: process.stderr } : {}),
    ...(flags.json ? {} : { stdout: process.stdout, stderr: process.stderr }),
    ...(process.stdin.isTTY ? {} : { stdin: process.stdin }),
  }
  const lab = await Lab.start(command, options)
  const interrupt = interruptible(lab)
  try {
    const { exitCode: code, stdout, stderr, bootSeconds, seconds } = await lab.wait()
    if (flags.json) printJson({ ok: code === 0, exitCode: code, stdout, stderr, bootSeconds, seconds })
    return code
  } catch (error) {
    if (interrupt.ended === undefined) throw error
    if (flags.json) printJson({ ok: false, reason: `ended by ${interrupt.ended}` })
    return 128 + constants.signals[interrupt.ended]
  } finally {
    interrupt.stop()
  }
}

/** The first signal is the command's; the second ends the lab, and so does the first where no command runs yet. */
function interruptible(lab: Lab): { ended: NodeJS.Signals | undefined; stop(): void } {
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
  const state = { ended: undefined as NodeJS.Signals | undefined, stop }
  let forwarded = false
  function take(signal: NodeJS.Signals): void {
    if (!forwarded && lab.signal(signal)) {
      forwarded = true
      return
    }
    state.ended = signal
    lab.kill()
  }
  function stop(): void {
    for (const signal of signals) process.removeListener(signal, take)
  }
  for (const signal of signals) process.on(signal, take)
  return state
}

function numeric(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('It is not a number.')
  return value
}
