/** What leads from an L2 guest-physical address to an L1 one: EPTP, nCR3 and L1's paging mode. */
import * as r from './registers.js'

/** An address's bits 51:12. */
export const PAGE_MASK = 0xf_ffff_ffff_f000n

export interface EptPointer {
  readonly memoryType: 'UC' | 'WB' | `reserved type ${number}`
  readonly levels: number
  readonly accessedDirty: boolean
  /** Supervisor shadow-stack pages are told apart. */
  readonly supervisorShadowStack: boolean
  /** L1 guest-physical address of the top table. */
  readonly root: bigint
}

/** Intel SDM vol. 3, table 25-9 */
export function decodeEptp(eptp: bigint): EptPointer {
  const type = Number(eptp & 7n)
  return {
    memoryType: type === 0 ? 'UC' : type === 6 ? 'WB' : `reserved type ${type}`,
    levels: Number((eptp >> 3n) & 7n) + 1,
    accessedDirty: (eptp & 0x40n) !== 0n,
    supervisorShadowStack: (eptp & 0x80n) !== 0n,
    root: eptp & PAGE_MASK,
  }
}

export type PagingMode = 'no paging' | '32-bit' | 'PAE' | '4-level' | '5-level'

/** What CR0, CR4 and EFER make of paging (Intel SDM vol. 3, section 5.1.1; AMD APM vol. 2, section 5.1). */
export function pagingMode(cr0: bigint, cr4: bigint, efer: bigint): PagingMode {
  if ((cr0 & r.CR0_PG) === 0n) return 'no paging'
  if ((cr4 & r.CR4_PAE) === 0n) return '32-bit'
  // LMA is LME with PG; the host-state area of a VMCS knows no more than LMA.
  if ((efer & (r.EFER_LME | r.EFER_LMA)) === 0n) return 'PAE'
  return (cr4 & r.CR4_LA57) === 0n ? '4-level' : '5-level'
}

/** Where the top table of a paging mode lies (Intel SDM vol. 3, section 5.1; the same for nCR3, AMD APM vol. 2, section 15.25.3). */
export function pageTableRoot(cr3: bigint, mode: PagingMode): bigint {
  if (mode === 'PAE') return cr3 & 0xffff_ffe0n
  return mode === '32-bit' ? cr3 & 0xffff_f000n : cr3 & PAGE_MASK
}
