import { ConfigError } from '../errors.js'
import { type HostActions, hostActions } from './actions.js'
import { diagnose } from './diagnose.js'
import { here } from './host.js'
import { isOn } from './modules.js'
import { type NestingOptions, type NestingPlan, planNesting } from './nesting-plan.js'
import { readParameters } from './parameters.js'
import type { HostSystem } from './system.js'

/** What was done. */
export interface NestingResult {
  /** Parameters that the reload had changed and that were set back, or given to the module as it was loaded once more. */
  readonly restored: readonly string[]
  /** Parameters that the reload has changed and that could not be set back, as in `kvm_amd.npt: 1, was 0`. */
  readonly changed: readonly string[]
}

/**
 * Plans to switch nested virtualization on (`nested`) or off on this host: looks only.
 * @throws {ConfigError} as `planNesting`
 */
export function planHostNesting(nested: boolean, options: NestingOptions = {}): NestingPlan {
  return planNesting(here(), nested, options)
}

/**
 * Does what a plan says, as root, and verifies it: by the parameter, and by what KVM offers then. Where the module does not load it is loaded
 * as it was before. Blocks while modprobe runs.
 *
 * @throws {ConfigError} not root, the file cannot be written, modprobe fails, or KVM does not follow; what was done is undone, or said
 */
export function applyHostNesting(plan: NestingPlan): NestingResult {
  return applyNesting(plan, here(), hostActions)
}

/** As `applyHostNesting`, on any host. */
export function applyNesting(plan: NestingPlan, system: HostSystem, actions: HostActions): NestingResult {
  if (plan.steps.length === 0) return { restored: [], changed: [] }
  if (system.uid !== 0) {
    throw new ConfigError(
      'user',
      system.uid,
      'only root may do that',
      'run it with sudo, or see the plan with --dry-run',
    )
  }
  const write = plan.steps.find(step => step.kind === 'write')
  // All that can fail about the file fails here, with nothing done yet.
  const file = write && stage(actions, write.path, write.content)
  let result: NestingResult
  try {
    result = reload(plan, system, actions)
  } catch (error) {
    file?.discard()
    throw error
  }
  try {
    file?.commit()
  } catch (error) {
    const problem = `it cannot be written (${(error as NodeJS.ErrnoException).code})`
    throw new ConfigError(
      'configuration',
      write!.path,
      problem,
      'it is as wanted now, and will not be after the next boot',
    )
  }
  return result
}

function stage(actions: HostActions, path: string, content: string) {
  try {
    return actions.stage(path, content)
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    throw new ConfigError(
      'configuration',
      path,
      `it cannot be written (${code ?? message})`,
      'nothing was changed; leave out --persist',
    )
  }
}

function reload(plan: NestingPlan, system: HostSystem, actions: HostActions): NestingResult {
  const { module } = plan
  const commands = plan.steps.filter(step => step.kind !== 'write')
  if (commands.length === 0) return { restored: [], changed: [] }
  for (const { kind, command } of commands) {
    const { code, output } = actions.run(command[0]!, command.slice(1))
    if (code === 0) continue
    // It may be gone all the same, and only what it needed has stayed.
    if (kind === 'unload' && !system.list('/sys/module').includes(module)) continue
    const said = `${command.join(' ')}: ${output || `exit code ${code}`}`
    if (kind === 'unload') throw new ConfigError('module', module, said, 'nothing was changed')
    throw new ConfigError('module', module, said, goBack(plan, system, actions))
  }
  const problem = unlike(plan, system)
  if (problem) throw new ConfigError('module', module, problem, goBack(plan, system, actions))
  return restoreParameters(plan, system, actions)
}

/** What of a plan has not come true. */
function unlike({ module, nested, extension }: NestingPlan, system: HostSystem): string | undefined {
  const value = system.read(`/sys/module/${module}/parameters/nested`)?.trim()
  if (value === undefined || isOn(value) !== nested) return `it is loaded, with nested=${value ?? '?'}`
  const { offered, device } = diagnose(system).facts
  if (offered === null) return `it is loaded, but KVM cannot be asked: ${device.problem}`
  if (offered.includes(extension) !== nested) {
    return `it is loaded with nested=${value}, yet KVM ${nested ? 'does not offer' : 'still offers'} ${extension} to guests`
  }
  return undefined
}

/** Loads the module as it was, or leaves it unloaded where it was not there; says what it is like now. */
function goBack(plan: NestingPlan, system: HostSystem, actions: HostActions): string {
  const { module, former } = plan
  const loaded = () => system.list('/sys/module').includes(module)
  if (loaded()) actions.run('modprobe', ['-r', module])
  if (former === null) return loaded() ? 'it could not be unloaded again: see dmesg' : 'it is unloaded again: see dmesg'
  const option = `nested=${isOn(former) ? 1 : 0}`
  const command = ['modprobe', module, option]
  const { code, output } = actions.run(command[0]!, command.slice(1))
  if (code === 0) {
    const back: NestingPlan = { ...plan, nested: isOn(former), steps: [{ kind: 'load', command }] }
    const { changed } = restoreParameters(back, system, actions)
    const but = changed.length > 0 ? `, but for ${changed.join('; ')}` : ''
    return `it is loaded again as it was, with ${option}${but}: see dmesg`
  }
  return `nor does it load as it was (${output}), so there is no KVM now: see dmesg, mend that, then modprobe ${module}`
}

/** A parameter that a reload has changed, and that cannot be written. */
interface Fixed {
  readonly module: string
  readonly name: string
  readonly was: string
  readonly value: string | null
}

/** `nested`, and what is off where that is, by the kernel itself. */
const SWITCHED = ['nested', 'enable_shadow_vmcs']

/**
 * Parameters that were set by hand are gone with the module. Those that can be written are set again; for others, which it takes at its
 * load alone, it is loaded once more.
 */
function restoreParameters(plan: NestingPlan, system: HostSystem, actions: HostActions): NestingResult {
  const first = setAgain(plan, system, actions)
  const options = first.fixed.filter(({ was }) => /^[^\s()]+$/.test(was))
  if (options.length > 0) loadWith(options, plan, system, actions)
  const { restored, fixed } = options.length > 0 ? setAgain(plan, system, actions) : first
  const given = options.map(keyOf).filter(key => !fixed.some(parameter => keyOf(parameter) === key))
  return {
    restored: [...new Set([...first.restored, ...restored, ...given])],
    changed: fixed.map(parameter => `${keyOf(parameter)}: ${parameter.value}, was ${parameter.was}`),
  }
}

function keyOf({ module, name }: { readonly module: string; readonly name: string }): string {
  return `${module}.${name}`
}

/** Writes what is otherwise than before. */
function setAgain(plan: NestingPlan, system: HostSystem, actions: HostActions) {
  const restored: string[] = []
  const fixed: Fixed[] = []
  const before = new Map(plan.parameters.map(parameter => [keyOf(parameter), parameter.value]))
  for (const parameter of readParameters(system, [plan.module])) {
    const { module, name, value } = parameter
    const was = before.get(keyOf(parameter))
    if (was === undefined || was === null || was === value) continue
    if (module === plan.module && SWITCHED.includes(name)) continue
    try {
      actions.set(`/sys/module/${module}/parameters/${name}`, was)
      restored.push(keyOf(parameter))
    } catch {
      fixed.push({ module, name, was, value })
    }
  }
  return { restored, fixed }
}

/** Loads the module once more, with what it takes only then; where that cannot be, as planned again. */
function loadWith(options: readonly Fixed[], plan: NestingPlan, system: HostSystem, actions: HostActions): void {
  const { module } = plan
  const load = plan.steps.filter(step => step.kind !== 'write').find(({ kind }) => kind === 'load')
  if (!load) return
  const of = (owner: string) =>
    options.filter(({ module }) => module === owner).map(({ name, was }) => `${name}=${was}`)
  const run = ([program, ...args]: readonly string[]) => actions.run(program!, args)
  const unload = () => run(['modprobe', '-r', module]).code === 0 || !system.list('/sys/module').includes(module)
  if (!unload()) return
  const common = of('kvm')
  if (
    (common.length === 0 || run(['modprobe', 'kvm', ...common]).code === 0) &&
    run([...load.command, ...of(module)]).code === 0 &&
    unlike(plan, system) === undefined
  ) {
    return
  }
  unload()
  const { code, output } = run(load.command)
  if (code === 0) return
  const remedy = `there is no KVM now: see dmesg, mend that, then modprobe ${module}`
  throw new ConfigError('module', module, `${load.command.join(' ')}: ${output}`, remedy)
}
