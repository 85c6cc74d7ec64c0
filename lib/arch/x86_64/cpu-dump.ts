/** What the KVM of a host can give, as a file that other hosts can read. */
import { ConfigError } from '../../errors.js'
import { hostCpuid } from '../../kvm/host-cpuid.js'
import type { Kvm } from '../../kvm/kvm.js'
import type { CpuidEntry } from '../../kvm/structs.js'
import { type CpuHost, cpuHost } from './cpu-host.js'
import { vendorOf } from './cpuid.js'

/** Raised when a reader of the old one would misread the new one. */
export const CPU_DUMP_SCHEMA = 1

/** A host's `CpuHost` as JSON: registers and MSRs in hexadecimal. */
export interface CpuDump {
  readonly schema: typeof CPU_DUMP_SCHEMA
  /** The processor's brand string, for people. */
  readonly processor: string
  readonly vendor: string
  readonly tscDeadlineTimer: boolean
  /** `KVM_GET_SUPPORTED_CPUID` */
  readonly cpuid: readonly DumpedLeaf[]
  /** The feature MSRs (`KVM_GET_MSR_FEATURE_INDEX_LIST`) by number. */
  readonly featureMsrs: Readonly<Record<string, string>>
}

export interface DumpedLeaf {
  readonly leaf: string
  readonly index: number
  /** KVM_CPUID_FLAG_SIGNIFCANT_INDEX and its like. */
  readonly flags: number
  readonly eax: string
  readonly ebx: string
  readonly ecx: string
  readonly edx: string
}

/** `cpuHost` as JSON. */
export function dumpCpu(kvm: Kvm): CpuDump {
  const { cpuid, featureMsrs, tscDeadlineTimer } = cpuHost(kvm)
  return {
    schema: CPU_DUMP_SCHEMA,
    processor: processorBrand(),
    vendor: vendorOf(cpuid),
    tscDeadlineTimer,
    cpuid: cpuid.map(({ function: leaf, index, flags, eax, ebx, ecx, edx }) => {
      return { leaf: hex(leaf), index, flags, eax: hex(eax), ebx: hex(ebx), ecx: hex(ecx), edx: hex(edx) }
    }),
    featureMsrs: Object.fromEntries(featureMsrs.map(({ index, value }) => [hex(index), hex(value)])),
  }
}

/**
 * Reads what `dumpCpu` gave, from `path`.
 * @throws {ConfigError} `path`: it is no dump, is damaged, or is from a newer version
 */
export function parseCpuDump(text: string, path: string): CpuHost {
  const bad = (problem: string) =>
    new ConfigError('dump', path, problem, 'make one with: nested-kvm cpu dump --json > host.json')
  const dump = parseObject(text)
  if (!dump || !('schema' in dump)) throw bad('it is no CPU dump')
  const { schema } = dump
  if (typeof schema === 'number' && Number.isInteger(schema) && schema > CPU_DUMP_SCHEMA) {
    const problem = `it is a CPU dump of schema ${schema}, from a newer nested-kvm; this one reads ${CPU_DUMP_SCHEMA}`
    throw new ConfigError('dump', path, problem, 'read it with that version, or dump that host with this one')
  }
  if (schema !== CPU_DUMP_SCHEMA) throw bad('its schema is unknown')
  const { cpuid, featureMsrs, tscDeadlineTimer } = dump
  if (!Array.isArray(cpuid) || cpuid.length === 0 || cpuid.length > MOST_ENTRIES) throw bad('it has no table cpuid')
  if (!isObject(featureMsrs) || Object.keys(featureMsrs).length > MOST_ENTRIES) throw bad('it has no featureMsrs')
  if (typeof tscDeadlineTimer !== 'boolean') throw bad('tscDeadlineTimer is no boolean')
  const number = (name: string, value: unknown, digits = 8): bigint => {
    if (typeof value === 'string' && new RegExp(`^0x[0-9a-f]{1,${digits}}$`).test(value)) return BigInt(value)
    throw bad(`${name} is no hexadecimal number of at most ${digits} digits`)
  }
  const entries = cpuid.map((row: unknown, i): CpuidEntry => {
    const name = `cpuid[${i}]`
    if (!isObject(row)) throw bad(`${name} is no object`)
    const word = (key: string) => Number(number(`${name}.${key}`, row[key]))
    const small = (key: string) => {
      const value = row[key]
      if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < 2 ** 32) return value
      throw bad(`${name}.${key} is no 32-bit number`)
    }
    const place = { function: word('leaf'), index: small('index'), flags: small('flags') }
    return { ...place, eax: word('eax'), ebx: word('ebx'), ecx: word('ecx'), edx: word('edx') }
  })
  const msrs = Object.entries(featureMsrs).map(([index, value]) => {
    return { index: Number(number('an MSR', index)), value: number(`featureMsrs.${index}`, value, 16) }
  })
  return { cpuid: entries, featureMsrs: msrs, tscDeadlineTimer }
}

/** No processor has nearly as many. */
const MOST_ENTRIES = 4096

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function parseObject(text: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isObject(value) ? value : undefined
  } catch {
    return undefined
  }
}

/** Of the processor itself: KVM need not report it. */
function processorBrand(): string {
  const words = [0x80000002, 0x80000003, 0x80000004].flatMap(leaf => {
    const { eax, ebx, ecx, edx } = hostCpuid(leaf)
    return [eax, ebx, ecx, edx]
  })
  return Buffer.from(Uint32Array.from(words).buffer).toString('latin1').replace(/\0.*$/s, '').trim()
}

function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`
}
