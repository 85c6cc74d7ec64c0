/** Which VMX capabilities a vCPU has that another host cannot give, by name: what KVM checks when they are restored. */
import { VMX_MSRS } from './vmx-capabilities.js'
import { numericVmxBits, VMX_FEATURES, type VmxFeatureWord } from './vmx-features.js'

type Msrs = ReadonlyMap<number, bigint>

/** Names of what `saved` has and `host` lacks; an MSR that one of them does not have is not compared. */
export function missingVmxFeatures(saved: Msrs, host: Msrs): string[] {
  return [
    ...numbers(saved, host),
    ...VMX_FEATURES.flatMap(word => {
      const [mine, theirs] = [saved.get(word.msr), host.get(word.msr)]
      return mine === undefined || theirs === undefined ? [] : missingOfWord(word, mine, theirs)
    }),
    ...fixed('cr0', VMX_MSRS.IA32_VMX_CR0_FIXED0, saved, host),
    ...fixed('cr4', VMX_MSRS.IA32_VMX_CR4_FIXED0, saved, host),
  ]
}

function missingOfWord({ msr, kind, names, optional }: VmxFeatureWord, saved: bigint, host: bigint): string[] {
  const nameOf = (bit: number) => names.get(bit) ?? `msr-${msr.toString(16)}-bit-${kind === 'control' ? bit + 32 : bit}`
  if (kind === 'control') {
    const allowed = bitsOf((saved >> 32n) & ~(host >> 32n)).map(nameOf)
    const forced = bitsOf(host & ~saved & 0xffff_ffffn).map(bit => optional.get(bit) ?? `${nameOf(bit)}-optional`)
    return [...allowed, ...forced]
  }
  return bitsOf(saved & ~host & ~numericVmxBits(msr)).map(nameOf)
}

function numbers(saved: Msrs, host: Msrs): string[] {
  const part = (msrs: Msrs, msr: number, high: bigint, low: bigint) => {
    const value = msrs.get(msr)
    return value === undefined ? undefined : (value >> low) & ((1n << (high - low + 1n)) - 1n)
  }
  const compare = (
    name: string,
    msr: number,
    [high, low]: readonly [bigint, bigint],
    suits: (mine: bigint, theirs: bigint) => boolean,
  ) => {
    const [mine, theirs] = [part(saved, msr, high, low), part(host, msr, high, low)]
    return mine === undefined || theirs === undefined || suits(mine, theirs) ? [] : [`${name}-${mine}`]
  }
  const { IA32_VMX_BASIC: basic, IA32_VMX_MISC: misc, IA32_VMX_TRUE_PINBASED_CTLS: pin } = VMX_MSRS
  const timer = ((saved.get(pin) ?? 0n) >> 38n) & 1n
  return [
    ...compare('vmx-vmcs-revision', basic, [30n, 0n], (mine, theirs) => mine === theirs),
    ...compare('vmx-vmcs-size', basic, [44n, 32n], (mine, theirs) => mine >= theirs),
    // L1 counts the timer in this unit; nobody minds where there is no timer.
    ...compare('vmx-preemption-timer-rate', misc, [4n, 0n], (mine, theirs) => timer === 0n || mine === theirs),
    ...compare('vmx-cr3-target-count', misc, [24n, 16n], (mine, theirs) => mine <= theirs),
    ...compare('vmx-msr-list-length', misc, [27n, 25n], (mine, theirs) => mine <= theirs),
    ...compare('vmx-mseg-revision', misc, [63n, 32n], (mine, theirs) => mine === theirs),
  ]
}

/** Bits that L1 may clear in VMX operation, and the host would not let it. */
function fixed(register: string, msr: number, saved: Msrs, host: Msrs): string[] {
  const [mine, theirs] = [saved.get(msr), host.get(msr)]
  return mine === undefined || theirs === undefined
    ? []
    : bitsOf(theirs & ~mine).map(bit => `vmx-${register}-fixed0-bit-${bit}`)
}

function bitsOf(value: bigint): number[] {
  const bits: number[] = []
  for (let bit = 0, rest = BigInt.asUintN(64, value); rest > 0n; bit++, rest >>= 1n) if (rest & 1n) bits.push(bit)
  return bits
}
