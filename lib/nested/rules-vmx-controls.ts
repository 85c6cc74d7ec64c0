/** Rules about the control fields of VMCS12 (Intel SDM vol. 3, section 27.2.1). */
import { VMX_CONTROLS, type VmxControl } from './controls-vmx.js'
import { CR0_PE, legalAddress } from './registers.js'
import { bad, type Facts, on, page, type Rule, unrestricted, usesEpt } from './rule-vmx.js'
import type { Vmcs12, Vmcs12Name } from './vmcs12.js'
import { VMX_MSRS } from './vmx-capabilities.js'

const shadows = on('secondary', 'VMCS shadowing')
const postsInterrupts = on('pin', 'process posted interrupts')
const usesVid = on('secondary', 'virtual-interrupt delivery')
const usesTpr = on('primary', 'use TPR shadow')

/** The lists of MSRs to load or store (Intel SDM vol. 3, section 27.2.1.2): 16 bytes an entry. */
function msrList(rule: string, address: Vmcs12Name, count: Vmcs12Name): Rule {
  return {
    rule,
    field: address,
    problem: 'the list of MSRs must be 16-byte aligned and lie within the physical addresses',
    broken: ({ f, maxPhyAddr }) =>
      f[count] !== 0n &&
      !(legalAddress(f[address], maxPhyAddr, 16n) && legalAddress(f[address] + f[count] * 16n - 1n, maxPhyAddr)),
  }
}

/** Bits that the capability MSR's low half says must be 1 and its high half says may be 1 (Intel SDM vol. 3, appendix A). */
function offered(word: VmxControl, msr: number): Rule {
  const { field } = VMX_CONTROLS[word]
  return bad(`vmx-${word}-controls`, field, `not what MSR 0x${msr.toString(16)} offers to L1`, facts => {
    const capability = facts.capabilities?.get(msr)
    if (capability === undefined) return false
    if (word === 'secondary' && !on('primary', 'activate secondary controls')(facts)) return false
    const value = facts.f[field]
    return (value & ~(capability >> 32n)) !== 0n || (~value & capability & 0xffff_ffffn) !== 0n
  })
}

export const controlRules: readonly Rule[] = [
  offered('pin', VMX_MSRS.IA32_VMX_TRUE_PINBASED_CTLS),
  offered('primary', VMX_MSRS.IA32_VMX_TRUE_PROCBASED_CTLS),
  offered('secondary', VMX_MSRS.IA32_VMX_PROCBASED_CTLS2),
  bad('vmx-cr3-target-count', 'cr3TargetCount', 'more than IA32_VMX_MISC offers to L1', ({ f, capabilities }) => {
    const misc = capabilities?.get(VMX_MSRS.IA32_VMX_MISC)
    return misc !== undefined && f.cr3TargetCount > ((misc >> 16n) & 0x1ffn)
  }),
  page('vmx-io-bitmap-a', 'addressOfIoBitmapA', on('primary', 'use I/O bitmaps')),
  page('vmx-io-bitmap-b', 'addressOfIoBitmapB', on('primary', 'use I/O bitmaps')),
  page('vmx-msr-bitmap', 'addressOfMsrBitmaps', on('primary', 'use MSR bitmaps')),
  page('vmx-virtual-apic', 'virtualApicAddress', usesTpr),
  page('vmx-apic-access', 'apicAccessAddress', on('secondary', 'virtualize APIC accesses')),
  bad(
    'vmx-x2apic-with-apic-accesses',
    'secondaryProcessorBasedVmExecutionControls',
    '"virtualize x2APIC mode" excludes "virtualize APIC accesses"',
    facts => on('secondary', 'virtualize x2APIC mode')(facts) && on('secondary', 'virtualize APIC accesses')(facts),
  ),
  bad(
    'vmx-interrupt-delivery-without-exiting',
    'pinBasedVmExecutionControls',
    '"virtual-interrupt delivery" needs "external-interrupt exiting"',
    facts => usesVid(facts) && !on('pin', 'external-interrupt exiting')(facts),
  ),
  bad(
    'vmx-posted-without-delivery',
    'pinBasedVmExecutionControls',
    '"process posted interrupts" needs "virtual-interrupt delivery"',
    facts => postsInterrupts(facts) && !usesVid(facts),
  ),
  bad(
    'vmx-posted-without-acknowledge',
    'vmExitControls',
    '"process posted interrupts" needs "acknowledge interrupt on exit"',
    facts => postsInterrupts(facts) && !on('exit', 'acknowledge interrupt on exit')(facts),
  ),
  bad(
    'vmx-posted-vector',
    'postedInterruptNotificationVector',
    'a vector has 8 bits',
    facts => postsInterrupts(facts) && facts.f.postedInterruptNotificationVector > 0xffn,
  ),
  bad(
    'vmx-posted-descriptor',
    'postedInterruptDescriptorAddress',
    "not a 64-byte aligned address within the vCPU's physical addresses",
    facts => postsInterrupts(facts) && !legalAddress(facts.f.postedInterruptDescriptorAddress, facts.maxPhyAddr, 64n),
  ),
  bad(
    'vmx-apicv-without-tpr-shadow',
    'primaryProcessorBasedVmExecutionControls',
    'APIC virtualization needs "use TPR shadow"',
    facts =>
      !usesTpr(facts) &&
      (on('secondary', 'virtualize x2APIC mode')(facts) ||
        on('secondary', 'APIC-register virtualization')(facts) ||
        usesVid(facts) ||
        postsInterrupts(facts)),
  ),
  bad(
    'vmx-virtual-nmis-without-exiting',
    'pinBasedVmExecutionControls',
    '"virtual NMIs" needs "NMI exiting"',
    facts => on('pin', 'virtual NMIs')(facts) && !on('pin', 'NMI exiting')(facts),
  ),
  bad(
    'vmx-nmi-window-without-virtual-nmis',
    'primaryProcessorBasedVmExecutionControls',
    '"NMI-window exiting" needs "virtual NMIs"',
    facts => on('primary', 'NMI-window exiting')(facts) && !on('pin', 'virtual NMIs')(facts),
  ),
  bad(
    'vmx-pml-without-ept',
    'secondaryProcessorBasedVmExecutionControls',
    '"enable PML" needs "enable EPT"',
    facts => on('secondary', 'enable PML')(facts) && !usesEpt(facts),
  ),
  page('vmx-pml-address', 'pmlAddress', on('secondary', 'enable PML')),
  bad(
    'vmx-unrestricted-without-ept',
    'secondaryProcessorBasedVmExecutionControls',
    '"unrestricted guest" needs "enable EPT"',
    facts => unrestricted(facts) && !usesEpt(facts),
  ),
  bad(
    'vmx-mode-based-execute-without-ept',
    'secondaryProcessorBasedVmExecutionControls',
    '"mode-based execute control for EPT" needs "enable EPT"',
    facts => on('secondary', 'mode-based execute control for EPT')(facts) && !usesEpt(facts),
  ),
  page('vmx-vmread-bitmap', 'vmreadBitmapAddress', shadows),
  page('vmx-vmwrite-bitmap', 'vmwriteBitmapAddress', shadows),
  bad(
    'vmx-vpid',
    'virtualProcessorIdentifier',
    '"enable VPID" needs a VPID other than 0',
    facts => on('secondary', 'enable VPID')(facts) && facts.f.virtualProcessorIdentifier === 0n,
  ),
  bad(
    'vmx-save-timer-without-timer',
    'vmExitControls',
    '"save VMX-preemption timer value" needs "activate VMX-preemption timer"',
    facts => on('exit', 'save VMX-preemption timer value')(facts) && !on('pin', 'activate VMX-preemption timer')(facts),
  ),
  bad(
    'vmx-eptp',
    'eptPointer',
    'not an EPT pointer (memory type, walk length, reserved bits or address)',
    facts => usesEpt(facts) && !validEptp(facts),
  ),
  bad('vmx-vm-functions', 'vmFunctionControls', 'more than IA32_VMX_VMFUNC offers to L1', facts => {
    const functions = facts.capabilities?.get(VMX_MSRS.IA32_VMX_VMFUNC)
    if (functions === undefined || !on('secondary', 'enable VM functions')(facts)) return false
    return (facts.f.vmFunctionControls & ~functions) !== 0n
  }),
  bad(
    'vmx-eptp-switching-without-ept',
    'vmFunctionControls',
    '"EPTP switching" needs "enable EPT"',
    facts => switchesEptp(facts) && !usesEpt(facts),
  ),
  page('vmx-eptp-list', 'eptpListAddress', facts => switchesEptp(facts)),
  offered('exit', VMX_MSRS.IA32_VMX_TRUE_EXIT_CTLS),
  msrList('vmx-exit-msr-load', 'vmExitMsrLoadAddress', 'vmExitMsrLoadCount'),
  msrList('vmx-exit-msr-store', 'vmExitMsrStoreAddress', 'vmExitMsrStoreCount'),
  offered('entry', VMX_MSRS.IA32_VMX_TRUE_ENTRY_CTLS),
  injection('type', 'the interruption type 1 is reserved', ({ type }) => type === 1),
  injection(
    'vector',
    'not a vector of that interruption type',
    ({ type, vector }) =>
      (type === NMI && vector !== 2) || (type === EXCEPTION && vector > 31) || (type === OTHER && vector !== 0),
  ),
  injection('error-code', 'delivers an error code where that event has none', wrongErrorCode),
  {
    rule: 'vmx-injection-error-code-value',
    field: 'vmEntryExceptionErrorCode',
    problem: 'bits 31:16 must be 0',
    broken: ({ f }) => injected(f).valid && injected(f).hasErrorCode && f.vmEntryExceptionErrorCode > 0xffffn,
  },
  injection('reserved', 'bits 30:12 must be 0', ({ reserved }) => reserved),
  {
    rule: 'vmx-injection-length',
    field: 'vmEntryInstructionLength',
    problem: 'no instruction is longer than 15 bytes',
    // Length 0 is allowed where IA32_VMX_MISC bit 30 says so.
    broken: ({ f, capabilities }) => {
      const { valid, type } = injected(f)
      if (!valid || (type !== 4 && type !== 5 && type !== 6)) return false
      const misc = capabilities?.get(VMX_MSRS.IA32_VMX_MISC)
      const zero = misc !== undefined && ((misc >> 30n) & 1n) === 0n
      return f.vmEntryInstructionLength > 15n || (zero && f.vmEntryInstructionLength === 0n)
    },
  },
  msrList('vmx-entry-msr-load', 'vmEntryMsrLoadAddress', 'vmEntryMsrLoadCount'),
]

// Interruption types (Intel SDM vol. 3, table 25-17)
const NMI = 2
const EXCEPTION = 3
const OTHER = 7

function injected(f: Vmcs12['fields']) {
  const info = f.vmEntryInterruptionInformationField
  return {
    valid: info >> 31n !== 0n,
    vector: Number(info & 0xffn),
    type: Number((info >> 8n) & 7n),
    hasErrorCode: ((info >> 11n) & 1n) !== 0n,
    reserved: (info & 0x7fff_f000n) !== 0n,
  }
}

function injection(
  what: string,
  problem: string,
  broken: (event: ReturnType<typeof injected>, facts: Facts) => boolean,
): Rule {
  return bad(`vmx-injection-${what}`, 'vmEntryInterruptionInformationField', problem, facts => {
    const event = injected(facts.f)
    return event.valid && broken(event, facts)
  })
}

/** #DF, #TS, #NP, #SS, #GP, #PF, #AC */
const withErrorCode: ReadonlySet<number> = new Set([8, 10, 11, 12, 13, 14, 17])
/** #CP: has one where the kernel knows CET. */
const CONTROL_PROTECTION = 21

function wrongErrorCode({ type, vector, hasErrorCode }: ReturnType<typeof injected>, facts: Facts): boolean {
  const possible = type === EXCEPTION && (!unrestricted(facts) || (facts.f.guestCr0 & CR0_PE) !== 0n)
  if (!possible) return hasErrorCode
  // IA32_VMX_BASIC bit 56: any exception may go with or without one.
  const basic = facts.capabilities?.get(VMX_MSRS.IA32_VMX_BASIC)
  const strict = basic !== undefined && ((basic >> 56n) & 1n) === 0n && vector !== CONTROL_PROTECTION
  return strict && hasErrorCode !== withErrorCode.has(vector)
}

function switchesEptp(facts: Facts): boolean {
  return on('secondary', 'enable VM functions')(facts) && (facts.f.vmFunctionControls & 1n) !== 0n
}

/** Intel SDM vol. 3, section 27.2.1.1; KVM does not know bits 11:7. */
function validEptp({ f, maxPhyAddr, capabilities }: Facts): boolean {
  const eptp = f.eptPointer
  const type = eptp & 7n
  const length = ((eptp >> 3n) & 7n) + 1n
  if ((type !== 0n && type !== 6n) || (length !== 4n && length !== 5n)) return false
  if ((eptp & 0xf80n) !== 0n || !legalAddress(eptp, maxPhyAddr)) return false
  const offer = capabilities?.get(VMX_MSRS.IA32_VMX_EPT_VPID_CAP)
  if (offer === undefined) return true
  const has = (bit: bigint) => ((offer >> bit) & 1n) !== 0n
  return has(type === 0n ? 8n : 14n) && has(length === 4n ? 6n : 7n) && ((eptp & 0x40n) === 0n || has(21n))
}
