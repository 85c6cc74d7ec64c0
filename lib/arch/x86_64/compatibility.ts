/** Can a saved vCPU go on here? What it was given and this host's KVM does not have, by the usual names. */
import type { CpuidEntry, Msr } from '../../kvm/structs.js'
import { SVM_LEAF } from '../../nested/svm-capabilities.js'
import { missingVmxFeatures } from '../../nested/vmx-missing.js'
import { ARCH_CAPABILITIES, ARCH_CAPABILITY_NAMES } from './arch-capabilities.js'
import { CPU_FLAGS, type CpuidRegister } from './cpu-flags.js'
import { AMD_ALIASES, findEntry, isAmd, vendorOf } from './cpuid.js'

export interface SavedFeatures {
  /** The vCPU's table (`KVM_GET_CPUID2`). */
  readonly cpuid: readonly CpuidEntry[]
  /** Its MSRs, the VMX capabilities and IA32_ARCH_CAPABILITIES among them. */
  readonly msrs: readonly Msr[]
}

export interface HostFeatures {
  /** `KVM_GET_SUPPORTED_CPUID` */
  readonly cpuid: readonly CpuidEntry[]
  /** The feature MSRs (`KVM_GET_MSR_FEATURE_INDEX_LIST`). */
  readonly featureMsrs: readonly Msr[]
}

/**
 * Everything that the saved vCPU was given and this host lacks: `avx512f`, `npt`, `vmx-ept-2mb`, `xsave-pkru`, `phys-bits-46`;
 * `cpuid-7.0-edx-bit-5` for a bit without a name. Empty: it can be restored here.
 */
export function missingFeatures(saved: SavedFeatures, host: HostFeatures): string[] {
  const flags = missingFlags(saved.cpuid, host.cpuid)
  const [mine, theirs] = [saved.msrs, host.featureMsrs].map(msrs => new Map(msrs.map(m => [m.index, m.value])))
  const has = (cpuid: readonly CpuidEntry[], flag: string) => CPU_FLAGS.get(flag)!.some(at => isSet(cpuid, at))
  const names = [
    ...flags,
    ...missingXsave(saved.cpuid, host.cpuid),
    ...missingWidths(saved.cpuid, host.cpuid),
    // A host without the extension lacks all of it: one name says so.
    ...(has(saved.cpuid, 'vmx') && has(host.cpuid, 'vmx') ? missingVmxFeatures(mine!, theirs!) : []),
    ...(has(saved.cpuid, 'svm') && has(host.cpuid, 'svm') ? missingAsids(saved.cpuid, host.cpuid) : []),
    ...(has(saved.cpuid, 'arch_capabilities') ? missingArchCapabilities(mine!, theirs!) : []),
  ]
  return [...new Set(names)]
}

interface FlagPlace {
  readonly leaf: number
  readonly index: number
  readonly register: CpuidRegister
}

/** Registers whose bits are features, one by one. Others hold numbers: those are compared apart. */
const FLAG_REGISTERS: readonly FlagPlace[] = [
  ...registers(0x1, 0, 'ecx', 'edx'),
  ...registers(0x6, 0, 'eax'),
  ...registers(0x7, 0, 'ebx', 'ecx', 'edx'),
  ...registers(0x7, 1, 'eax', 'ebx', 'ecx', 'edx'),
  ...registers(0x7, 2, 'edx'),
  ...registers(0xd, 1, 'eax'),
  ...registers(0x40000001, 0, 'eax'),
  ...registers(0x80000001, 0, 'ecx', 'edx'),
  ...registers(0x80000007, 0, 'ebx', 'edx'),
  ...registers(0x80000008, 0, 'ebx'),
  ...registers(SVM_LEAF, 0, 'edx'),
  ...registers(0x8000001f, 0, 'eax'),
  ...registers(0x80000021, 0, 'eax'),
  ...registers(0x80000022, 0, 'eax'),
]

function registers(leaf: number, index: number, ...names: readonly CpuidRegister[]): FlagPlace[] {
  return names.map(register => ({ leaf, index, register }))
}

/**
 * Set by user space or by the guest's own doing, whatever KVM reports: the hypervisor and TSC-deadline bits, topology, and bits
 * that follow CR4 and the APIC base (OSXSAVE, which has no name among the flags, is leaf 1 ECX bit 27).
 */
const NOT_THE_HOSTS: ReadonlySet<string> = new Set([
  'hypervisor',
  'tsc_deadline_timer',
  'ht',
  'cmp_legacy',
  'topoext',
  'cpuid-1.0-ecx-bit-27',
  'ospke',
  'apic',
])

/** The names of each bit, by place. */
const names = new Map<string, string[]>()
for (const [name, locations] of CPU_FLAGS) {
  for (const at of locations) names.set(key(at, at.bit), [...(names.get(key(at, at.bit)) ?? []), name])
}

function key({ leaf, index, register }: FlagPlace, bit: number): string {
  return `${leaf.toString(16)}.${index}-${register}-bit-${bit}`
}

function namesOf(place: FlagPlace, bit: number, amd: boolean): readonly string[] {
  const alias = amd && place.leaf === 0x80000001 && place.register === 'edx' && (AMD_ALIASES >>> bit) & 1
  const at = alias ? { ...place, leaf: 1 } : place
  return names.get(key(at, bit)) ?? [`cpuid-${key(at, bit)}`]
}

function missingFlags(saved: readonly CpuidEntry[], host: readonly CpuidEntry[]): string[] {
  const vendor = vendorOf(saved) && vendorOf(saved) !== vendorOf(host) ? [`vendor-${vendorOf(saved)}`] : []
  const withoutSvm = !CPU_FLAGS.get('svm')!.some(at => isSet(host, at))
  const flags = FLAG_REGISTERS.flatMap(place => {
    if (place.leaf === SVM_LEAF && withoutSvm) return []
    const bits = registerOf(saved, place) & ~registerOf(host, place)
    return bitsOf(bits).flatMap(bit => namesOf(place, bit, isAmd(saved)))
  })
  return [...vendor, ...flags.filter(name => !NOT_THE_HOSTS.has(name))]
}

/** State components by bit of XCR0 and IA32_XSS (Intel SDM vol. 1, section 13.1). */
const COMPONENTS =
  'x87 sse avx bndregs bndcsr opmask zmm-hi256 hi16-zmm pt pkru pasid cet-u cet-s hdc uintr lbr hwp xtilecfg xtiledata apx'.split(
    ' ',
  )

function missingXsave(saved: readonly CpuidEntry[], host: readonly CpuidEntry[]): string[] {
  const nameOf = (bit: number) => `xsave-${COMPONENTS[bit] ?? `component-${bit}`}`
  const lacking = (index: number, low: CpuidRegister) =>
    [
      [low, 0],
      ['edx', 32],
    ].flatMap(([register, first]) => {
      const place = { leaf: 0xd, index, register: register as CpuidRegister }
      return bitsOf(registerOf(saved, place) & ~registerOf(host, place)).map(bit => nameOf(bit + (first as number)))
    })
  const missing = [...lacking(0, 'eax'), ...lacking(1, 'ecx')]
  // The place of a component in the area is the processor's, and what the guest stored follows it.
  const moved = saved
    .filter(entry => entry.function === 0xd && entry.index >= 2 && entry.eax !== 0)
    .filter(entry => {
      const here = findEntry(host, 0xd, entry.index)
      return here && here.eax !== 0 && (here.eax !== entry.eax || here.ebx !== entry.ebx)
    })
    .map(({ index }) => `${nameOf(index)}-layout`)
  const size = findEntry(saved, 0xd)?.ecx ?? 0
  const tooLarge = size > (findEntry(host, 0xd)?.ecx ?? 0)
  return [...missing, ...moved, ...(tooLarge ? [`xsave-size-${size}`] : [])]
}

/** Address widths: leaf 0x80000008 EAX, physical in bits 7:0, linear in 15:8. */
function missingWidths(saved: readonly CpuidEntry[], host: readonly CpuidEntry[]): string[] {
  const [mine, theirs] = [saved, host].map(cpuid => findEntry(cpuid, 0x80000008)?.eax)
  if (mine === undefined || theirs === undefined) return []
  return [
    ...((mine & 0xff) > (theirs & 0xff) ? [`phys-bits-${mine & 0xff}`] : []),
    ...(((mine >> 8) & 0xff) > ((theirs >> 8) & 0xff) ? [`linear-bits-${(mine >> 8) & 0xff}`] : []),
  ]
}

function missingAsids(saved: readonly CpuidEntry[], host: readonly CpuidEntry[]): string[] {
  const [mine = 0, theirs = 0] = [saved, host].map(cpuid => findEntry(cpuid, SVM_LEAF)?.ebx)
  return mine > theirs ? [`svm-asids-${mine}`] : []
}

function missingArchCapabilities(saved: ReadonlyMap<number, bigint>, host: ReadonlyMap<number, bigint>): string[] {
  const mine = saved.get(ARCH_CAPABILITIES) ?? 0n
  const theirs = host.get(ARCH_CAPABILITIES)
  if (theirs === undefined) return []
  return [0n, 32n].flatMap(half =>
    bitsOf(Number(((mine & ~theirs & 0xffff_ffff_ffff_ffffn) >> half) & 0xffff_ffffn)).map(
      bit => ARCH_CAPABILITY_NAMES[bit + Number(half)] ?? `msr-10a-bit-${bit + Number(half)}`,
    ),
  )
}

function isSet(cpuid: readonly CpuidEntry[], at: FlagPlace & { readonly bit: number }): boolean {
  return ((registerOf(cpuid, at) >>> at.bit) & 1) === 1
}

function registerOf(cpuid: readonly CpuidEntry[], { leaf, index, register }: FlagPlace): number {
  return findEntry(cpuid, leaf, index)?.[register] ?? 0
}

function bitsOf(value: number): number[] {
  return [...Array(32).keys()].filter(bit => (value >>> bit) & 1)
}
