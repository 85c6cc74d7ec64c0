/**
 * What KVM checks of VMCS12 before it goes into guest mode with it: nested_vmx_check_controls, _host_state and _guest_state of
 * arch/x86/kvm/vmx/nested.c. Where kernels differ, the more lenient one counts: what some kernel takes is not refused here. Left
 * to the kernel: what needs the PMU's width, IA32_DEBUGCTL's supported bits, Hyper-V's enlightenments, or a look at guest
 * memory.
 */
import { NestedStateError } from '../errors.js'
import type { Rule, VmxContext } from './rule-vmx.js'
import { controlRules } from './rules-vmx-controls.js'
import { guestStateRules, hostStateRules } from './rules-vmx-state.js'
import type { Vmcs12 } from './vmcs12.js'

const rules: readonly Rule[] = [...controlRules, ...hostStateRules, ...guestStateRules]

/** The names of the rules, each once. */
export const VMCS12_RULES: readonly string[] = [...new Set(rules.map(({ rule }) => rule))]

/** @throws {NestedStateError} KVM would not go into guest mode with it */
export function checkVmcs12(vmcs12: Vmcs12, context: VmxContext): void {
  const facts = { ...context, vmcs12, f: vmcs12.fields }
  for (const { rule, field, problem, broken } of rules) {
    if (!broken(facts)) continue
    throw new NestedStateError(
      rule,
      `vmcs12.${field}`,
      vmcs12.fields[field],
      problem,
      'no VM entry can have led here: the state is damaged, or of a vCPU with other features; take it again',
    )
  }
}
