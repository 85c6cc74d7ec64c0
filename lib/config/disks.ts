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
  /** The same, but in a file that is kept and gone on with the next time: its path. It is made where there is none. Default: none. */
  readonly overlay?: string | undefined
  /** Past the host's page cache (O_DIRECT). Default: false. */
  readonly direct?: boolean | undefined
  /** Up to 20 characters of ASCII, which the guest sees. Default: `disk0` for the first, and so on. */
  readonly serial?: string | undefined
}

/** A disk, complete and checked. */
export interface DiskConfig {
  readonly path: string
  readonly readonly: boolean
  readonly snapshot: boolean
  readonly overlay: string | null
  readonly direct: boolean
  readonly serial: string
}

const FLAGS = ['readonly', 'snapshot', 'direct'] as const
const KEYS = ['path', ...FLAGS, 'overlay', 'serial'] as const
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
  const { serial = `disk${index}` } = disk
  const path = parsePath(`${field}.path`, disk.path, 'give the path of a raw disk image')
  const overlay =
    disk.overlay === undefined || disk.overlay === null
      ? null
      : parsePath(`${field}.overlay`, disk.overlay, 'give the path of a file to be made, or made before')
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
  const ways = { readonly, snapshot, overlay: overlay !== null }
  const chosen = Object.keys(ways).filter(way => ways[way as keyof typeof ways])
  if (chosen.length > 1) {
    throw new ConfigError(field, chosen.join(' and '), 'these do not go together', 'give one of them')
  }
  return { path, readonly, snapshot, overlay, direct, serial }
}

/** Wherever a snapshot of the machine is restored, it is the same file: relative paths would not do. */
function parsePath(field: string, value: unknown, remedy: string): string {
  if (typeof value === 'string' && value !== '' && !value.includes('\0')) return resolve(value)
  throw new ConfigError(field, value, 'it is no path', remedy)
}

/** A disk as a snapshot keeps it. */
export interface SavedDisk extends DiskConfig {
  /** Of the image and the overlay, where they are files: size in bytes, and when they were last written, in nanoseconds. */
  readonly image: string | null
}

/** What a snapshot keeps of a disk: its image is no part of it, and must be the same when the machine is restored. */
export function saveDisk(disk: DiskConfig): SavedDisk {
  return { ...disk, image: stampOf(disk) }
}

/**
 * Reads what `saveDisk` gave.
 * @throws {ConfigError} the image is not what it was
 */
export function parseSavedDisks(value: unknown): DiskConfig[] {
  if (!Array.isArray(value)) return parseDisks(value)
  const disks = parseDisks(value.map(disk => withoutStamp(disk)))
  for (const [index, disk] of disks.entries()) {
    const { image } = value[index] as { readonly image?: unknown }
    const now = stampOf(disk)
    if (image === now || typeof image !== 'string') continue
    const problem =
      now === null ? 'the image is not there any more' : 'the image was written to since the snapshot was taken'
    const remedy =
      'bring it back as it was, with its time stamp, or take the snapshot with the disk as snapshot or readonly'
    throw new ConfigError(`disks[${index}].path`, disk.path, problem, remedy)
  }
  return disks
}

function withoutStamp(disk: unknown): unknown {
  const { image: _, ...rest } = Object(disk) as { readonly image?: unknown }
  return rest
}

function stampOf({ path, overlay }: DiskConfig): string | null {
  const image = fileStamp(path)
  return image !== null && overlay !== null ? `${image}; ${fileStamp(overlay)}` : image
}

function fileStamp(path: string): string | null {
  const stats = statSync(path, { bigint: true, throwIfNoEntry: false })
  return stats?.isFile() ? `${stats.size} bytes of ${stats.mtimeNs}` : null
}

function parseFlag(field: string, value: unknown = false): boolean {
  if (typeof value !== 'boolean')
    throw new ConfigError(field, value, 'it is neither true nor false', 'give one of them')
  return value
}
