import type { KvmDtable, KvmSegment, KvmSregs } from '../../kvm/structs.js'
import type { GuestMemory } from '../../memory/guest-memory.js'
import { GDT_ADDRESS } from './layout.js'

// Control registers (Intel SDM vol. 3, section 2.5)
export const CR0_PE = 1n << 0n
export const CR0_MP = 1n << 1n
export const CR0_ET = 1n << 4n
export const CR0_NE = 1n << 5n
export const CR0_WP = 1n << 16n
export const CR0_AM = 1n << 18n
export const CR0_PG = 1n << 31n
export const CR4_PAE = 1n << 5n
export const CR4_LA57 = 1n << 12n
export const EFER_LME = 1n << 8n
export const EFER_LMA = 1n << 10n

/** Selectors that the Linux boot protocol fixes (`__BOOT_CS`, `__BOOT_DS`), and a task-state segment after them. */
export const BOOT_CS = 0x10
export const BOOT_DS = 0x18
export const BOOT_TSS = 0x20

/** Segment types (Intel SDM vol. 3, tables 3-1 and 3-2). */
const DATA_WRITABLE_ACCESSED = 0x3
const CODE_READABLE_ACCESSED = 0xb
const TSS_BUSY = 0xb
const LDT = 0x2

const flat: KvmSegment = {
  base: 0n,
  limit: 0xffff_ffff,
  selector: 0,
  type: DATA_WRITABLE_ACCESSED,
  present: 1,
  dpl: 0,
  db: 1,
  s: 1,
  l: 0,
  g: 1,
  avl: 0,
  unusable: 0,
  padding: 0,
}

const data: KvmSegment = { ...flat, selector: BOOT_DS }
const code32: KvmSegment = { ...flat, selector: BOOT_CS, type: CODE_READABLE_ACCESSED }
const code64: KvmSegment = { ...code32, db: 0, l: 1 }
const tss: KvmSegment = { ...flat, selector: BOOT_TSS, limit: 0x67, type: TSS_BUSY, db: 0, s: 0, g: 0 }
const noLdt: KvmSegment = { ...flat, limit: 0xffff, type: LDT, db: 0, s: 0, g: 0, unusable: 1 }

/** Every vector is beyond the limit: an exception before the guest has set up its own IDT ends in a triple fault. */
const noIdt: KvmDtable = { base: 0n, limit: 0, padding: [0, 0, 0] }

/**
 * A segment as the 8 bytes of its descriptor (Intel SDM vol. 3, section 3.4.5).
 */
export function descriptor(segment: KvmSegment): bigint {
  const limit = BigInt(segment.g ? segment.limit >>> 12 : segment.limit)
  const access = segment.type | (segment.s << 4) | (segment.dpl << 5) | (segment.present << 7)
  const flags = segment.avl | (segment.l << 1) | (segment.db << 2) | (segment.g << 3)
  return (
    (limit & 0xffffn) |
    ((segment.base & 0xff_ffffn) << 16n) |
    (BigInt(access) << 40n) |
    (((limit >> 16n) & 0xfn) << 48n) |
    (BigInt(flags) << 52n) |
    (((segment.base >> 24n) & 0xffn) << 56n)
  )
}

/**
 * State of the system registers in which Linux expects to be entered at its 64-bit entry point (Linux:
 * Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): long mode, paging on, flat segments, no IDT.
 *
 * Writes the GDT to guest memory. `current` is what `KVM_GET_SREGS` gave: the APIC base stays as it is there. `cr3` is
 * the guest-physical address of page tables that map at least the kernel, the boot parameters and the command line.
 */
export function longModeSregs(memory: GuestMemory, current: KvmSregs, cr3: bigint): KvmSregs {
  return {
    ...current,
    ...segments(code64),
    gdt: writeGdt(memory, code64),
    idt: noIdt,
    cr0: CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG,
    cr2: 0n,
    cr3,
    cr4: CR4_PAE,
    efer: EFER_LME | EFER_LMA,
  }
}

/**
 * State of the system registers for 32-bit protected mode with flat segments and paging off, as Multiboot and PVH
 * images expect it (Multiboot 0.6.96, section 3.2). Writes the GDT to guest memory.
 */
export function protectedModeSregs(memory: GuestMemory, current: KvmSregs): KvmSregs {
  return {
    ...current,
    ...segments(code32),
    gdt: writeGdt(memory, code32),
    idt: noIdt,
    cr0: CR0_PE | CR0_ET,
    cr2: 0n,
    cr3: 0n,
    cr4: 0n,
    efer: 0n,
  }
}

function segments(cs: KvmSegment) {
  return { cs, ds: data, es: data, fs: data, gs: data, ss: data, tr: tss, ldt: noLdt }
}

function writeGdt(memory: GuestMemory, cs: KvmSegment): KvmDtable {
  // The descriptor of a 64-bit TSS is 16 bytes long (Intel SDM vol. 3, section 7.2.3).
  const table = new BigUint64Array(BOOT_TSS / 8 + 2)
  table[BOOT_CS / 8] = descriptor(cs)
  table[BOOT_DS / 8] = descriptor(data)
  table[BOOT_TSS / 8] = descriptor(tss)
  memory.write(GDT_ADDRESS, new Uint8Array(table.buffer))
  return { base: BigInt(GDT_ADDRESS), limit: table.byteLength - 1, padding: [0, 0, 0] }
}
