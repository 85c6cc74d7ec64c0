import {
  ARCH_CAPABILITIES,
  ARCH_CAPABILITY_NAMES,
  archCapabilities,
} from '../../../lib/arch/x86_64/arch-capabilities.js'
import type { HostFeatures } from '../../../lib/arch/x86_64/compatibility.js'
import { CPU_FLAGS } from '../../../lib/arch/x86_64/cpu-flags.js'
import { VENDOR_FLAGS } from '../../../lib/arch/x86_64/cpu-spec.js'
import type { CpuidDraft } from '../../../lib/arch/x86_64/cpuid.js'
import type { Msr } from '../../../lib/kvm/structs.js'
import { VMX_MSRS } from '../../../lib/nested/vmx-capabilities.js'
import { VMX_FEATURES } from '../../../lib/nested/vmx-features.js'

/** Leaf 0: EBX, ECX, EDX. */
const VENDORS = {
  GenuineIntel: [0x756e6547, 0x6c65746e, 0x49656e69],
  AuthenticAMD: [0x68747541, 0x444d4163, 0x69746e65],
} as const

/** Size and place of the state components, as the processors that have them all place them. */
const COMPONENTS: Readonly<Record<number, readonly [size: number, place: number]>> = {
  2: [256, 576],
  3: [64, 960],
  4: [64, 1024],
  5: [64, 1088],
  6: [512, 1152],
  7: [1024, 1664],
  9: [8, 2688],
  17: [64, 2752],
  18: [8192, 2816],
}

/** What a KVM would report that can give all that `vendor`'s processors have. */
export function everything(vendor: keyof typeof VENDORS): HostFeatures {
  const entries: CpuidDraft[] = []
  const entry = (leaf: number, index = 0): CpuidDraft => {
    const known = entries.find(e => e.function === leaf && e.index === index)
    if (known) return known
    const flags = [4, 7, 0xb, 0xd, 0x1d, 0x1e, 0x1f, 0x8000001d].includes(leaf) ? 1 : 0
    const made = { function: leaf, index, flags, eax: 0, ebx: 0, ecx: 0, edx: 0 }
    entries.push(made)
    return made
  }
  for (const [flag, places] of CPU_FLAGS) {
    if ((VENDOR_FLAGS.get(flag) ?? vendor) !== vendor) continue
    for (const { leaf, index, register, bit } of places) {
      const at = entry(leaf, index)
      at[register] = (at[register] | (1 << bit)) >>> 0
    }
  }
  const [ebx, ecx, edx] = VENDORS[vendor]
  Object.assign(entry(0), { eax: 0x20, ebx, ecx, edx })
  Object.assign(entry(0x80000000), { eax: 0x80000022 })
  Object.assign(entry(0x40000000), { eax: 0x40000001, ebx: 0x4b4d564b, ecx: 0x564b4d56, edx: 0x4d })
  entry(0x80000008).eax = 52 | (57 << 8)
  if (vendor === 'AuthenticAMD') Object.assign(entry(0x8000000a), { eax: 1, ebx: 0x8000 })
  entry(1).ebx = 0x800
  entry(7).eax = 2
  entry(0xd).eax = 0x602ff
  for (const [index, [size, place]] of Object.entries(COMPONENTS)) {
    Object.assign(entry(0xd, Number(index)), { eax: size, ebx: place })
  }
  entry(0xd).ebx = entry(0xd).ecx = 2816 + 8192
  entry(0x1d).eax = 1
  entry(0x1e).ebx = 0x4010
  const value = archCapabilities(Object.values(ARCH_CAPABILITY_NAMES))
  const vmx = vendor === 'GenuineIntel' ? VMX : []
  return { cpuid: entries, featureMsrs: [{ index: ARCH_CAPABILITIES, value }, ...vmx] }
}

/** What must be 1 though the true controls are told of: the reserved bits of the default1 class (Intel SDM vol. 3, A.2). */
const RESERVED: Readonly<Record<number, bigint>> = {
  [VMX_MSRS.IA32_VMX_TRUE_PINBASED_CTLS]: 0x16n,
  [VMX_MSRS.IA32_VMX_TRUE_PROCBASED_CTLS]: 0x04006172n,
  [VMX_MSRS.IA32_VMX_TRUE_EXIT_CTLS]: 0x00036dfbn,
  [VMX_MSRS.IA32_VMX_TRUE_ENTRY_CTLS]: 0x000011fbn,
}

/** The numbers in IA32_VMX_BASIC and IA32_VMX_MISC, as KVM has them. */
const NUMBERS: Readonly<Record<number, bigint>> = {
  [VMX_MSRS.IA32_VMX_BASIC]: 0x0018_1000_11e5_7ed0n,
  [VMX_MSRS.IA32_VMX_MISC]: 5n,
}

/** All that vmx can offer. */
const VMX: readonly Msr[] = [
  ...VMX_FEATURES.map(({ msr, kind, names }) => {
    const bits = [...names.keys()].reduce((all, bit) => all | (1n << BigInt(bit)), 0n)
    const ones = RESERVED[msr] ?? 0n
    return { index: msr, value: kind === 'control' ? ((bits | ones) << 32n) | ones : bits | (NUMBERS[msr] ?? 0n) }
  }),
  { index: VMX_MSRS.IA32_VMX_CR0_FIXED0, value: 0x8000_0021n },
  { index: VMX_MSRS.IA32_VMX_CR4_FIXED0, value: 0x2000n },
  { index: VMX_MSRS.IA32_VMX_VMCS_ENUM, value: 0x2en },
]
