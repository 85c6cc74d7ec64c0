import { flagsOf } from '../../arch/x86_64/cpuid.js'
import { BLOCK_SIZE } from '../../nested/block.js'
import { decodeVmcb12, encodeVmcb12, type Vmcb12Name } from '../../nested/vmcb12.js'
import { CR0, CR4_PAE, type DeepExtension, EFER_LONG, STACK, selector } from './extension.js'
import { at, LARGE_LEAF, svmL1, svmL2, writeTables } from './guests.js'

const EFER_SVME = 1n << 12n
const MSR_VM_HSAVE_PA = 0xc001_0117

export const svmDeep: DeepExtension = {
  // VMEXIT_VMMCALL (AMD APM vol. 2, appendix C)
  hypercall: 0x81,
  prepare(vcpu, memory, cpuid) {
    const nestedPaging = flagsOf(cpuid).includes('npt')
    memory.set(svmL1.code, at.l1)
    memory.set(svmL2.code, at.l2)
    writeTables(memory, at.nestedTables, LARGE_LEAF)
    memory.set(vmcb(nestedPaging), at.controlBlock)
    vcpu.setMsrs([{ index: MSR_VM_HSAVE_PA, value: BigInt(at.hostArea) }])
    const registers = { rax: BigInt(at.controlBlock) }
    return { cr4: CR4_PAE, efer: EFER_LONG | EFER_SVME, registers, nestedPaging }
  },
}

/** VMCB12 (AMD APM vol. 2, appendix B): L2 in 64-bit mode, whose HLT and VMMCALL exit to L1. */
function vmcb(nestedPaging: boolean): Uint8Array {
  const empty = decodeVmcb12(new Uint8Array(BLOCK_SIZE))
  const fields: Partial<Record<Vmcb12Name, bigint>> = {
    // INTR and HLT; VMRUN, without which there is no entry, and VMMCALL.
    interceptVector3: 1n | (1n << 24n),
    interceptVector4: 3n,
    guestAsid: 1n,
    ...(nestedPaging && { nestedControl: 1n, nCr3: BigInt(at.nestedTables) }),
    csSelector: BigInt(selector.code),
    csAttrib: 0xa9bn,
    csLimit: 0xffff_ffffn,
    trSelector: BigInt(selector.task),
    trAttrib: 0x8bn,
    trLimit: 0x67n,
    efer: EFER_LONG | EFER_SVME,
    cr0: CR0,
    cr3: BigInt(at.pageTables),
    cr4: CR4_PAE,
    dr6: 0xffff_0ff0n,
    dr7: 0x400n,
    rflags: 2n,
    rip: BigInt(at.l2),
    rsp: BigInt(at.l2 + STACK),
    gPat: 0x0007_0406_0007_0406n,
  }
  for (const name of ['es', 'ss', 'ds', 'fs', 'gs'] as const) {
    fields[`${name}Selector`] = BigInt(selector.data)
    fields[`${name}Attrib`] = 0xc93n
    fields[`${name}Limit`] = 0xffff_ffffn
  }
  return encodeVmcb12({ ...empty, fields: { ...empty.fields, ...fields } })
}
