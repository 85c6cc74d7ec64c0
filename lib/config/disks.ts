import { statSync } from 'node:fs'
import { resolve } from 'node:path'
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
  // Wherever a snapshot of the machine is restored, it is the same one.
  return { path: resolve(path), readonly, snapshot, direct, serial }
}

/** A disk as a snapshot keeps it. */
export interface SavedDisk extends DiskConfig {
  /** Of an image that is a file: its size in bytes and when it was last written, in nanoseconds. */
  readonly image: string | null
}

/** What a snapshot keeps of a disk: its image is no part of it, and must be the same when the machine is restored. */
export function saveDisk(disk: DiskConfig): SavedDisk {
  return { ...disk, image: imageStamp(disk.path) }
}

/**
 * Reads what `saveDisk` gave.
 * @throws {ConfigError} the image is not what it was
 */
export function parseSavedDisks(value: unknown): DiskConfig[] {
  if (!Array.isArray(value)) return parseDisks(value)
  const disks = parseDisks(value.map(disk => withoutStamp(disk)))
  for (const [index, { path }] of disks.entries()) {
    const { image } = value[index] as { readonly image?: unknown }
    const now = imageStamp(path)
    if (image === now || typeof image !== 'string') continue
    const problem =
      now === null ? 'the image is not there any more' : 'the image was written to since the snapshot was taken'
    const remedy =
      'bring it back as it was, with its time stamp, or take the snapshot with the disk as snapshot or readonly'
    throw new ConfigError(`disks[${index}].path`, path, problem, remedy)
  }
  return disks
}

function withoutStamp(disk: unknown): unknown {
  const { image: _, ...rest } = Object(disk) as { readonly image?: unknown }
  return rest
}

function imageStamp(path: string): string | null {
  const stats = statSync(path, { bigint: true, throwIfNoEntry: false })
  return stats?.isFile() ? `${stats.size} bytes of ${stats.mtimeNs}` : null
}

function parseFlag(field: string, value: unknown = false): boolean {
  if (typeof value !== 'boolean')
    throw new ConfigError(field, value, 'it is neither true nor false', 'give one of them')
  return value
}
