/**
 * Every guest-physical address, I/O port and interrupt number of the machine, once.
 *
 * Addresses below 1 MiB hold what the VMM hands to the guest; the rest follows the PC: RAM to 3 GiB, a gap for
 * devices up to 4 GiB, RAM again above it.
 */

export const PAGE_SIZE = 0x1000

/** Words of the BIOS data area that say where RAM below 640 KiB ends: the EBDA's segment, and the KiB before it. */
export const BIOS_EBDA_SEGMENT_ADDRESS = 0x40e
export const BIOS_BASE_MEMORY_ADDRESS = 0x413
/** Global descriptor table of the initial state. */
export const GDT_ADDRESS = 0x500
/** `struct boot_params` (the "zero page") of the Linux boot protocol. */
export const BOOT_PARAMS_ADDRESS = 0x7000
/** Identity map of the first 4 GiB: PML4, PDPT and four page directories. */
export const PAGE_TABLES_ADDRESS = 0x9000
/** Kernel command line, with its terminating zero. */
export const CMDLINE_ADDRESS = 0x20000
export const CMDLINE_ROOM = 0x40000
/** What Multiboot and PVH hand to a kernel: the information structure, its lists, and the modules' command lines. */
export const BOOT_INFO_ADDRESS = 0x60000
export const BOOT_INFO_ROOM = 0x30000
/** End of the RAM below 640 KiB: what follows is where a PC has its extended BIOS data area. */
export const LOW_RAM_END = 0x9fc00
/** ACPI tables, where an operating system looks for the RSDP (ACPI 6.5, section 5.2.5.1). */
export const ACPI_ADDRESS = 0xe0000
export const ACPI_ROOM = 0x20000
export const HIGH_RAM_START = 0x100000
/** Where a relocatable kernel is put: the default CONFIG_PHYSICAL_START. */
export const KERNEL_ADDRESS = 0x1000000

/** End of the RAM below 4 GiB. */
export const LOW_MEMORY_END = 0xc000_0000
/** Where RAM goes on. */
export const HIGH_MEMORY_START = 0x1_0000_0000

/** Virtio devices, a page of registers each, in the gap below 4 GiB. */
export const VIRTIO_MMIO_ADDRESS = 0xd000_0000
export const VIRTIO_MMIO_SIZE = PAGE_SIZE
/** More would gain nothing: their interrupts are shared from the 17th on. */
export const VIRTIO_DEVICES_MAX = 64

export const IOAPIC_ADDRESS = 0xfec0_0000
export const LOCAL_APIC_ADDRESS = 0xfee0_0000
/** One page for KVM's own use on Intel hosts (KVM API, KVM_SET_IDENTITY_MAP_ADDR). */
export const IDENTITY_MAP_ADDRESS = 0xfffb_c000
/** Three pages for KVM's own use on Intel hosts (KVM API, KVM_SET_TSS_ADDR). */
export const TSS_ADDRESS = 0xfffb_d000
/** Firmware ends at 4 GiB, where the reset vector is (Intel SDM vol. 3, section 10.1.4), right behind KVM's own pages. */
export const FIRMWARE_RANGE: MemoryRange = { guestAddress: 0xfffc_0000, size: 0x4_0000 }
/** As much of its end as is also below 1 MiB, where it runs in real mode. */
export const FIRMWARE_LOW_ROOM = 0x2_0000

export const I8042_COMMAND_PORT = 0x64
export const RTC_PORT = 0x70
export const RTC_PORT_COUNT = 2
export const DEBUG_EXIT_PORT = 0xf4
export const DEBUG_EXIT_PORT_COUNT = 4
export const COM1_PORT = 0x3f8
export const COM1_PORT_COUNT = 8
/** Where QEMU has it; the DSDT says so. */
export const PVPANIC_PORT = 0x505
/** PCI's CONFIG_ADDRESS, which has the reset control register in it. */
export const RESET_CONTROL_PORT = 0xcf8
export const RESET_CONTROL_PORT_COUNT = 4
/** Selector, data and DMA registers of fw_cfg (QEMU: docs/specs/fw_cfg.rst). */
export const FW_CFG_PORT = 0x510
export const FW_CFG_PORT_COUNT = 12
export const ACPI_PM_PORT = 0x600
export const ACPI_PM_PORT_COUNT = 12
/** Offsets from `ACPI_PM_PORT`: PM1 event block (status, enable), PM1 control, PM timer (ACPI 6.5, section 4.8.3). */
export const ACPI_PM1_EVENT = 0
export const ACPI_PM1_CONTROL = 4
export const ACPI_PM_TIMER = 8
/** SLP_TYP value that the DSDT's `_S5` object names for power-off. */
export const ACPI_S5_SLEEP_TYPE = 5

export const IOAPIC_PINS = 24
export const COM1_IRQ = 4
export const RTC_IRQ = 8
/** System control interrupt. */
export const SCI_IRQ = 9
/** The timer's ISA interrupt 0 arrives at this pin of the I/O APIC. */
export const TIMER_GSI = 2

/** Pins of the I/O APIC for virtio devices: those that no ISA device has, then those of ISA devices that are not there. */
const VIRTIO_GSIS = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12, 14, 15] as const

/** Where a virtio device is found. */
export interface VirtioSlot {
  readonly address: number
  readonly gsi: number
}

/** The place of the virtio device with number `index`. Interrupts are edges, which may share a pin. */
export function virtioSlot(index: number): VirtioSlot {
  return {
    address: VIRTIO_MMIO_ADDRESS + index * VIRTIO_MMIO_SIZE,
    gsi: VIRTIO_GSIS[index % VIRTIO_GSIS.length]!,
  }
}

/** A range of RAM. */
export interface MemoryRange {
  readonly guestAddress: number
  readonly size: number
}

/**
 * Where `size` bytes of RAM lie: from 0 up to 3 GiB, and what is left from 4 GiB on.
 */
export function memoryRanges(size: number): MemoryRange[] {
  if (size <= LOW_MEMORY_END) return [{ guestAddress: 0, size }]
  return [
    { guestAddress: 0, size: LOW_MEMORY_END },
    { guestAddress: HIGH_MEMORY_START, size: size - LOW_MEMORY_END },
  ]
}
