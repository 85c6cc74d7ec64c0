import { ConfigError } from '../errors.js'
import { parseSavedDisks, saveDisk } from './disks.js'
import {
  consoleKind,
  flag,
  type HostLimits,
  type MachineConfig,
  memorySize,
  resetPolicy,
  text,
  vcpuCount,
} from './machine-config.js'
import { parseVsock } from './vsock.js'

type Scalar = null | string | number | boolean
type Fields = Readonly<Record<string, Scalar>>
type Plain = Scalar | Fields | readonly Fields[]
/** What a snapshot keeps of a configuration: what was loaded is in the memory now, so a file only as its path. */
export type SavedConfig = Readonly<Record<keyof MachineConfig, Plain>>

export function saveConfig(config: MachineConfig): SavedConfig {
  const path = (content: string | Uint8Array | undefined) => (typeof content === 'string' ? content : null)
  const { vsock } = config
  return {
    ...config,
    kernel: path(config.kernel),
    initrd: path(config.initrd),
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
  const path = (field: 'kernel' | 'initrd') => (fields[field] === null ? undefined : text(field, fields[field]))
  if (typeof fields.memory !== 'number') {
    throw new ConfigError('memory', fields.memory, 'it is no count of bytes', 'use another copy of the snapshot')
  }
  return {
    kernel: path('kernel'),
    initrd: path('initrd'),
    cmdline: text('cmdline', fields.cmdline),
    cpu: text('cpu', fields.cpu),
    vcpus: vcpuCount(fields.vcpus, limits.vcpus),
    memory: memorySize(fields.memory, limits.memory),
    disks: parseSavedDisks(fields.disks),
    console: consoleKind(fields.console),
    rng: flag('rng', fields.rng),
    vsock: parseVsock(fields.vsock),
    ...resetPolicy(fields),
  }
}
