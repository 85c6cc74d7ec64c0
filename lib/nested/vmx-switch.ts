/** VMX capabilities by name, taken from the capability MSRs and taken away from them. */
import { VMX_CONTROLS } from './controls-vmx.js'
import { VMX_MSRS } from './vmx-capabilities.js'
import { numericVmxBits, VMX_FEATURES, type VmxFeatureWord } from './vmx-features.js'

type Msrs = ReadonlyMap<number, bigint>

/** The names of what capability MSRs offer. */
export function vmxFeaturesOf(msrs: Msrs): string[] {
  return VMX_FEATURES.flatMap(word => {
    const value = msrs.get(word.msr)
    return value === undefined ? [] : featuresOfWord(word, value)
  })
}

function featuresOfWord({ kind, names, optional }: VmxFeatureWord, value: bigint): string[] {
  const at = (bit: number) => (value >> BigInt(bit)) & 1n
  const first = kind === 'control' ? 32 : 0
  return [
    ...[...names].filter(([bit]) => at(first + bit) === 1n).map(([, name]) => name),
    ...[...optional].filter(([bit]) => at(bit) === 0n).map(([, name]) => name),
  ]
}

/**
 * The MSRs without `withheld`: bits of what may be 1 are cleared, bits of what must be 1 set; that is what KVM takes
 * (arch/x86/kvm/vmx/nested.c, vmx_set_vmx_msr). What goes with an MSR as a whole takes its bits without a name along.
 */
export function withoutVmxFeatures(msrs: Msrs, withheld: ReadonlySet<string>): Map<number, bigint> {
  const cut = new Map(msrs)
  for (const { msr, kind, names, optional } of VMX_FEATURES) {
    const value = cut.get(msr)
    if (value === undefined) continue
    const first = kind === 'control' ? 32 : 0
    const gone = [...names].reduce(
      (bits, [bit, name]) => bits | (withheld.has(name) ? 1n << BigInt(first + bit) : 0n),
      0n,
    )
    const fixed = [...optional].reduce((bits, [bit, name]) => bits | (withheld.has(name) ? 1n << BigInt(bit) : 0n), 0n)
    cut.set(msr, (value & ~gone) | fixed)
  }
  const mask = (msr: number, kept: bigint) => {
    const value = cut.get(msr)
    if (value !== undefined) cut.set(msr, value & kept)
  }
  if (withheld.has('vmx-secondary-ctls')) mask(VMX_MSRS.IA32_VMX_PROCBASED_CTLS2, 0n)
  if (withheld.has('vmx-ept')) mask(VMX_MSRS.IA32_VMX_EPT_VPID_CAP, ~0xffff_ffffn)
  if (withheld.has('vmx-vpid')) mask(VMX_MSRS.IA32_VMX_EPT_VPID_CAP, 0xffff_ffffn)
  if (withheld.has('vmx-vmfunc')) mask(VMX_MSRS.IA32_VMX_VMFUNC, 0n)
  if (withheld.has('vmx-true-ctls')) {
    // What the other MSRs would say then; the reserved bits of the class among them.
    for (const [msr, { ones }] of TRUE_CONTROLS) {
      const value = cut.get(msr)
      if (value !== undefined) cut.set(msr, value | ones)
    }
  }
  return cut
}

/** The MSRs without what has no name here and tells of something that L1 could use: a control, a capability that newer processors have. */
export function withoutNamelessVmx(msrs: Msrs): Map<number, bigint> {
  const cut = new Map(msrs)
  for (const { msr, kind, names } of VMX_FEATURES) {
    const value = cut.get(msr)
    if (value === undefined) continue
    const named = [...names.keys()].reduce((bits, bit) => bits | (1n << BigInt(bit)), 0n)
    if (kind === 'bits') {
      cut.set(msr, value & (named | numericVmxBits(msr)))
      continue
    }
    // What must be 1 may be 1.
    const ones = (TRUE_CONTROLS.find(([index]) => index === msr)?.[1].ones ?? 0n) | value
    cut.set(msr, value & (((named | (ones & 0xffff_ffffn)) << 32n) | 0xffff_ffffn))
  }
  return cut
}

const TRUE_CONTROLS = [
  [VMX_MSRS.IA32_VMX_TRUE_PINBASED_CTLS, VMX_CONTROLS.pin],
  [VMX_MSRS.IA32_VMX_TRUE_PROCBASED_CTLS, VMX_CONTROLS.primary],
  [VMX_MSRS.IA32_VMX_TRUE_EXIT_CTLS, VMX_CONTROLS.exit],
  [VMX_MSRS.IA32_VMX_TRUE_ENTRY_CTLS, VMX_CONTROLS.entry],
] as const

/** Controls that could be neither 0 nor 1 with these MSRs: with them, L1 enters no L2. */
export function impossibleControls(msrs: Msrs): string[] {
  return VMX_FEATURES.filter(({ kind }) => kind === 'control').flatMap(({ msr, names }) => {
    const value = msrs.get(msr) ?? 0n
    return [...names]
      .filter(([bit]) => ((value >> BigInt(bit)) & ~(value >> BigInt(bit + 32)) & 1n) === 1n)
      .map(([, name]) => name)
  })
}

/** The names of the bits in which two values of a capability MSR differ; `bit 9` for one without a name. */
export function vmxBitNames(msr: number, difference: bigint): string[] {
  const word = VMX_FEATURES.find(word => word.msr === msr)
  const names: string[] = []
  for (let bit = 0; bit < 64; bit++) {
    if (((difference >> BigInt(bit)) & 1n) === 0n) continue
    const name =
      word?.kind === 'control' ? (bit < 32 ? word.optional.get(bit) : word.names.get(bit - 32)) : word?.names.get(bit)
    names.push(name === undefined ? `bit ${bit}` : `${name} (bit ${bit})`)
  }
  return names
}

/** The name of a capability MSR, as the manual has it. */
export function vmxMsrName(index: number): string {
  return Object.entries(VMX_MSRS).find(([, msr]) => msr === index)?.[0] ?? `MSR 0x${index.toString(16)}`
}
