import { BOOT_PARAMS_ADDRESS, CMDLINE_ADDRESS, PAGE_SIZE } from '../arch/x86_64/layout.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { writeCmdline } from './cmdline.js'
import { e820, type Placement } from './memory-map.js'

/**
 * Offsets in `struct boot_params` (Linux: Documentation/arch/x86/zero-page.rst); the setup header lies at 0x1f1 both
 * there and in a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
 */
export const HEADER = {
  setup_sects: 0x1f1,
  syssize: 0x1f4,
  vid_mode: 0x1fa,
  boot_flag: 0x1fe,
  jump_length: 0x201,
  header: 0x202,
  version: 0x206,
  type_of_loader: 0x210,
  loadflags: 0x211,
  code32_start: 0x214,
  ramdisk_image: 0x218,
  ramdisk_size: 0x21c,
  cmd_line_ptr: 0x228,
  initrd_addr_max: 0x22c,
  kernel_alignment: 0x230,
  relocatable_kernel: 0x234,
  xloadflags: 0x236,
  cmdline_size: 0x238,
  pref_address: 0x258,
  init_size: 0x260,
} as const
const ACPI_RSDP_ADDR = 0x070
const E820_ENTRIES = 0x1e8
const E820_TABLE = 0x2d0
const E820_TABLE_ROOM = 128

export const BOOT_FLAG = 0xaa55
/** "HdrS" */
export const HEADER_MAGIC = 0x53726448
/** No number was assigned to this boot loader. */
export const LOADER_UNDEFINED = 0xff

/** What is handed to the kernel beside itself. */
export interface Handover {
  readonly cmdline: string
  /** Most bytes of command line that the kernel takes, without the terminating zero. */
  readonly cmdlineMax: number
  /** Guest-physical address of the ACPI RSDP. */
  readonly rsdp?: number | undefined
  readonly initrd?: Placement | undefined
}

/**
 * Completes `params` (4096 bytes, with the setup header in place) and writes it and the command line to guest memory.
 *
 * @throws {ConfigError} `cmdline`: too long or with a zero byte in it
 */
export function writeBootParams(memory: GuestMemory, params: Uint8Array, handover: Handover): void {
  const view = new DataView(params.buffer, params.byteOffset, PAGE_SIZE)
  writeCmdline(memory, handover.cmdline, handover.cmdlineMax)
  view.setUint8(HEADER.type_of_loader, LOADER_UNDEFINED)
  view.setUint32(HEADER.cmd_line_ptr, CMDLINE_ADDRESS, true)
  view.setUint32(HEADER.ramdisk_image, handover.initrd?.address ?? 0, true)
  view.setUint32(HEADER.ramdisk_size, handover.initrd?.size ?? 0, true)
  view.setBigUint64(ACPI_RSDP_ADDR, BigInt(handover.rsdp ?? 0), true)

  const map = e820(memory.regions).slice(0, E820_TABLE_ROOM)
  view.setUint8(E820_ENTRIES, map.length)
  map.forEach(({ address, size, type }, i) => {
    const at = E820_TABLE + i * 20
    view.setBigUint64(at, BigInt(address), true)
    view.setBigUint64(at + 8, BigInt(size), true)
    view.setUint32(at + 16, type, true)
  })
  memory.write(BOOT_PARAMS_ADDRESS, params)
}
