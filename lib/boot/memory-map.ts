import { ACPI_ADDRESS, HIGH_RAM_START, LOW_MEMORY_END, LOW_RAM_END } from '../arch/x86_64/layout.js'
import type { GuestMemory, MemoryRegion } from '../memory/guest-memory.js'

// Types of ranges (ACPI 6.5, table 15.4); Linux, Multiboot, PVH and fw_cfg have the same ones.
export const E820_RAM = 1
export const E820_RESERVED = 2

/** One range of the guest's physical address map. */
export interface E820Entry {
  readonly address: number
  readonly size: number
  readonly type: number
}

/** A range of guest memory. */
export interface Placement {
  readonly address: number
  readonly size: number
}

/**
 * The address map given to the guest: RAM below 0x9fc00, the BIOS area reserved (it holds the ACPI tables), and RAM
 * from 1 MiB on as the regions of memory have it.
 */
export function e820(regions: readonly MemoryRegion[]): E820Entry[] {
  const map: E820Entry[] = []
  for (const { guestAddress, size } of regions) {
    const end = guestAddress + size
    if (guestAddress >= HIGH_RAM_START) {
      map.push({ address: guestAddress, size, type: E820_RAM })
      continue
    }
    const lowEnd = Math.min(end, LOW_RAM_END)
    if (guestAddress < lowEnd) map.push({ address: guestAddress, size: lowEnd - guestAddress, type: E820_RAM })
    map.push({ address: ACPI_ADDRESS, size: HIGH_RAM_START - ACPI_ADDRESS, type: E820_RESERVED })
    if (end > HIGH_RAM_START) map.push({ address: HIGH_RAM_START, size: end - HIGH_RAM_START, type: E820_RAM })
  }
  return map
}

/** End of the memory that begins at 0, below the gap for devices. */
export function lowMemoryEnd(memory: GuestMemory): number {
  let end = 0
  for (const { guestAddress, size } of memory.regions) {
    if (guestAddress !== end) break
    end += size
  }
  return Math.min(end, LOW_MEMORY_END)
}
