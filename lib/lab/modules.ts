import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { promisify } from 'node:util'
import { gunzipSync } from 'node:zlib'
import { ConfigError } from '../errors.js'

const run = promisify(execFile)

/** A kernel module, ready to be given to `insmod`: `data` is the decompressed ELF object. */
export interface KernelModule {
  /** As in /proc/modules: `kvm_amd`. */
  readonly name: string
  readonly data: Buffer
}

const MODULE_FILE = /^(.+)\.ko(\.xz|\.zst|\.gz)?$/

/** `kvm-amd` and `kvm_amd` are the same module to the kernel. */
export function moduleName(name: string): string {
  return name.replaceAll('-', '_')
}

/**
 * The modules below one directory (`lib/modules/<release>`) of a kernel package. Packages hold no `modules.dep`, which depmod(8) writes only
 * when they are installed, so dependencies come from each module's own `.modinfo` section.
 */
export class ModuleTree {
  readonly directory: string
  readonly #files: Map<string, string>
  readonly #builtin: Set<string>
  readonly #loaded = new Map<string, { module: KernelModule; depends: string[]; soft: string[] }>()

  private constructor(directory: string, files: Map<string, string>, builtin: Set<string>) {
    this.directory = directory
    this.#files = files
    this.#builtin = builtin
  }

  /** @throws ConfigError when the directory cannot be read or has no module in it. */
  static async open(directory: string): Promise<ModuleTree> {
    const remedy = 'give the lib/modules/<release> directory of a kernel package'
    const names = await readdir(directory, { recursive: true }).catch((error: NodeJS.ErrnoException) => {
      throw new ConfigError('modules directory', directory, `cannot be read (${error.code})`, remedy)
    })
    const files = new Map<string, string>()
    for (const name of names) {
      const match = MODULE_FILE.exec(basename(name))
      if (match) files.set(moduleName(match[1]!), join(directory, name))
    }
    if (files.size === 0) throw new ConfigError('modules directory', directory, 'holds no kernel module', remedy)
    const list = await readFile(join(directory, 'modules.builtin'), 'utf8').catch(() => '')
    const builtin = list.split('\n').map(line => moduleName(basename(line).replace(/\.ko$/, '')))
    return new ModuleTree(directory, files, new Set(builtin))
  }

  has(name: string): boolean {
    return this.#files.has(moduleName(name)) || this.#builtin.has(moduleName(name))
  }

  /** The file of a module, or undefined where it is built in or absent. */
  path(name: string): string | undefined {
    return this.#files.get(moduleName(name))
  }

  /**
   * The named modules and all that they need, each once, in the order in which `insmod` takes them. What is built into
   * the kernel is left out.
   *
   * @throws ConfigError when a module is not there, is damaged, or the modules depend on each other in a circle.
   */
  async load(...names: string[]): Promise<KernelModule[]> {
    const order = new Map<string, KernelModule>()
    for (const name of names) await this.#visit(moduleName(name), order, [])
    return [...order.values()]
  }

  async #visit(name: string, order: Map<string, KernelModule>, path: string[]): Promise<void> {
    if (order.has(name) || this.#builtin.has(name)) return
    if (path.includes(name)) {
      throw new ConfigError(
        'kernel module',
        name,
        `depends on itself (${[...path, name].join(' -> ')})`,
        'fetch it anew',
      )
    }
    const file = this.#files.get(name)
    if (file === undefined) {
      const wanted = path.length > 0 ? `, which ${path.at(-1)} needs,` : ''
      throw new ConfigError('kernel module', name, `is not in ${this.directory}${wanted}`, 'use a kernel that has it')
    }
    const known = this.#loaded.get(name) ?? (await readModule(name, file))
    this.#loaded.set(name, known)
    for (const dependency of known.depends) await this.#visit(dependency, order, [...path, name])
    // A softdep helps but is not required (crc32c and the like), so one that is absent is no error.
    for (const dependency of known.soft) {
      if (this.#files.has(dependency)) await this.#visit(dependency, order, [...path, name])
    }
    order.set(name, known.module)
  }
}

async function readModule(name: string, file: string) {
  const data = await decompress(file)
  const info = readModinfo(data)
  if (info === undefined) {
    throw new ConfigError('kernel module', file, 'is no kernel module or is damaged', 'fetch the kernel package anew')
  }
  const depends = info.filter(([key]) => key === 'depends').flatMap(([, value]) => value.split(','))
  const soft = info.flatMap(([key, value]) => (key === 'softdep' ? preDependencies(value) : []))
  const clean = (names: string[]) => names.filter(Boolean).map(moduleName)
  return { module: { name, data }, depends: clean(depends), soft: clean(soft) }
}

/** "pre: a b post: c" gives a and b (modprobe.d(5), softdep). */
function preDependencies(value: string): string[] {
  return /\bpre:((?:\s+[^\s:]+(?!\S))*)/.exec(value)?.[1]?.split(/\s+/) ?? []
}

async function decompress(file: string): Promise<Buffer> {
  const bytes = readFileSync(file)
  if (file.endsWith('.gz')) return gunzipSync(bytes)
  const tool = file.endsWith('.xz') ? 'xz' : file.endsWith('.zst') ? 'zstd' : undefined
  if (tool === undefined) return bytes
  try {
    const options = { encoding: 'buffer' as const, maxBuffer: 1 << 28 }
    return (await run(tool, ['--decompress', '--stdout', '--quiet', file], options)).stdout
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT'
    const problem = missing ? `is compressed and there is no ${tool} command` : 'cannot be decompressed'
    const remedy = missing ? `install it: apt-get install ${tool === 'xz' ? 'xz-utils' : tool}` : 'fetch it anew'
    throw new ConfigError('kernel module', file, problem, remedy)
  }
}

/**
 * The `key=value` pairs of the `.modinfo` section of an ELF64 object (System V ABI, Sections; Linux:
 * include/linux/moduleparam.h, __MODULE_INFO), or undefined where the file has none or is cut short.
 */
export function readModinfo(object: Buffer): [string, string][] | undefined {
  if (object.length < 64 || object.readUInt32BE(0) !== 0x7f454c46 || object[4] !== 2) return undefined
  const tableAt = Number(object.readBigUInt64LE(40))
  const entrySize = object.readUInt16LE(58)
  const count = object.readUInt16LE(60)
  const namesIndex = object.readUInt16LE(62)
  if (entrySize < 64 || tableAt + entrySize * count > object.length || namesIndex >= count) return undefined
  const section = (index: number) => {
    const at = tableAt + entrySize * index
    const start = Number(object.readBigUInt64LE(at + 24))
    return {
      name: object.readUInt32LE(at),
      bytes: object.subarray(start, start + Number(object.readBigUInt64LE(at + 32))),
    }
  }
  const names = section(namesIndex).bytes
  for (let index = 0; index < count; index++) {
    const { name, bytes } = section(index)
    if (names.toString('latin1', name, names.indexOf(0, name)) !== '.modinfo') continue
    return bytes
      .toString('utf8')
      .split('\0')
      .filter(text => text.includes('='))
      .map(text => [text.slice(0, text.indexOf('=')), text.slice(text.indexOf('=') + 1)])
  }
  return undefined
}
