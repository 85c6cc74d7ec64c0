import { ConfigError } from '../errors.js'

/** A disk of a machine, as a user gives it. */
export interface DiskOptions {
  /** A raw image: a regular file or a block device. */
  readonly path: string
  /** The guest may not write to it. Default: false. */
  readonly readonly?: boolean | undefined
  /** What the guest writes goes to a temporary overlay, and the image stays as it is. Default: false. */
  readonly snapshot?: boolean | undefined
  /** Past the host's page cache (O_DIRECT). Default: false. */
  readonly direct?: boolean | undefined
  /** Up to 20 characters of ASCII, which the guest sees. Default: `disk0` for the first, and so on. */
  readonly serial?: string | undefined
}

/** A disk, complete and checked. */
export type DiskConfig = { readonly [K in keyof DiskOptions]-?: Exclude<DiskOptions[K], undefined> }

const FLAGS = ['readonly', 'snapshot', 'direct'] as const
const KEYS = ['path', ...FLAGS, 'serial'] as const
/** The guest's disks have names up to /dev/vdz. */
const MOST = 26
const SERIAL_MAX = 20

/**
 * Checks the disks of a machine and fills in the defaults. The images are not looked at.
 * @throws {ConfigError} naming the field, its value and what to do
 */
export function parseDisks(value: unknown = []): DiskConfig[] {
  if (!Array.isArray(value)) throw new ConfigError('disks', value, 'it is no list', 'give [{ path: "disk.img" }]')
  if (value.length > MOST)
    throw new ConfigError('disks', `${value.length} disks`, 'they are too many', `give at most ${MOST}`)
  return value.map((disk, index) => parseDisk(`disks[${index}]`, disk, index))
}

function parseDisk(field: string, value: unknown, index: number): DiskConfig {
  if (typeof value !== 'object' || value === null) {
    throw new ConfigError(field, value, 'it is no object', `give one with ${KEYS.join(', ')}`)
  }
  const unknown = Object.keys(value).find(key => !(KEYS as readonly string[]).includes(key))
  const disk = value as Record<string, unknown>
  if (unknown !== undefined) {
    const problem = 'there is no such field'
    throw new ConfigError(`${field}.${unknown}`, disk[unknown], problem, `the fields are ${KEYS.join(', ')}`)
  }
  const { path, serial = `disk${index}` } = disk
  if (typeof path !== 'string' || path === '' || path.includes('\0')) {
    throw new ConfigError(`${field}.path`, path, 'it is no path', 'give the path of a raw disk image')
  }
  if (typeof serial !== 'string' || serial.length > SERIAL_MAX || !/^[\x20-\x7e]*$/.test(serial)) {
    throw new ConfigError(
      `${field}.serial`,
      serial,
      'it is no serial number',
      `give up to ${SERIAL_MAX} ASCII characters`,
    )
  }
  const [readonly, snapshot, direct] = FLAGS.map(flag => parseFlag(`${field}.${flag}`, disk[flag])) as [
    boolean,
    boolean,
    boolean,
  ]
  if (readonly && snapshot) {
    throw new ConfigError(
      `${field}.snapshot`,
      true,
      'a disk that is only read needs none',
      'give one of snapshot, readonly',
    )
  }
  return { path, readonly, snapshot, direct, serial }
}

function parseFlag(field: string, value: unknown = false): boolean {
  if (typeof value !== 'boolean')
    throw new ConfigError(field, value, 'it is neither true nor false', 'give one of them')
  return value
}
