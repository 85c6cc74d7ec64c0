import { existsSync } from 'node:fs'
import { ConfigError } from '../errors.js'
import { fileContent, text } from './fields.js'

/** How a machine boots: by firmware, or a kernel directly, the way that it is made for (`auto`) or one that is forced. */
export const BOOT_WAYS = ['auto', 'linux', 'pvh', 'multiboot', 'firmware'] as const
export type BootWay = (typeof BOOT_WAYS)[number]

/** Where distributions put SeaBIOS's build for machines without PCI. */
const FIRMWARE_PATHS = ['/usr/share/seabios/bios-microvm.bin', '/usr/share/qemu/bios-microvm.bin'] as const

/** A file for a kernel that takes modules. */
export interface ModuleOptions {
  /** The path of a file, or its content. */
  readonly file: string | Uint8Array
  /** Its command line, without the file's name. Default: empty. */
  readonly cmdline?: string | undefined
}

/** What a user gives about booting. */
export interface BootOptions {
  /**
   * A bzImage, an ELF64 `vmlinux`, an ELF kernel with an entry point for PVH, or a Multiboot kernel; gzip'd or not: the path of a
   * file, or its content. None where firmware boots.
   */
  readonly kernel?: string | Uint8Array | undefined
  /** Initramfs, or a PVH kernel's first module: the path of a file, or its content. Default: none. */
  readonly initrd?: string | Uint8Array | undefined
  /** Modules for a Multiboot or PVH kernel. Default: none. */
  readonly modules?: readonly ModuleOptions[] | undefined
  /** How to boot. Default: by firmware where there is no kernel but a disk or `firmware`; else `auto`, as the kernel is made. */
  readonly boot?: BootWay | undefined
  /** The image of firmware that knows fw_cfg: the path of a file, or its content. Default: SeaBIOS for microvm, if installed. */
  readonly firmware?: string | Uint8Array | undefined
}

/** What is booted and how, checked. */
export interface BootConfig {
  readonly boot: BootWay
  /** Undefined where firmware boots, and where the machine was restored and its kernel given as bytes. */
  readonly kernel: string | Uint8Array | undefined
  readonly initrd: string | Uint8Array | undefined
  /** The file undefined as `kernel`. */
  readonly modules: readonly { readonly file: string | Uint8Array | undefined; readonly cmdline: string }[]
  /** Undefined where a kernel boots, and as `kernel`. */
  readonly firmware: string | Uint8Array | undefined
  /** Of a restored machine: what it had booted that was given as bytes, so that it cannot boot again. */
  readonly lost: readonly string[]
}

export const BOOT_KEYS = ['kernel', 'initrd', 'modules', 'boot', 'firmware'] as const

/**
 * Checks what is to be booted. Files are looked at, but not read.
 * @throws {ConfigError} naming the field, its value and what to do
 */
export function parseBootOptions(
  options: BootOptions & { readonly cmdline?: unknown; readonly disks?: unknown },
): BootConfig {
  const { kernel, initrd, modules, firmware } = options
  const boot = chooseWay(options)
  if (boot === 'firmware') {
    const beside = (['kernel', 'initrd', 'modules', 'cmdline'] as const).find(field => options[field] !== undefined)
    if (beside !== undefined) {
      const problem = 'firmware boots from a disk, and takes none'
      throw new ConfigError(beside, described(options[beside]), problem, 'leave it out, or set boot to auto')
    }
    return { boot, kernel: undefined, initrd: undefined, modules: [], firmware: firmwareImage(firmware), lost: [] }
  }
  if (firmware !== undefined) {
    const problem = `a kernel is booted directly (boot: ${boot}), without firmware`
    throw new ConfigError('firmware', described(firmware), problem, 'leave out one of the two')
  }
  if (kernel === undefined) {
    const remedy = 'give the path of a bzImage, vmlinux or Multiboot kernel, or let firmware boot (boot: firmware)'
    throw new ConfigError('kernel', undefined, 'a machine needs one', remedy)
  }
  return {
    boot,
    kernel: fileContent('kernel', kernel),
    initrd: initrd === undefined ? undefined : fileContent('initrd', initrd),
    modules: moduleList(modules ?? []),
    firmware: undefined,
    lost: [],
  }
}

/** The fields whose content was given as bytes: a snapshot does not keep it. */
export function givenAsBytes({ kernel, initrd, firmware, modules, lost }: BootConfig): string[] {
  const contents: Record<string, unknown> = { kernel, initrd, firmware }
  for (const [i, { file }] of modules.entries()) contents[`modules[${i}]`] = file
  return [...lost, ...Object.keys(contents).filter(field => contents[field] instanceof Uint8Array)]
}

/** Where there is no kernel, firmware boots from the disk. */
function chooseWay({ boot = 'auto', kernel, firmware, disks }: Parameters<typeof parseBootOptions>[0]): BootWay {
  const hasDisk = Array.isArray(disks) && disks.length > 0
  return boot === 'auto' && kernel === undefined && (firmware !== undefined || hasDisk) ? 'firmware' : bootWay(boot)
}

/** @throws {ConfigError} `boot`: there is no such way */
export function bootWay(value: unknown): BootWay {
  const way = BOOT_WAYS.find(known => known === value)
  if (way) return way
  throw new ConfigError('boot', value, 'there is no such way to boot', `give one of ${BOOT_WAYS.join(', ')}`)
}

function firmwareImage(firmware: unknown): string | Uint8Array {
  if (firmware !== undefined) return fileContent('firmware', firmware)
  const found = FIRMWARE_PATHS.find(path => existsSync(path))
  if (found) return found
  const problem = `none is given, and there is none at ${FIRMWARE_PATHS.join(' or ')}`
  throw new ConfigError('firmware', undefined, problem, "install SeaBIOS (Debian's package seabios), or give its path")
}

function moduleList(modules: unknown): BootConfig['modules'] {
  if (!Array.isArray(modules)) {
    throw new ConfigError('modules', modules, 'it is no list', 'give a list of objects with file and cmdline')
  }
  return modules.map((module: unknown, i) => {
    const field = `modules[${i}]`
    const { file, cmdline = '' } = Object(module) as Partial<Record<keyof ModuleOptions, unknown>>
    return { file: fileContent(field, file), cmdline: text(field, cmdline) }
  })
}

/** Bytes are not printed. */
function described(value: unknown): unknown {
  if (value instanceof Uint8Array) return `${value.length} bytes`
  return Array.isArray(value) ? `${value.length} files` : value
}
