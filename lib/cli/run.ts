import { Command, InvalidArgumentError, Option } from 'commander'
import {
  BOOT_WAYS,
  type BootWay,
  type ConsoleKind,
  type DiskOptions,
  type HugePages,
  Machine,
  type ModuleOptions,
  type NetOptions,
  type VsockOptions,
} from '../index.js'
import { parseDisk } from './disk-option.js'
import { parseNet } from './net-option.js'
import {
  addSessionOptions,
  type ResetOptions,
  resetOptions,
  runSession,
  type SessionOptions,
  sessionHelp,
} from './session.js'
import { parseVsock } from './vsock-option.js'

interface RunOptions extends SessionOptions, ResetOptions {
  readonly kernel?: string
  readonly module?: readonly ModuleOptions[]
  readonly boot?: BootWay
  readonly firmware?: string
  readonly initrd?: string
  readonly append?: string
  readonly cpu: string
  readonly cpus: number
  readonly memory: string
  readonly hugePages: HugePages
  readonly disk?: readonly DiskOptions[]
  readonly net?: readonly NetOptions[]
  readonly console: ConsoleKind
  readonly rng: boolean
  readonly vsock?: VsockOptions
}

const VSOCK = `
Through the socket of --vsock, who writes "CONNECT <port>" reads "OK <port of the host>", and then talks to what listens on that port
in the guest. What the guest connects to port <port> of the host (context 2) arrives at the socket SOCKET_<port>, if there is one.
The sockets are used as with Firecracker; only this user can reach the one that is made.`

const EXAMPLES = `
Examples:
  nested-kvm run --kernel bzImage --initrd initrd.cpio --append 'console=ttyS0'
  nested-kvm run --kernel bzImage --memory 2G --cpus 4 --name vm1
  nested-kvm ctl vm1 console
  nested-kvm run --kernel bzImage --append 'console=ttyS0 root=/dev/vda' --disk root.img,snapshot --disk data.img
  nested-kvm run --disk debian.img,snapshot
  nested-kvm run --kernel bzImage --initrd initrd.cpio --net tap,bridge=br0 --net user,tcp=2222:22
  nested-kvm run --kernel bzImage --initrd initrd.cpio --console virtio --vsock v.sock
  nested-kvm run --kernel xen.gz --append 'console=com1' --module 'vmlinuz console=hvc0' --module initrd.img
  nested-kvm run --kernel vmlinux --boot pvh`

/** `nested-kvm run`: one machine with its console on the terminal. */
export function runCommand(): Command {
  const command = new Command('run')
    .description('boot a kernel with its console on this terminal')
    .option('--kernel <file>', 'a Linux bzImage or vmlinux, a PVH or a Multiboot kernel')
    .option('--initrd <file>', 'an initramfs')
    .option(
      '--module <text>',
      "a Multiboot or PVH kernel's module: its file, and after a blank its arguments",
      addModule,
    )
    .option('--boot <way>', `how: ${BOOT_WAYS.join(', ')}; default: as the kernel is made, or without one by firmware`)
    .option('--firmware <file>', 'firmware that boots from a disk; default: SeaBIOS for microvm')
    .option('--append <text>', "the kernel's command line; more than one are joined", joinWords)
    .option('--cpu <model>', 'CPU model, flags added or withheld: host, host,-vmx, EPYC,+svm, Haswell,check', 'host')
    .option('--cpus <number>', 'how many', parseCount, 1)
    .option('--memory <size>', 'how much: 512M, 2G', '512M')
    .addOption(
      new Option(
        '--huge-pages <when>',
        "huge pages for it: where the host gives them to programs, in any case, or never; or of the host's pool",
      )
        .choices(['auto', 'always', 'never', 'hugetlb'])
        .default('auto'),
    )
    .option(
      '--disk <image>',
      'a raw disk image or block device, /dev/vda and so on: IMAGE[,snapshot][,overlay=FILE][,readonly][,direct]',
      addDisk,
    )
    .option(
      '--net <network>',
      'a network card, eth0 and so on: tap[,ifname=tap0][,bridge=br0][,mac=MAC] or user[,tcp=2222:22][,udp=53][,mac=MAC]',
      addNet,
    )
    .addOption(
      new Option('--console <kind>', 'the console on this terminal: ttyS0, or the faster hvc0')
        .choices(['serial', 'virtio'])
        .default('serial'),
    )
    .option(
      '--vsock <socket>',
      'streams between guest and host, through a Unix socket that is made: SOCKET[,cid=N]',
      parseVsock,
    )
    .option('--no-rng', "without the entropy device that gives the host's randomness")
  return addSessionOptions(command)
    .addHelpText('after', `${sessionHelp}\n${VSOCK}\n${EXAMPLES}`)
    .action(
      async ({
        kernel,
        initrd,
        module,
        boot,
        firmware,
        append,
        cpu,
        cpus,
        memory,
        hugePages,
        disk,
        net,
        console,
        rng,
        vsock,
        ...session
      }: RunOptions) => {
        const make = () =>
          Machine.create({
            kernel,
            initrd,
            modules: module,
            boot,
            firmware,
            cmdline: append,
            cpu,
            vcpus: cpus,
            memory,
            hugePages,
            name: session.name,
            disks: disk,
            nets: net,
            console,
            rng,
            vsock,
            ...resetOptions(session),
          })
        process.exitCode = await runSession(make, session)
      },
    )
}

function joinWords(value: string, before: string | undefined): string {
  return before === undefined ? value : `${before} ${value}`
}

function addDisk(value: string, before: readonly DiskOptions[] = []): DiskOptions[] {
  return [...before, parseDisk(value)]
}

function addNet(value: string, before: readonly NetOptions[] = []): NetOptions[] {
  return [...before, parseNet(value)]
}

function addModule(value: string, before: readonly ModuleOptions[] = []): ModuleOptions[] {
  const [, file = '', cmdline = ''] = /^\s*(\S*)\s*(.*)$/s.exec(value) ?? []
  return [...before, { file, cmdline }]
}

function parseCount(value: string): number {
  if (!/^\d{1,6}$/.test(value)) throw new InvalidArgumentError('A whole number is needed.')
  return Number(value)
}
