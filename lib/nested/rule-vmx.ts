/** The parts that the rules about VMCS12 are made of. */
import { hasControl, type VmxControl } from './controls-vmx.js'
import { legalAddress } from './registers.js'
import type { Vmcs12, Vmcs12Name } from './vmcs12.js'

export interface VmxContext {
  readonly maxPhyAddr: number
  /** Whether CPUID has la57: bases are then canonical with 57 bits. Undefined: not known. */
  readonly la57?: boolean | undefined
  /** The vCPU's VMX capability MSRs by index: with them the controls are checked against what L1 was offered. */
  readonly capabilities?: ReadonlyMap<number, bigint> | undefined
  readonly runPending: boolean
}

export interface Facts extends VmxContext {
  readonly vmcs12: Vmcs12
  readonly f: Vmcs12['fields']
}

export interface Rule {
  readonly rule: string
  readonly field: Vmcs12Name
  readonly problem: string
  readonly broken: (facts: Facts) => boolean
}

export const on =
  <W extends VmxControl>(word: W, name: Parameters<typeof hasControl<W>>[2]) =>
  ({ vmcs12 }: Facts) =>
    hasControl(vmcs12, word, name)

export const usesEpt = on('secondary', 'enable EPT')
export const hostIs64Bit = on('exit', 'host address-space size')
export const guestIs64Bit = on('entry', 'IA-32e mode guest')
export const unrestricted = on('secondary', 'unrestricted guest')

/** A field that must be a page's address while `when` holds. */
export function page(rule: string, field: Vmcs12Name, when: (facts: Facts) => boolean): Rule {
  return {
    rule,
    field,
    problem: "not a page-aligned address within the vCPU's physical addresses",
    broken: facts => when(facts) && !legalAddress(facts.f[field], facts.maxPhyAddr, 4096n),
  }
}

export function bad(rule: string, field: Vmcs12Name, problem: string, broken: (facts: Facts) => boolean): Rule {
  return { rule, field, problem, broken }
}
