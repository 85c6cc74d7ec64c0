import { ConfigError } from '../errors.js'
import { diagnose } from './diagnose.js'
import { CONFIG_DIRECTORY, CONFIG_FILE, optionPlaces, withOption } from './modprobe-config.js'
import { type Extension, isOn, moduleOf, moduleState } from './modules.js'
import { type KvmParameter, readParameters } from './parameters.js'
import type { HostSystem } from './system.js'
import { describeUser, kvmUsers } from './users.js'

export interface NestingOptions {
  /** Also after every boot: writes `/etc/modprobe.d/nested-kvm.conf`. */
  readonly persist?: boolean
}

/** A step of a plan, in the order in which they are done. */
export type NestingStep =
  | { readonly kind: 'unload' | 'load'; readonly command: readonly string[] }
  | { readonly kind: 'write'; readonly path: string; readonly content: string }

/** What will be done, and what it was before. */
export interface NestingPlan {
  readonly extension: Extension
  readonly module: string
  /** What is wanted. */
  readonly nested: boolean
  /** The parameter as it is; null while the module is not loaded. */
  readonly former: string | null
  /** It is as wanted already; a step that is left only makes it last. */
  readonly already: boolean
  readonly steps: readonly NestingStep[]
  readonly notes: readonly string[]
  /** The parameters of `kvm` and the module as they are: reloaded, those that were set by hand are lost. */
  readonly parameters: readonly KvmParameter[]
}

/**
 * Says what it takes to switch nested virtualization on or off. Looks only, changes nothing.
 *
 * @throws {ConfigError} it cannot be done here: the CPU has no extension, the module is built into the kernel, is in use, or there is no
 * modprobe; and with `persist`, another file says otherwise or ours cannot be written
 */
export function planNesting(
  system: HostSystem,
  nested: boolean,
  { persist = false }: NestingOptions = {},
): NestingPlan {
  const extension = extensionOf(system)
  const module = moduleOf[extension]
  const state = moduleState(system, module)
  const former = system.read(`/sys/module/${module}/parameters/nested`)?.trim() ?? null
  const value = nested ? '1' : '0'
  const already = state !== 'absent' && isOn(former ?? undefined) === nested
  // One that is not loaded cannot nest: nothing is to be done to have it so.
  const change = !already && (state !== 'absent' || nested)
  const steps: NestingStep[] = []
  const notes: string[] = []
  if (change) steps.push(...reload(system, module, state, value))
  else if (!already) notes.push(`${module} is not loaded`)
  const write = persist && state !== 'built-in' ? planFile(system, module, value) : undefined
  if (write) steps.push(write)
  else if (state === 'built-in')
    notes.push(`${module} is built into the kernel: its command line decides after each boot`)
  else if (persist) notes.push(`it lasts already: ${lasting(system, module)}`)
  else notes.push(...afterBoot(system, module, value))
  const parameters = state === 'absent' ? [] : readParameters(system, [module])
  return { extension, module, nested, former, already, steps, notes, parameters }
}

function extensionOf(system: HostSystem): Extension {
  const { facts, reason } = diagnose(system)
  const [extension] = facts.cpu
  if (extension) return extension
  const vendor = facts.modules.vendor.join(', ') || 'none'
  const problem = `with the module ${vendor} nothing can be switched on: ${reason}`
  const remedy = 'see nested-kvm doctor, or use the lab: nested-kvm lab -- <command>'
  throw new ConfigError('CPU', 'neither vmx nor svm', problem, remedy)
}

/** The commands, once nothing speaks against them. */
function reload(
  system: HostSystem,
  module: string,
  state: 'loaded' | 'built-in' | 'absent',
  value: string,
): NestingStep[] {
  if (state === 'built-in') {
    const remedy = `add ${module}.nested=${value} to the kernel's command line and restart`
    throw new ConfigError('module', module, 'it is built into the kernel and cannot be reloaded', remedy)
  }
  if (system.program('modprobe') === undefined) {
    throw new ConfigError('modprobe', '', 'there is no such program', 'install the package kmod')
  }
  const load: NestingStep = { kind: 'load', command: ['modprobe', module, `nested=${value}`] }
  if (state === 'absent') return [load]
  refuseUsed(system, module)
  return [{ kind: 'unload', command: ['modprobe', '-r', module] }, load]
}

/** Unloading would fail; and what runs there is somebody's. */
function refuseUsed(system: HostSystem, module: string): void {
  const users = kvmUsers(system)
  if (users.length > 0) {
    const names = users.map(describeUser).join(', ')
    throw new ConfigError('module', module, `it is in use by ${names}`, 'stop these virtual machines first')
  }
  const references = Number(system.read(`/sys/module/${module}/refcnt`)?.trim() ?? '0')
  if (references > 0) {
    const problem = `it is in use (${references} references) by processes that are not seen from here`
    throw new ConfigError(
      'module',
      module,
      problem,
      'stop every virtual machine first; look for them as root, outside of any container',
    )
  }
}

/** The file that makes it last; undefined where nothing has to be written. */
function planFile(system: HostSystem, module: string, value: string): NestingStep | undefined {
  const places = optionPlaces(system, module, 'nested')
  const wanted = value === '1'
  const against = places.find(place => isOn(normal(place.value)) !== wanted)
  if (against) {
    const problem = `it sets nested=${against.value} for ${module}`
    throw new ConfigError('configuration', against.place, problem, 'change or remove that, or leave out --persist')
  }
  const text = system.read(CONFIG_FILE)
  if (text === undefined && places.length > 0) return undefined
  const content = withOption(text, module, 'nested', value)
  if (content === text) return undefined
  refuseReadOnly(system)
  return { kind: 'write', path: CONFIG_FILE, content }
}

function refuseReadOnly(system: HostSystem): void {
  for (const directory of [CONFIG_DIRECTORY, '/etc']) {
    const code = system.unwritable(directory)
    if (code === undefined) return
    // It is made then.
    if (code === 'ENOENT' && directory !== '/etc') continue
    // Who is not root is told so before anything is done.
    if (code === 'EACCES' && system.uid !== 0) return
    const remedy = code === 'EROFS' ? 'remount it writable, or leave out --persist' : 'leave out --persist'
    throw new ConfigError('configuration', directory, `it cannot be written (${code})`, remedy)
  }
}

/** The kernel takes y, Y and on for booleans as well (Linux: kstrtobool). */
function normal(value: string): string {
  return /^(y|yes|on|true)$/i.test(value) ? 'Y' : value
}

function lasting(system: HostSystem, module: string): string {
  return optionPlaces(system, module, 'nested')[0]?.place ?? CONFIG_FILE
}

/** What a boot would make of it. */
function afterBoot(system: HostSystem, module: string, value: string): string[] {
  const own = system.read(CONFIG_FILE)
  const set = optionPlaces(system, module, 'nested').map(({ place, value }) => ({ place, value }))
  if (own !== undefined && withOption(own, module, 'nested', value) !== own && own.includes('nested=')) {
    return [`after the next boot it is as ${CONFIG_FILE} says; --persist changes that`]
  }
  const other = set.find(place => isOn(normal(place.value)) !== (value === '1'))
  return other ? [`after the next boot it is as ${other.place} says (nested=${other.value})`] : []
}
