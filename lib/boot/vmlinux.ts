import { KERNEL_ADDRESS, PAGE_SIZE } from '../arch/x86_64/layout.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { BOOT_FLAG, HEADER, HEADER_MAGIC } from './boot-params.js'
import { badElf, loadSegments, parseElf, physicalEntry } from './elf.js'
import type { LoadedKernel } from './linux.js'

/** An ELF kernel has no setup header: what its boot loader may assume (arch/x86/include/asm/setup.h, COMMAND_LINE_SIZE). */
const COMMAND_LINE_SIZE = 2048
const INITRD_ADDRESS_MAX = 0x7fff_ffff
/** Version of the boot protocol that is claimed towards the kernel. */
const PROTOCOL_VERSION = 0x20f

/**
 * Puts an ELF64 `vmlinux` into guest memory, each segment at its physical address.
 *
 * @throws {ConfigError} `kernel` as `parseElf`, or 32-bit; `memory`: too small for a segment
 */
export function loadVmlinux(memory: GuestMemory, file: Uint8Array): LoadedKernel {
  const elf = parseElf(file)
  if (elf.bits !== 64) {
    const remedy = 'give the vmlinux of a kernel built for x86-64'
    throw badElf(file, 'it is no 64-bit executable, as a Linux kernel has to be', remedy)
  }
  return {
    entry: physicalEntry(file, elf),
    occupied: loadSegments(memory, file, elf),
    initrdAddressMax: INITRD_ADDRESS_MAX,
    cmdlineMax: COMMAND_LINE_SIZE - 1,
    params: bootParams(),
  }
}

function bootParams(): Uint8Array {
  const params = new Uint8Array(PAGE_SIZE)
  const view = new DataView(params.buffer)
  view.setUint16(HEADER.boot_flag, BOOT_FLAG, true)
  view.setUint32(HEADER.header, HEADER_MAGIC, true)
  view.setUint16(HEADER.version, PROTOCOL_VERSION, true)
  view.setUint16(HEADER.vid_mode, 0xffff, true)
  view.setUint32(HEADER.kernel_alignment, KERNEL_ADDRESS, true)
  return params
}
