/**
 * What KVM checks of a VMCB before it goes into guest mode with it: __nested_vmcb_check_controls of VMCB12's control area, and
 * __nested_vmcb_check_save of the save area, which is L1's (arch/x86/kvm/svm/nested.c; AMD APM vol. 2, section 15.5.1). Where
 * kernels differ, the more lenient one counts: what some kernel takes is not refused here. Left to the kernel: whether it has
 * nested paging, and the bits of CR4 and EFER that CPUID takes away.
 */
import { NestedStateError } from '../errors.js'
import * as r from './registers.js'
import type { Vmcb12, Vmcb12Name } from './vmcb12.js'

interface Rule {
  readonly rule: string
  readonly field: Vmcb12Name
  readonly problem: string
  readonly broken: (f: Vmcb12['fields'], maxPhyAddr: number) => boolean
}

const NP_ENABLE = 1n
const RFLAGS_VM = 1n << 17n
/** Segment attributes in a VMCB (AMD APM vol. 2, section 15.5.1): L is bit 9, D/B bit 10. */
const LONG_AND_DEFAULT = 3n << 9n

function bad(rule: string, field: Vmcb12Name, problem: string, broken: Rule['broken']): Rule {
  return { rule, field, problem, broken }
}

/** A permission map of that size; bits 11:0 of its address are ignored. */
function permissionMap(rule: string, field: Vmcb12Name, size: bigint): Rule {
  return bad(rule, field, "the map does not lie within the vCPU's physical addresses", (f, maxPhyAddr) => {
    const start = f[field] & ~0xfffn
    return !r.legalAddress(start + size - 1n, maxPhyAddr)
  })
}

function longMode(f: Vmcb12['fields']): boolean {
  return (f.efer & r.EFER_LME) !== 0n && (f.cr0 & r.CR0_PG) !== 0n
}

const control: readonly Rule[] = [
  bad(
    'svm-vmrun-intercept',
    'interceptVector4',
    'VMRUN must be intercepted (bit 0)',
    f => (f.interceptVector4 & 1n) === 0n,
  ),
  bad('svm-asid', 'guestAsid', 'ASID 0 is the host', f => f.guestAsid === 0n),
  bad(
    'svm-n-cr3',
    'nCr3',
    "not within the vCPU's physical addresses",
    (f, maxPhyAddr) => (f.nestedControl & NP_ENABLE) !== 0n && !r.legalAddress(f.nCr3, maxPhyAddr),
  ),
  permissionMap('svm-msrpm', 'msrpmBasePa', 0x2000n),
  permissionMap('svm-iopm', 'iopmBasePa', 0x3000n),
]

const save: readonly Rule[] = [
  bad(
    'svm-save-paging',
    'cr0',
    "L1's CR0 must have PG and PE",
    f => (f.cr0 & (r.CR0_PG | r.CR0_PE)) !== (r.CR0_PG | r.CR0_PE),
  ),
  bad(
    'svm-save-virtual-8086',
    'rflags',
    'L1 cannot be in virtual-8086 mode (bit 17)',
    f => (f.rflags & RFLAGS_VM) !== 0n,
  ),
  bad('svm-save-svme', 'efer', "L1's EFER must have SVME", f => (f.efer & r.EFER_SVME) === 0n),
  bad('svm-save-cache', 'cr0', 'CR0.NW needs CR0.CD', f => (f.cr0 & (r.CR0_NW | r.CR0_CD)) === r.CR0_NW),
  bad('svm-save-cr0', 'cr0', 'bits 63:32 must be 0', f => f.cr0 >> 32n !== 0n),
  bad('svm-save-dr6', 'dr6', 'bits 63:32 must be 0', f => f.dr6 >> 32n !== 0n),
  bad('svm-save-dr7', 'dr7', 'bits 63:32 must be 0', f => f.dr7 >> 32n !== 0n),
  bad('svm-save-pae', 'cr4', 'long mode needs CR4.PAE', f => longMode(f) && (f.cr4 & r.CR4_PAE) === 0n),
  bad(
    'svm-save-cr3',
    'cr3',
    "not within the vCPU's physical addresses",
    (f, maxPhyAddr) => longMode(f) && !r.legalAddress(f.cr3 & ~r.CR3_LAM, maxPhyAddr),
  ),
  bad(
    'svm-save-cs',
    'csAttrib',
    'a 64-bit code segment (L) cannot have D as well',
    f => longMode(f) && (f.csAttrib & LONG_AND_DEFAULT) === LONG_AND_DEFAULT,
  ),
  bad('svm-save-cr4', 'cr4', 'has reserved bits', f => (f.cr4 & r.CR4_RESERVED) !== 0n),
  bad('svm-save-efer', 'efer', 'has reserved bits', f => (f.efer & r.EFER_RESERVED) !== 0n),
]

const rules: readonly Rule[] = [...control, ...save]

/** The names of the rules. */
export const VMCB12_RULES: readonly string[] = rules.map(({ rule }) => rule)

/** @throws {NestedStateError} KVM would not go into guest mode with it */
export function checkVmcb12({ fields }: Vmcb12, maxPhyAddr: number): void {
  for (const { rule, field, problem, broken } of rules) {
    if (!broken(fields, maxPhyAddr)) continue
    throw new NestedStateError(
      rule,
      `vmcb.${field}`,
      fields[field],
      problem,
      'no VMRUN can have led here: the state is damaged, or of a vCPU with other features; take it again',
    )
  }
}
