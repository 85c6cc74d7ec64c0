/** Bits of the control registers and IA32_EFER that nested state is judged by (Intel SDM vol. 3, section 2.5). */

/** What VMX uses for "no address". */
export const ALL_ONES = 2n ** 64n - 1n

export const CR0_PE = 1n << 0n
export const CR0_NE = 1n << 5n
export const CR0_WP = 1n << 16n
export const CR0_NW = 1n << 29n
export const CR0_CD = 1n << 30n
export const CR0_PG = 1n << 31n
export const CR4_PSE = 1n << 4n
export const CR4_PAE = 1n << 5n
export const CR4_LA57 = 1n << 12n
export const CR4_VMXE = 1n << 13n
export const CR4_PCIDE = 1n << 17n
export const CR4_CET = 1n << 23n
export const EFER_LME = 1n << 8n
export const EFER_LMA = 1n << 10n
export const EFER_NXE = 1n << 11n
export const EFER_SVME = 1n << 12n

/** Reserved in every processor: bits 15, 26, 27, 29 to 31 and above 32 (Intel SDM vol. 3, section 2.5; 32 is FRED). */
export const CR4_RESERVED = ~0x1_13ff_7fffn & ALL_ONES
/** IA32_EFER has no other bits: SCE, LME, LMA, NXE, SVME, LMSLE, FFXSR, TCE, MCOMMIT, INTWB, UAIE, AIBRSE. */
export const EFER_RESERVED = ~0x36_fd01n & ALL_ONES

/** Bits 61 and 62 of CR3 are LAM's: newer kernels take them. */
export const CR3_LAM = 3n << 61n

/** True where the vCPU has that physical address, and it is aligned. */
export function legalAddress(address: bigint, maxPhyAddr: number, alignment = 1n): boolean {
  return address >> BigInt(maxPhyAddr) === 0n && address % alignment === 0n
}
