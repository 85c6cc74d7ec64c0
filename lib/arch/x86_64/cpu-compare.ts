/** CPU models and hosts held against each other. */
import { ConfigError } from '../../errors.js'
import { vmxFeaturesOf } from '../../nested/vmx-switch.js'
import { CPU_FLAGS } from './cpu-flags.js'
import type { CpuHost } from './cpu-host.js'
import type { CpuModel } from './cpu-models/cpu-model.js'
import { CPU_MODELS } from './cpu-models/models.js'
import { type CpuSpec, parseCpuSpec } from './cpu-spec.js'
import { flagsOf, vendorOf } from './cpuid.js'
import {
  ADDED_FLAGS,
  demandBasesOf,
  isFeature,
  type MachineCpu,
  MODEL_PHYS_BITS,
  machineCpu,
  missingBases,
  modelFlags,
  modelVmx,
  physBitsOf,
} from './machine-cpu.js'

/** What tells one CPU from another. */
export interface CpuFacts {
  readonly vendor: string
  readonly family: number
  readonly model: number
  readonly stepping: number
  readonly brand: string
  readonly flags: readonly string[]
  /** What vmx offers to the guest (`vmx-ept`): nothing without vmx; null where that is a host's, and there is none. */
  readonly vmx: readonly string[] | null
}

export interface CpuDifference {
  /** Flags that only the one has, and what only its vmx offers. */
  readonly onlyA: readonly string[]
  readonly onlyB: readonly string[]
  /** What else differs: `family`, `brand`, ... */
  readonly fields: readonly { readonly field: string; readonly a: string | number; readonly b: string | number }[]
}

export interface CpuBaseline {
  /** The model with the most flags that all of the hosts can give. */
  readonly model: string | null
  /**
   * The most that a model can give if what some host lacks is withheld: `Skylake-Server,-hle,-rtm`. With it, a guest has the same on all
   * of the hosts: KVM's own features and the width of addresses, too.
   */
  readonly cpu: string | null
  /**
   * The same for a guest that has guests itself, with what some host's vmx lacks withheld as well: `Haswell,+vmx,-vmx-pml`. Null where not
   * all of the hosts nest, or some nest by vmx and some by svm.
   */
  readonly nested: string | null
  /** The flags that all of the hosts offer. */
  readonly flags: readonly string[]
  /** What the vmx of all of the hosts offers. */
  readonly vmx: readonly string[]
  /** What keeps each of the other models: the names of what some host lacks. */
  readonly missing: Readonly<Record<string, readonly string[]>>
}

/** What `spec` asks for and the host cannot give: none where a machine with it can run there. */
export function missingOf(host: CpuHost, spec: CpuSpec): readonly string[] {
  return cpuOf(host, spec).missing
}

function cpuOf(host: CpuHost, spec: CpuSpec): MachineCpu {
  const { tscDeadlineTimer } = host
  return machineCpu(host, { ...spec, missing: 'check' }, { tscDeadlineTimer })
}

function offeredVmx({ vmxMsrs = [] }: MachineCpu): string[] {
  return vmxFeaturesOf(new Map(vmxMsrs.map(({ index, value }) => [index, value])))
}

/**
 * What a guest gets of a model where the host can give it all; besides, KVM's own features.
 * @param host whose vmx a guest has where the model leaves that to the host
 * @throws {ConfigError} `cpu`: it is `host`, or something is demanded without what it needs
 */
export function factsOfModel(spec: CpuSpec, host?: CpuHost): CpuFacts {
  const { model, brand } = spec
  if (model === 'host') throw new ConfigError('cpu', 'host', 'what it is depends on the host', 'name a model')
  const flags = modelFlags(model, spec)
  const offered = host && factsOfHost(host).vmx
  const vmx = modelVmx(model, spec, flags, offered ?? [])
  const unknown = flags.has('vmx') && model.vmx === 'host' && !offered?.length
  demandBasesOf(spec, new Set([...flags, ...vmx]), flag => flag !== 'vmx' || !unknown)
  return {
    ...model,
    brand: brand ?? model.brand,
    flags: [...CPU_FLAGS.keys()].filter(flag => flags.has(flag)),
    vmx: unknown && !host ? null : vmx,
  }
}

/** A host: what `host` gives there. */
export function factsOfHost(host: CpuHost, spec: CpuSpec = parseCpuSpec('host')): CpuFacts {
  const cpu = cpuOf(host, spec)
  const { cpuid } = cpu
  const signature = cpuid.find(entry => entry.function === 1)?.eax ?? 0
  const base = (signature >>> 8) & 0xf
  const words = [2, 3, 4].flatMap(i => {
    const leaf = cpuid.find(entry => entry.function === 0x80000000 + i)
    return leaf ? [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] : []
  })
  return {
    vendor: vendorOf(cpuid),
    family: base === 0xf ? base + ((signature >>> 20) & 0xff) : base,
    model: ((signature >>> 4) & 0xf) | (((signature >>> 16) & 0xf) << 4),
    stepping: signature & 0xf,
    brand: Buffer.from(Uint32Array.from(words).buffer).toString('latin1').replace(/\0.*$/s, '').trim(),
    flags: flagsOf(cpuid),
    vmx: offeredVmx(cpu),
  }
}

export function diffCpus(a: CpuFacts, b: CpuFacts): CpuDifference {
  const fields = ['vendor', 'family', 'model', 'stepping', 'brand'] as const
  const known = a.vmx !== null && b.vmx !== null
  const all = ({ flags, vmx }: CpuFacts) => [...flags, ...((known && vmx) || [])]
  const [ofA, ofB] = [all(a), all(b)]
  return {
    onlyA: ofA.filter(flag => !ofB.includes(flag)),
    onlyB: ofB.filter(flag => !ofA.includes(flag)),
    fields: fields.filter(field => a[field] !== b[field]).map(field => ({ field, a: a[field], b: b[field] })),
  }
}

/**
 * The CPU that a guest can have on any of the hosts, so that it can move between them.
 * @throws {ConfigError} `hosts`: there are none
 */
export function cpuBaseline(hosts: readonly CpuHost[]): CpuBaseline {
  const [first, ...others] = hosts
  if (!first) throw new ConfigError('hosts', 0, 'there is no host to find a CPU for', 'give at least one')
  const offered = others.map(host => factsOfHost(host))
  const own = factsOfHost(first)
  const missing = new Map(
    CPU_MODELS.map(model => {
      const spec = parseCpuSpec(model.name)
      return [model, [...new Set(hosts.flatMap(host => missingOf(host, spec)))]] as const
    }),
  )
  const settings = commonSettings(hosts)
  const runnable = CPU_MODELS.filter(model => missing.get(model)!.length === 0)
  const extension = EXTENSIONS.find(flag => hosts.every(host => factsOfHost(host).flags.includes(flag)))
  const largest = (...demanded: readonly string[]) => {
    const of = (model: CpuModel) => largestOf(hosts, [model.name, ...demanded.map(flag => `+${flag}`)], settings)
    const all = [...missing].flatMap(([model, lost]) => (lost.every(isFeature) ? of(model) : []))
    return all.sort((a, b) => b.size - a.size || a.withheld - b.withheld)[0]?.cpu ?? null
  }
  return {
    model: runnable.sort((a, b) => sizeOf(a) - sizeOf(b)).at(-1)?.name ?? null,
    cpu: largest(),
    nested: extension ? largest(extension) : null,
    flags: own.flags.filter(flag => offered.every(({ flags }) => flags.includes(flag))),
    vmx: (own.vmx ?? []).filter(name => offered.every(({ vmx }) => vmx?.includes(name))),
    missing: Object.fromEntries(
      [...missing].filter(([, lost]) => lost.length > 0).map(([model, lost]) => [model.name, lost]),
    ),
  }
}

const EXTENSIONS = ['vmx', 'svm'] as const

/** The most of a CPU that all of the hosts give, if they differ in nothing but features; none where what vmx offers is theirs. */
function largestOf(hosts: readonly CpuHost[], parts: readonly string[], settings: readonly string[]) {
  const whole = parseCpuSpec(parts.join(','))
  if (whole.model !== 'host' && whole.model.vmx === 'host' && whole.demanded.includes('vmx')) return []
  const lost = missingOfAny(hosts, whole)
  if (!lost?.every(isFeature)) return []
  const bases = missingBases(lost)
  const cpu = [...parts, ...bases.map(name => `-${name}`), ...settings].join(',')
  const spec = parseCpuSpec(cpu)
  if (missingOfAny(hosts, spec)?.length !== 0) return []
  return [{ cpu, withheld: bases.length, size: factsOfModel(spec).flags.length }]
}

/** Undefined: some host cannot have that CPU at all, as it has a control always on that the CPU lacks. */
function missingOfAny(hosts: readonly CpuHost[], spec: CpuSpec): string[] | undefined {
  try {
    return [...new Set(hosts.flatMap(host => missingOf(host, spec)))]
  } catch (error) {
    if (error instanceof ConfigError) return undefined
    throw error
  }
}

function sizeOf({ name }: CpuModel): number {
  return factsOfModel(parseCpuSpec(name)).flags.length
}

/** What a model leaves to the host, and hosts differ in. */
function commonSettings(hosts: readonly CpuHost[]): string[] {
  const offered = hosts.map(host => new Set(factsOfHost(host).flags))
  const some = ADDED_FLAGS.filter(flag => offered.some(flags => flags.has(flag)))
  const width = Math.min(...hosts.map(host => physBitsOf(host.cpuid)))
  return [
    ...some.filter(flag => !offered.every(flags => flags.has(flag))).map(flag => `-${flag}`),
    ...(width < MODEL_PHYS_BITS ? [`phys-bits=${width}`] : []),
  ]
}
