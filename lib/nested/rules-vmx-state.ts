/** Rules about the host-state and guest-state areas of VMCS12 (Intel SDM vol. 3, sections 27.2.2 to 27.3.1). */
import * as r from './registers.js'
import { bad, type Facts, guestIs64Bit, hostIs64Bit, on, type Rule, unrestricted } from './rule-vmx.js'
import { VMX_MSRS } from './vmx-capabilities.js'

const bases = ['hostFsBase', 'hostGsBase', 'hostGdtrBase', 'hostIdtrBase', 'hostTrBase'] as const
const selectors = [
  'hostCsSelector',
  'hostSsSelector',
  'hostDsSelector',
  'hostEsSelector',
  'hostFsSelector',
  'hostGsSelector',
  'hostTrSelector',
] as const

/** Canonical with as many bits as the vCPU has; with 57 where that is not known. */
function canonical(address: bigint, { la57 }: Facts): boolean {
  return BigInt.asUintN(64, BigInt.asIntN(la57 === false ? 48 : 57, address)) === address
}

/** Each byte of a PAT is a memory type: 0, 1, 4, 5, 6 or 7 (Intel SDM vol. 3, section 12.12.2). */
function validPat(pat: bigint): boolean {
  for (let rest = pat; rest > 0n; rest >>= 8n) {
    const type = rest & 0xffn
    if (type > 7n || type === 2n || type === 3n) return false
  }
  return true
}

/**
 * Bits that VMX operation fixes in CR0 and CR4 (Intel SDM vol. 3, appendices A.7 and A.8). KVM never has fewer fixed than these,
 * whatever is written to the capability MSRs.
 */
function fixedBits(value: bigint, fixed0: bigint, msrs: readonly [number, number], facts: Facts): boolean {
  const ones = facts.capabilities?.get(msrs[0]) ?? 0n
  const allowed = facts.capabilities?.get(msrs[1]) ?? r.ALL_ONES
  return (value & fixed0) === fixed0 && (~value & ones) === 0n && (value & ~allowed) === 0n
}

function validCr0(cr0: bigint, guest: boolean, facts: Facts): boolean {
  if (cr0 >> 32n !== 0n) return false
  const free = guest && unrestricted(facts) ? r.CR0_PE | r.CR0_PG : 0n
  const fixed = (r.CR0_PE | r.CR0_NE | r.CR0_PG) & ~free
  return fixedBits(cr0 | free, fixed, [VMX_MSRS.IA32_VMX_CR0_FIXED0, VMX_MSRS.IA32_VMX_CR0_FIXED1], facts)
}

function validCr4(cr4: bigint, facts: Facts): boolean {
  const fixed = [VMX_MSRS.IA32_VMX_CR4_FIXED0, VMX_MSRS.IA32_VMX_CR4_FIXED1] as const
  return (cr4 & r.CR4_RESERVED) === 0n && fixedBits(cr4, r.CR4_VMXE, fixed, facts)
}

/** LME and LMA must both say what the control says. */
function efer64(efer: bigint, is64Bit: boolean, lme = true): boolean {
  const expected = is64Bit ? r.EFER_LMA | (lme ? r.EFER_LME : 0n) : 0n
  return (efer & (r.EFER_LMA | (lme ? r.EFER_LME : 0n))) === expected
}

export const hostStateRules: readonly Rule[] = [
  bad(
    'vmx-host-cr0',
    'hostCr0',
    'breaks the bits that VMX operation fixes (PE, NE and PG are 1)',
    facts => !validCr0(facts.f.hostCr0, false, facts),
  ),
  bad(
    'vmx-host-cr4',
    'hostCr4',
    'breaks the bits that VMX operation fixes (VMXE is 1, reserved bits 0)',
    facts => !validCr4(facts.f.hostCr4, facts),
  ),
  bad(
    'vmx-host-cr3',
    'hostCr3',
    "not within the vCPU's physical addresses",
    ({ f, maxPhyAddr }) => !r.legalAddress(f.hostCr3 & ~r.CR3_LAM, maxPhyAddr),
  ),
  bad(
    'vmx-host-cet-without-wp',
    'hostCr4',
    'CR4.CET needs CR0.WP',
    ({ f }) => (f.hostCr4 & r.CR4_CET) !== 0n && (f.hostCr0 & r.CR0_WP) === 0n,
  ),
  bad(
    'vmx-host-sysenter-esp',
    'hostIa32SysenterEsp',
    'not canonical',
    facts => !canonical(facts.f.hostIa32SysenterEsp, facts),
  ),
  bad(
    'vmx-host-sysenter-eip',
    'hostIa32SysenterEip',
    'not canonical',
    facts => !canonical(facts.f.hostIa32SysenterEip, facts),
  ),
  bad(
    'vmx-host-pat',
    'hostIa32Pat',
    'has a memory type that does not exist',
    facts => on('exit', 'load IA32_PAT')(facts) && !validPat(facts.f.hostIa32Pat),
  ),
  bad(
    'vmx-host-64-bit-without-pae',
    'hostCr4',
    'a 64-bit L1 needs CR4.PAE',
    facts => hostIs64Bit(facts) && (facts.f.hostCr4 & r.CR4_PAE) === 0n,
  ),
  bad(
    'vmx-host-32-bit-with-64-bit-guest',
    'vmEntryControls',
    'a 32-bit L1 cannot have an IA-32e mode guest',
    facts => !hostIs64Bit(facts) && guestIs64Bit(facts),
  ),
  bad(
    'vmx-host-32-bit-with-pcid',
    'hostCr4',
    'a 32-bit L1 cannot have CR4.PCIDE',
    facts => !hostIs64Bit(facts) && (facts.f.hostCr4 & r.CR4_PCIDE) !== 0n,
  ),
  bad(
    'vmx-host-32-bit-rip',
    'hostRip',
    'above 4 GiB for a 32-bit L1',
    facts => !hostIs64Bit(facts) && facts.f.hostRip >> 32n !== 0n,
  ),
  ...selectors.map(field => bad('vmx-host-selector', field, 'RPL and TI must be 0', ({ f }) => (f[field] & 7n) !== 0n)),
  bad('vmx-host-cs-null', 'hostCsSelector', 'must not be 0', ({ f }) => f.hostCsSelector === 0n),
  bad('vmx-host-tr-null', 'hostTrSelector', 'must not be 0', ({ f }) => f.hostTrSelector === 0n),
  bad(
    'vmx-host-ss-null',
    'hostSsSelector',
    'must not be 0 for a 32-bit L1',
    facts => facts.f.hostSsSelector === 0n && !hostIs64Bit(facts),
  ),
  ...bases.map(field => bad('vmx-host-base', field, 'not canonical', facts => !canonical(facts.f[field], facts))),
  bad('vmx-host-rip', 'hostRip', 'not canonical', facts => !canonical(facts.f.hostRip, facts)),
  bad(
    'vmx-host-efer',
    'hostIa32Efer',
    'reserved bits, or LMA and LME are not as "host address-space size" says',
    facts =>
      on('exit', 'load IA32_EFER')(facts) &&
      ((facts.f.hostIa32Efer & r.EFER_RESERVED) !== 0n || !efer64(facts.f.hostIa32Efer, hostIs64Bit(facts))),
  ),
]

export const guestStateRules: readonly Rule[] = [
  bad(
    'vmx-guest-cr0',
    'guestCr0',
    'breaks the bits that VMX operation fixes (NE, and unless unrestricted PE and PG, are 1)',
    facts => !validCr0(facts.f.guestCr0, true, facts),
  ),
  bad(
    'vmx-guest-cr4',
    'guestCr4',
    'breaks the bits that VMX operation fixes (VMXE is 1, reserved bits 0)',
    facts => !validCr4(facts.f.guestCr4, facts),
  ),
  bad(
    'vmx-guest-cet-without-wp',
    'guestCr4',
    'CR4.CET needs CR0.WP',
    ({ f }) => (f.guestCr4 & r.CR4_CET) !== 0n && (f.guestCr0 & r.CR0_WP) === 0n,
  ),
  bad(
    'vmx-guest-dr7',
    'guestDr7',
    'bits 63:32 must be 0',
    facts => on('entry', 'load debug controls')(facts) && facts.f.guestDr7 >> 32n !== 0n,
  ),
  bad(
    'vmx-guest-pat',
    'guestIa32Pat',
    'has a memory type that does not exist',
    facts => on('entry', 'load IA32_PAT')(facts) && !validPat(facts.f.guestIa32Pat),
  ),
  bad(
    'vmx-link-pointer',
    'vmcsLinkPointer',
    'neither all ones nor the address of a page',
    ({ f, maxPhyAddr }) => f.vmcsLinkPointer !== r.ALL_ONES && !r.legalAddress(f.vmcsLinkPointer, maxPhyAddr, 4096n),
  ),
  bad(
    'vmx-guest-paging-without-protection',
    'guestCr0',
    'PG needs PE',
    ({ f }) => (f.guestCr0 & (r.CR0_PG | r.CR0_PE)) === r.CR0_PG,
  ),
  bad(
    'vmx-guest-64-bit-without-pae',
    'guestCr4',
    'an IA-32e mode guest needs CR4.PAE',
    facts => guestIs64Bit(facts) && (facts.f.guestCr4 & r.CR4_PAE) === 0n,
  ),
  bad(
    'vmx-guest-64-bit-without-paging',
    'guestCr0',
    'an IA-32e mode guest needs CR0.PG',
    facts => guestIs64Bit(facts) && (facts.f.guestCr0 & r.CR0_PG) === 0n,
  ),
  // KVM looks at it only while the entry is still to come: afterwards L2's EFER is its own.
  bad(
    'vmx-guest-efer',
    'guestIa32Efer',
    'reserved bits, or LMA and LME are not as "IA-32e mode guest" says',
    facts =>
      facts.runPending &&
      on('entry', 'load IA32_EFER')(facts) &&
      ((facts.f.guestIa32Efer & r.EFER_RESERVED) !== 0n ||
        !efer64(facts.f.guestIa32Efer, guestIs64Bit(facts), (facts.f.guestCr0 & r.CR0_PG) !== 0n)),
  ),
  bad(
    'vmx-guest-bndcfgs',
    'guestIa32Bndcfgs',
    'reserved bits, or its address is not canonical',
    facts =>
      on('entry', 'load IA32_BNDCFGS')(facts) &&
      ((facts.f.guestIa32Bndcfgs & 0xffcn) !== 0n || !canonical(facts.f.guestIa32Bndcfgs & ~0xfffn, facts)),
  ),
  bad(
    'vmx-guest-activity',
    'guestActivityState',
    'neither active (0), HLT (1) nor wait-for-SIPI (3)',
    ({ f }) => f.guestActivityState !== 0n && f.guestActivityState !== 1n && f.guestActivityState !== 3n,
  ),
  // Found while KVM loads L2's state: it then leaves guest mode without saying so (the ioctl gives no error).
  bad(
    'vmx-guest-cr3',
    'guestCr3',
    "not within the vCPU's physical addresses",
    ({ f, maxPhyAddr }) => !r.legalAddress(f.guestCr3 & ~r.CR3_LAM, maxPhyAddr),
  ),
]
