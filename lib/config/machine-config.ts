import { totalmem } from 'node:os'
import { ConfigError } from '../errors.js'
import { BOOT_KEYS, type BootConfig, type BootOptions, parseBootOptions } from './boot-options.js'
import { type DiskConfig, type DiskOptions, parseDisks } from './disks.js'
import { fileContent, text } from './fields.js'
import { type NetConfig, type NetOptions, parseNets } from './nets.js'
import { parseVsock, type VsockConfig, type VsockOptions } from './vsock.js'

/** Whether a machine's memory has huge pages. */
export type HugePages = (typeof HUGE_PAGES)[number]

/** The console that a machine is talked to on: COM1 (ttyS0), or a virtio console (hvc0). */
export type ConsoleKind = (typeof CONSOLES)[number]

/** What a user gives. All but `kernel` has a default, and so has that where firmware boots. */
export interface MachineOptions extends BootOptions {
  /** Kernel command line. Default: `console=ttyS0 panic=-1`, with `hvc0` where `console` is `virtio`. */
  readonly cmdline?: string | undefined
  /**
   * CPU model and its flags: `host`, `host,+vmx`, `EPYC,+svm`, `Haswell,-hle,-rtm`, ... What this host cannot give is an error; with
   * `,check`, a `warning`. Default: `host`.
   */
  readonly cpu?: string | undefined
  /** Default: 1. */
  readonly vcpus?: number | undefined
  /** Bytes, or a size as `512M` or `8G` (powers of 1024). Default: `512M`. */
  readonly memory?: number | string | undefined
  /**
   * Huge pages for the memory: where the host gives them to programs, in any case (that needs CAP_SYS_ADMIN), or never; or `hugetlb`, of
   * the host's pool (`vm.nr_hugepages`), from which they are reserved at once. The pages of a restored or forked machine are small, and
   * so are those of checkpoints, of which the first of `hugetlb` memory is a copy of all that is in use. Default: `auto`.
   */
  readonly hugePages?: HugePages | undefined
  /**
   * What it is known by on this host, to this user: the addresses of its network cards that are not given follow from it, so that they are
   * the same each time. Default: none.
   */
  readonly name?: string | undefined
  /** Disks, which the guest sees as /dev/vda, /dev/vdb and so on. Default: none. */
  readonly disks?: readonly DiskOptions[] | undefined
  /** Network cards, which the guest sees as eth0, eth1 and so on. Default: none. */
  readonly nets?: readonly NetOptions[] | undefined
  /** What a guest's reset does: it boots again, in place; or, with false, the machine ends. Default: true. */
  readonly reboot?: boolean | undefined
  /** What a triple fault is: the machine's end, with a report, or a reset as any other. Default: `crash`. */
  readonly onTripleFault?: TripleFault | undefined
  /** What `machine.console` is; COM1 is there in any case. Default: `serial`. */
  readonly console?: ConsoleKind | undefined
  /** An entropy device that has the host's randomness. Default: true. */
  readonly rng?: boolean | undefined
  /** Streams between the guest and the host. Default: none. */
  readonly vsock?: VsockOptions | null | undefined
}

export type TripleFault = 'crash' | 'reset'

/** A machine's configuration, complete and checked. */
export interface MachineConfig extends BootConfig {
  readonly cmdline: string
  readonly cpu: string
  readonly vcpus: number
  /** Bytes. */
  readonly memory: number
  readonly hugePages: HugePages
  readonly disks: readonly DiskConfig[]
  readonly nets: readonly NetConfig[]
  readonly reboot: boolean
  readonly onTripleFault: TripleFault
  readonly console: ConsoleKind
  readonly rng: boolean
  readonly vsock: VsockConfig | null
}

/** What the host sets as limits. */
export interface HostLimits {
  /** Bytes of physical memory. */
  readonly memory: number
  /** `KVM_CAP_MAX_VCPUS` */
  readonly vcpus: number
}

const HUGE_PAGES = ['auto', 'always', 'never', 'hugetlb'] as const
const CONSOLES = ['serial', 'virtio'] as const
const CMDLINES = { serial: 'console=ttyS0 panic=-1', virtio: 'console=hvc0 panic=-1' } as const
const DEFAULTS = { cpu: 'host', vcpus: 1, memory: '512M' } as const
const KEYS = [
  ...BOOT_KEYS,
  'cmdline',
  'cpu',
  'vcpus',
  'memory',
  'hugePages',
  'name',
  'disks',
  'nets',
  'console',
  'rng',
  'vsock',
  'reboot',
  'onTripleFault',
] as const

const PAGE_SIZE = 4096
const HUGETLB_PAGE = 2 ** 21
const UNITS: Readonly<Record<string, number>> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 }

/**
 * Checks a machine's configuration and fills in the defaults. Files are looked at, but not read.
 *
 * @throws {ConfigError} naming the field, its value and what to do
 */
export function parseMachineConfig(options: MachineOptions, limits: Partial<HostLimits> = {}): MachineConfig {
  if (typeof options !== 'object' || options === null) {
    throw new ConfigError('machine', options, 'it is no object', `give one with ${KEYS.join(', ')}`)
  }
  const unknown = Object.keys(options).find(key => !(KEYS as readonly string[]).includes(key))
  if (unknown !== undefined) {
    const value = (options as unknown as Record<string, unknown>)[unknown]
    throw new ConfigError(unknown, value, 'there is no such field', `the fields are ${KEYS.join(', ')}`)
  }
  const console = consoleKind(options.console)
  const memory = memorySize(options.memory ?? DEFAULTS.memory, limits.memory ?? totalmem())
  const pages = hugePages(options.hugePages)
  if (pages === 'hugetlb') checkHugetlb(options.memory ?? DEFAULTS.memory, memory)
  return {
    ...parseBootOptions(options),
    cmdline: text('cmdline', options.cmdline ?? CMDLINES[console]),
    cpu: text('cpu', options.cpu ?? DEFAULTS.cpu),
    vcpus: vcpuCount(options.vcpus ?? DEFAULTS.vcpus, limits.vcpus),
    memory,
    hugePages: pages,
    disks: parseDisks(options.disks),
    nets: parseNets(options.nets, machineName(options.name)),
    ...resetPolicy(options),
    console,
    rng: flag('rng', options.rng ?? true),
    vsock: parseVsock(options.vsock),
  }
}

/**
 * What a reset and a triple fault do.
 * @throws {ConfigError} `reboot` or `onTripleFault`
 */
export function resetPolicy({
  reboot = true,
  onTripleFault = 'crash',
}: { readonly [K in 'reboot' | 'onTripleFault']?: unknown }): Pick<MachineConfig, 'reboot' | 'onTripleFault'> {
  if (typeof reboot !== 'boolean') throw new ConfigError('reboot', reboot, 'it is no boolean', 'give true or false')
  if (onTripleFault !== 'crash' && onTripleFault !== 'reset') {
    throw new ConfigError('onTripleFault', onTripleFault, 'a triple fault is no such thing', "give 'crash' or 'reset'")
  }
  return { reboot, onTripleFault }
}

/**
 * Looks whether the files that a machine boots from are still there.
 * @throws {ConfigError} naming the field, its value and what to do
 */
export function checkContents({ kernel, initrd, modules, firmware }: MachineConfig): void {
  if (kernel !== undefined) fileContent('kernel', kernel)
  if (initrd !== undefined) fileContent('initrd', initrd)
  if (firmware !== undefined) fileContent('firmware', firmware)
  for (const [i, { file }] of modules.entries()) if (file !== undefined) fileContent(`modules[${i}]`, file)
}

/**
 * A size in bytes: a number, or digits with a unit K, M, G or T (powers of 1024; `MiB` and `MB` mean the same as `M`).
 *
 * @throws {ConfigError} `field`: it is none
 */
export function parseSize(field: string, value: unknown): number {
  const parsed = typeof value === 'string' ? /^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*$/i.exec(value) : null
  const size = parsed ? Number(parsed[1]) * UNITS[parsed[2]!.toUpperCase()]! : value
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) {
    throw new ConfigError(field, value, 'it is no size in bytes', 'write it as in 512M or 8G')
  }
  return size
}

export function memorySize(value: unknown, hostMemory: number): number {
  const size = parseSize('memory', value)
  if (size === 0) throw new ConfigError('memory', value, 'a machine needs some', 'give for example 512M')
  if (size % PAGE_SIZE !== 0) {
    const next = Math.ceil(size / PAGE_SIZE) * PAGE_SIZE
    throw new ConfigError('memory', value, 'it is no multiple of the page size, 4096', `give for example ${next}`)
  }
  if (size > hostMemory) {
    const most = `${Math.floor(hostMemory / 2 ** 20)}M`
    throw new ConfigError('memory', value, `this host has ${most} in all`, 'give less')
  }
  return size
}

function checkHugetlb(value: unknown, memory: number): void {
  if (memory % HUGETLB_PAGE === 0) return
  const problem = 'it is no multiple of 2 MiB, the size of the pages of hugetlb'
  const next = Math.ceil(memory / HUGETLB_PAGE) * HUGETLB_PAGE
  throw new ConfigError('memory', value, problem, `give for example ${next / 2 ** 20}M`)
}

export function vcpuCount(value: unknown, most = Number.MAX_SAFE_INTEGER): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1) {
    throw new ConfigError('vcpus', value, 'it is no count of processors', 'give 1 or more')
  }
  if (value > most) throw new ConfigError('vcpus', value, `KVM on this host allows ${most}`, `give at most ${most}`)
  return value
}

export function hugePages(value: unknown = 'auto'): HugePages {
  const choice = HUGE_PAGES.find(choice => choice === value)
  if (choice) return choice
  throw new ConfigError('hugePages', value, 'there is no such choice', `give one of ${HUGE_PAGES.join(', ')}`)
}

export function consoleKind(value: unknown = 'serial'): ConsoleKind {
  const kind = CONSOLES.find(kind => kind === value)
  if (!kind) throw new ConfigError('console', value, 'there is no such console', `give one of ${CONSOLES.join(', ')}`)
  return kind
}

function machineName(value: unknown): string | undefined {
  if (value === undefined) return undefined
  if (text('name', value) === '') throw new ConfigError('name', value, 'it is empty', 'give one, or none at all')
  return value as string
}

export function flag(field: string, value: unknown): boolean {
  if (typeof value !== 'boolean')
    throw new ConfigError(field, value, 'it is neither true nor false', 'give one of them')
  return value
}
