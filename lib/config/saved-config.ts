import { ConfigError } from '../errors.js'
import { bootWay, givenAsBytes } from './boot-options.js'
import { parseSavedDisks, saveDisk } from './disks.js'
import { text } from './fields.js'
import {
  consoleKind,
  flag,
  type HostLimits,
  hugePages,
  type MachineConfig,
  memorySize,
  resetPolicy,
  vcpuCount,
} from './machine-config.js'
import { parseNets } from './nets.js'
import { parseVsock } from './vsock.js'

type Plain = null | string | number | boolean | readonly Plain[] | { readonly [name: string]: Plain }
/** What a snapshot keeps of a configuration: what was loaded is in the memory now, so a file only as its path. */
export type SavedConfig = Readonly<Record<keyof MachineConfig, Plain>>

export function saveConfig(config: MachineConfig): SavedConfig {
  const path = (content: string | Uint8Array | undefined) => (typeof content === 'string' ? content : null)
  const { vsock } = config
  return {
    ...config,
    kernel: path(config.kernel),
    initrd: path(config.initrd),
    firmware: path(config.firmware),
    lost: givenAsBytes(config),
    modules: config.modules.map(({ file, cmdline }) => ({ file: path(file), cmdline })),
    disks: config.disks.map(disk => ({ ...saveDisk(disk) })),
    vsock: vsock && { ...vsock },
  }
}

/**
 * Reads what `saveConfig` gave; a file may be gone by now.
 * @throws {ConfigError} naming the field, its value and what to do
 */
export function parseSavedConfig(saved: unknown, limits: HostLimits): MachineConfig {
  const fields = Object(saved) as Partial<Record<keyof MachineConfig, unknown>>
  const path = (field: string, value: unknown) => (value === null ? undefined : text(field, value))
  if (typeof fields.memory !== 'number') {
    throw new ConfigError('memory', fields.memory, 'it is no count of bytes', 'use another copy of the snapshot')
  }
  return {
    boot: bootWay(fields.boot),
    kernel: path('kernel', fields.kernel),
    initrd: path('initrd', fields.initrd),
    firmware: path('firmware', fields.firmware),
    modules: savedModules(fields.modules).map(({ file, cmdline }, i) => ({
      file: path(`modules[${i}]`, file),
      cmdline: text(`modules[${i}]`, cmdline),
    })),
    lost: texts('lost', fields.lost),
    cmdline: text('cmdline', fields.cmdline),
    cpu: text('cpu', fields.cpu),
    vcpus: vcpuCount(fields.vcpus, limits.vcpus),
    memory: memorySize(fields.memory, limits.memory),
    hugePages: hugePages(fields.hugePages),
    disks: parseSavedDisks(fields.disks),
    nets: parseNets(fields.nets),
    console: consoleKind(fields.console),
    rng: flag('rng', fields.rng),
    vsock: parseVsock(fields.vsock),
    ...resetPolicy(fields),
  }
}

function texts(field: string, value: unknown): string[] {
  if (!Array.isArray(value)) throw new ConfigError(field, value, 'it is no list', 'use another copy of the snapshot')
  return value.map(one => text(field, one))
}

function savedModules(modules: unknown): { readonly file?: unknown; readonly cmdline?: unknown }[] {
  if (!Array.isArray(modules)) {
    throw new ConfigError('modules', modules, 'it is no list', 'use another copy of the snapshot')
  }
  return modules.map(Object)
}
