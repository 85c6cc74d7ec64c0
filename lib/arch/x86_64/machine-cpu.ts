import { ConfigError } from '../../errors.js'
import type { CpuidEntry, Msr } from '../../kvm/structs.js'
import { VMX_FEATURE_NAMES } from '../../nested/vmx-features.js'
import { vmxFeaturesOf } from '../../nested/vmx-switch.js'
import { ARCH_CAPABILITIES, archCapabilities } from './arch-capabilities.js'
import type { HostFeatures } from './compatibility.js'
import { CPU_FLAG_DEPENDENTS, CPU_FLAGS } from './cpu-flags.js'
import type { CpuModel } from './cpu-models/cpu-model.js'
import { type CpuSpec, extensionWith } from './cpu-spec.js'
import {
  type CpuidDraft,
  clearFlag,
  findEntry,
  flagsOf,
  isAmdVendor,
  isSet,
  LEAF_SIZES,
  LEAF_XSAVE,
  placesOf,
  setFlag,
  sizeXsaveArea,
  vendorOf,
  withDependents,
  XSAVE_COMPONENTS,
} from './cpuid.js'
import { modelCpuid } from './model-cpuid.js'
import { choosesVmx, vmxCpu } from './vmx-cpu.js'

/** What the platform adds to what `KVM_GET_SUPPORTED_CPUID` reports. */
export interface CpuidOptions {
  /**
   * Offer the APIC timer's TSC deadline mode. KVM leaves telling of it to user space: give it where KVM_CAP_TSC_DEADLINE_TIMER is
   * there and the interrupt controller is in the kernel.
   */
  readonly tscDeadlineTimer?: boolean
}

/** The processor of a machine. */
export interface MachineCpu {
  /** The CPUID table that all vCPUs share; `vcpuCpuid` makes each vCPU's own of it. */
  readonly cpuid: CpuidEntry[]
  /** IA32_ARCH_CAPABILITIES where a model says what it is; otherwise it is KVM's. */
  readonly archCapabilities?: bigint
  /** The VMX capability MSRs that a vCPU is given, in that order; left out where the guest has no vmx. */
  readonly vmxMsrs?: readonly Msr[]
  /** What of vmx the specification switches, with what depends on it: KVM must have taken that. */
  readonly vmxSwitched?: ReadonlySet<string>
  /**
   * What was asked for and cannot be had here: flags, `phys-bits-46`, `vendor-AuthenticAMD`, `mds-no`,
   * `vmx-feature-msrs` (this KVM lets nobody choose what vmx offers). Empty with `enforce`.
   */
  readonly missing: readonly string[]
}

/**
 * The processor that `spec` asks for, cut to what the host's KVM supports. `host` is left as it is.
 *
 * @throws {ConfigError} `cpu`: with `enforce`, the host lacks something, which is named; a flag that cannot be without another one
 */
export function machineCpu(host: HostFeatures, spec: CpuSpec, options: CpuidOptions = {}): MachineCpu {
  const offered: CpuidDraft[] = host.cpuid.map(entry => ({ ...entry }))
  setFlag(offered, 'hypervisor')
  if (options.tscDeadlineTimer) setFlag(offered, 'tsc_deadline_timer')
  withholdStateless(offered)
  const cpu =
    spec.model === 'host'
      ? hostCpu({ ...host, cpuid: offered }, spec, offered)
      : modelCpu({ ...host, cpuid: offered }, spec, spec.model)
  if (spec.missing === 'enforce' && cpu.missing.length > 0) throw lacking(cpu.missing, spec, offered)
  return cpu
}

/** What a machine whose processor lacks something is told. */
export function lackingMessage({ model }: CpuSpec, missing: readonly string[]): string {
  const which = model === 'host' ? '' : ` of ${model.name}`
  return `KVM on this host does not offer ${listed(missing)}${which}: the guest goes without`
}

/** What of vmx is missing only because its base is goes without saying. */
export function missingBases(missing: readonly string[]): string[] {
  return missing.filter(name => !VMX_FEATURE_NAMES.has(name) || !basesOf(name).some(base => missing.includes(base)))
}

function listed(missing: readonly string[]): string {
  const bases = missingBases(missing)
  const others = missing.length - bases.length
  return others === 0 ? bases.join(', ') : `${bases.join(', ')} (and ${others} of vmx that need it)`
}

function hostCpu(host: HostFeatures, spec: CpuSpec, entries: CpuidDraft[]): MachineCpu {
  const offered = new Set([...flagsOf(entries), ...offeredByVmx(host)])
  const missing = spec.demanded.filter(flag => !offered.has(flag))
  const withheld = withDependents(spec.withheld)
  demandNothingOf(withheld, spec)
  for (const flag of withheld) clearFlag(entries, flag)
  // A kernel may report what means nothing without a flag that it does not report: state components without xsave, say.
  const left = new Set(flagsOf(entries))
  const bases = [...CPU_FLAG_DEPENDENTS.keys(), ...TIED_TO_LEAVES].filter(flag => !left.has(flag))
  for (const flag of withDependents(bases)) clearFlag(entries, flag)
  sizeXsaveArea(entries)
  return {
    cpuid: entries,
    ...(left.has('vmx') && vmxCpu(host, spec, withheld)),
    missing: [...missing, ...setWidths(entries, spec.physBits)],
  }
}

/** The VMX capabilities that a guest can have here: none without vmx. */
function offeredByVmx({ cpuid, featureMsrs }: HostFeatures): string[] {
  if (!flagsOf(cpuid).includes('vmx')) return []
  return vmxFeaturesOf(new Map(featureMsrs.map(({ index, value }) => [index, value])))
}

/**
 * KVM reports AMX to a process that has not asked for its state (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM) without the state: no guest of
 * it can use that.
 */
function withholdStateless(offered: readonly CpuidDraft[]): void {
  const state = findEntry(offered, LEAF_XSAVE)?.eax
  if (!state) return
  const lost = Object.entries(XSAVE_COMPONENTS).filter(([, bits]) => bits.some(bit => ((state >>> bit) & 1) === 0))
  for (const flag of withDependents(lost.map(([flag]) => flag))) clearFlag(offered, flag)
}

/** Flags without which leaves or state components are cleared. */
const TIED_TO_LEAVES = ['svm', 'xsave', 'xsaves', 'avx', 'mpx', 'avx512f', 'pku', 'amx_tile']

function setWidths(entries: readonly CpuidDraft[], asked: number | undefined): string[] {
  const entry = findEntry(entries, LEAF_SIZES)
  if (!entry) return []
  const [physical, linear] = [entry.eax & 0xff, (entry.eax >>> 8) & 0xff]
  const kept = Math.min(asked ?? physical, physical)
  const wide = CPU_FLAGS.get('la57')!.some(at => isSet(entries, at))
  entry.eax = ((entry.eax & ~0xffff) | kept | ((wide ? linear : Math.min(linear, 48)) << 8)) >>> 0
  return asked !== undefined && asked > physical ? [`phys-bits-${asked}`] : []
}

/** What KVM's guests get with any model, as under QEMU (target/i386/kvm/kvm-cpu.c): x2APIC, and KVM's own features. */
export const ADDED_FLAGS: readonly string[] = (
  'hypervisor x2apic kvmclock-old kvmclock kvmclock-stable-bit kvm-nopiodelay kvm-asyncpf kvm-asyncpf-int kvm-steal-time ' +
  'kvm-pv-eoi'
).split(' ')

/** What they get only if asked: nesting, and MONITOR, which KVM does not run. */
const ONLY_IF_ASKED = ['svm', 'vmx', 'monitor']

/** Physical addresses of models, as QEMU has them. */
export const MODEL_PHYS_BITS = 40

/** What of a model's flags, and those that were demanded, a guest gets. */
export function modelFlags(
  model: CpuModel,
  { demanded, withheld }: Pick<CpuSpec, 'demanded' | 'withheld'>,
): Set<string> {
  const gone = withDependents(withheld)
  const named = [...model.flags.filter(flag => !ONLY_IF_ASKED.includes(flag)), ...demanded]
  const flags = new Set(named.filter(flag => !gone.has(flag)))
  // svm's own features come with it.
  if (!flags.has('svm')) for (const flag of withDependents(['svm'])) flags.delete(flag)
  return flags
}

/**
 * What vmx offers to a guest of a model that has these flags: nothing without vmx.
 * @param offered what KVM offers, for models that leave it to that
 */
export function modelVmx(
  model: CpuModel,
  { demanded, withheld }: Pick<CpuSpec, 'demanded' | 'withheld'>,
  flags: ReadonlySet<string>,
  offered: readonly string[] = [],
): string[] {
  const lacks = [...CPU_FLAG_DEPENDENTS.keys()].filter(base => CPU_FLAGS.has(base) && !flags.has(base))
  const gone = withDependents([...withheld, ...lacks])
  const own = model.vmx === 'host' ? offered : model.vmx
  const wanted = new Set([...own, ...demanded.filter(name => VMX_FEATURE_NAMES.has(name))])
  return [...VMX_FEATURE_NAMES].filter(name => wanted.has(name) && !gone.has(name))
}

/** @throws {ConfigError} `cpu`: something is demanded without what it needs */
export function demandBasesOf(
  spec: Pick<CpuSpec, 'text' | 'demanded'>,
  wanted: ReadonlySet<string>,
  offers: (flag: string) => boolean = () => true,
): void {
  for (const flag of spec.demanded) {
    const extension = extensionWith(flag)
    const base = basesOf(flag).find(base => !wanted.has(base))
    // Where the host has no such extension, that is what is told.
    if (base === undefined || (extension && wanted.has(extension) && !offers(extension))) continue
    const remedy = `add +${base}, or leave out +${flag}`
    throw new ConfigError('cpu', spec.text, `${flag} cannot be had without ${base}`, remedy)
  }
}

function modelCpu(host: HostFeatures, spec: CpuSpec, model: CpuModel): MachineCpu {
  const vendor = vendorOf(host.cpuid)
  const amd = isAmdVendor(vendor)
  const vmx = new Set(offeredByVmx(host))
  const offers = (flag: string) =>
    VMX_FEATURE_NAMES.has(flag) ? vmx.has(flag) : placesOf(flag, amd).every(at => isSet(host.cpuid, at))
  const withheld = withDependents(spec.withheld)
  demandNothingOf(withheld, spec)
  const added = ADDED_FLAGS.filter(flag => offers(flag) && !withheld.has(flag))
  const wanted = new Set([...modelFlags(model, spec), ...added])
  const own = offers('vmx') ? modelVmx(model, spec, wanted, [...vmx]) : []
  demandBasesOf(spec, new Set([...wanted, ...own]), offers)
  const fixed = model.vmx !== 'host'
  const blind = fixed && own.length > 0 && !choosesVmx(host)
  if (!blind) for (const feature of own) wanted.add(feature)
  const lost = [...wanted].filter(flag => !offers(flag))
  for (const flag of withDependents(lost)) wanted.delete(flag)
  const width = physBitsOf(host.cpuid)
  const cpuid = modelCpuid({
    model,
    flags: wanted,
    vendor,
    physBits: Math.min(spec.physBits ?? MODEL_PHYS_BITS, width),
    brand: spec.brand ?? model.brand,
    supported: host.cpuid,
  })
  const bits = archCapabilities(model.archCapabilities)
  const theirs = host.featureMsrs.find(({ index }) => index === ARCH_CAPABILITIES)?.value ?? 0n
  const told = wanted.has('arch_capabilities') && bits !== 0n
  return {
    cpuid,
    ...(told && { archCapabilities: bits & theirs }),
    ...(wanted.has('vmx') &&
      vmxCpu(host, spec, new Set([...VMX_FEATURE_NAMES].filter(name => !wanted.has(name))), fixed)),
    missing: [
      ...(model.vendor === 'generic' || model.vendor === vendor ? [] : [`vendor-${model.vendor}`]),
      ...lost,
      ...(blind ? ['vmx-feature-msrs'] : []),
      ...(told ? model.archCapabilities.filter(name => (archCapabilities([name]) & theirs) === 0n) : []),
      ...((spec.physBits ?? 0) > width ? [`phys-bits-${spec.physBits}`] : []),
    ],
  }
}

/** 36 where leaf 0x80000008 is missing (AMD APM vol. 3, appendix E.4.7). */
export function physBitsOf(cpuid: readonly CpuidEntry[]): number {
  return (findEntry(cpuid, LEAF_SIZES)?.eax ?? 36) & 0xff
}

function basesOf(flag: string): string[] {
  return [...CPU_FLAG_DEPENDENTS].filter(([, dependents]) => dependents.includes(flag)).map(([base]) => base)
}

function demandNothingOf(withheld: ReadonlySet<string>, spec: CpuSpec): void {
  for (const flag of spec.demanded) {
    if (!withheld.has(flag)) continue
    const base = basesOf(flag).find(base => withheld.has(base)) ?? 'what is withheld'
    const remedy = `leave out +${flag}${base.includes(' ') ? '' : `, or what withholds ${base}`}`
    throw new ConfigError('cpu', spec.text, `${flag} cannot be had without ${base}, which is withheld`, remedy)
  }
}

/** Most names of flags that a remedy spells out. */
const SPELLED_OUT = 8

function lacking(missing: readonly string[], spec: CpuSpec, offered: readonly CpuidEntry[]): ConfigError {
  const here = new Set(flagsOf(offered))
  for (const flag of missing) {
    const extension = flag === 'vmx' || flag === 'svm' ? flag : extensionWith(flag)
    if (extension && !here.has(extension)) return cannotNest(extension, flag, spec, offered)
  }
  const problem = `KVM on this host does not offer ${listed(missing)} to guests`
  const all = spec.model !== 'host' && missing.every(name => isFeature(name) && !spec.demanded.includes(name))
  const bases = missingBases(missing)
  const without = bases.map(name => `-${name}`).join(',')
  const demanded = missing.filter(name => spec.demanded.includes(name)).map(name => `+${name}`)
  const ways = [
    ...(demanded.length > 0 ? [`leave out ${demanded.join(', ')}`] : []),
    ...(all && bases.length <= SPELLED_OUT ? [`withhold them (${spec.text},${without})`] : []),
    ...(/(^|,)\s*enforce/.test(spec.text) ? [] : [`go without (${spec.text},check)`]),
    'or run on a host whose processor and kernel have it',
  ]
  return new ConfigError('cpu', spec.text, problem, ways.join(', '))
}

export function isFeature(name: string): boolean {
  return CPU_FLAGS.has(name) || VMX_FEATURE_NAMES.has(name)
}

/** `flag`: the extension, or a part of it. */
function cannotNest(
  extension: 'vmx' | 'svm',
  flag: string,
  spec: CpuSpec,
  offered: readonly CpuidEntry[],
): ConfigError {
  const other = extension === 'vmx' ? 'svm' : 'vmx'
  const part = flag === extension ? '' : `${flag} is a part of ${extension}, and `
  if (flagsOf(offered).includes(other)) {
    const problem = `${part}this host has ${other}, not ${extension}: its processor is ${vendorOf(offered)}`
    return new ConfigError('cpu', spec.text, problem, part ? `leave out +${flag}` : `ask for +${other}`)
  }
  const module = extension === 'vmx' ? 'kvm_intel' : 'kvm_amd'
  return new ConfigError(
    'cpu',
    spec.text,
    `${part}KVM on this host does not offer ${extension} to guests: it cannot nest`,
    `load ${module} with nested=1 (nested-kvm doctor tells whether that is possible here), or use the lab (nested-kvm lab)`,
  )
}
