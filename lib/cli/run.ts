import { Command, InvalidArgumentError } from 'commander'
import { type DiskOptions, Machine } from '../index.js'
import { parseDisk } from './disk-option.js'
import {
  addSessionOptions,
  type ResetOptions,
  resetOptions,
  runSession,
  type SessionOptions,
  sessionHelp,
} from './session.js'

interface RunOptions extends SessionOptions, ResetOptions {
  readonly kernel: string
  readonly initrd?: string
  readonly append?: string
  readonly cpu: string
  readonly cpus: number
  readonly memory: string
  readonly disk?: readonly DiskOptions[]
}

const EXAMPLES = `
Examples:
  nested-kvm run --kernel bzImage --initrd initrd.cpio --append 'console=ttyS0'
  nested-kvm run --kernel bzImage --memory 2G --cpus 4 --name vm1
  nested-kvm ctl vm1 console
  nested-kvm run --kernel bzImage --append 'console=ttyS0 root=/dev/vda' --disk root.img,snapshot --disk data.img`

/** `nested-kvm run`: one machine with its console on the terminal. */
export function runCommand(): Command {
  const command = new Command('run')
    .description('boot a kernel with its console on this terminal')
    .requiredOption('--kernel <file>', 'a Linux bzImage or an ELF image')
    .option('--initrd <file>', 'an initramfs')
    .option('--append <text>', "the kernel's command line; more than one are joined", joinWords)
    .option('--cpu <model>', 'CPU model, flags added or withheld: host, host,-vmx, host,-svm', 'host')
    .option('--cpus <number>', 'how many', parseCount, 1)
    .option('--memory <size>', 'how much: 512M, 2G', '512M')
    .option(
      '--disk <image>',
      'a raw disk image or block device, /dev/vda and so on: IMAGE[,snapshot][,overlay=FILE][,readonly][,direct]',
      addDisk,
    )
  return addSessionOptions(command)
    .addHelpText('after', `${sessionHelp}\n${EXAMPLES}`)
    .action(async ({ kernel, initrd, append, cpu, cpus, memory, disk, ...session }: RunOptions) => {
      const make = () =>
        Machine.create({
          kernel,
          ...(initrd === undefined ? {} : { initrd }),
          ...(append === undefined ? {} : { cmdline: append }),
          cpu,
          vcpus: cpus,
          memory,
          ...(disk === undefined ? {} : { disks: disk }),
          ...resetOptions(session),
        })
      process.exitCode = await runSession(make, session)
    })
}

function joinWords(value: string, before: string | undefined): string {
  return before === undefined ? value : `${before} ${value}`
}

function addDisk(value: string, before: readonly DiskOptions[] = []): DiskOptions[] {
  return [...before, parseDisk(value)]
}

function parseCount(value: string): number {
  if (!/^\d{1,6}$/.test(value)) throw new InvalidArgumentError('A whole number is needed.')
  return Number(value)
}
