import { BOOT_PARAMS_ADDRESS, LOW_MEMORY_END, PAGE_SIZE } from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { writeBootParams } from './boot-params.js'
import { loadBzImage } from './bzimage.js'
import { isElf } from './elf.js'
import type { BootEntry, BootSource } from './kernel.js'
import { lowMemoryEnd, type Placement } from './memory-map.js'
import { type Content, sizeOf, writeContent } from './modules.js'
import { loadVmlinux } from './vmlinux.js'

/** A Linux kernel whose content is in guest memory. Formats give this to `loadLinux`. */
export interface LoadedKernel {
  readonly entry: number
  /** What it occupies until it has set itself up. */
  readonly occupied: Placement
  /** Highest address that a byte of the initrd may have. */
  readonly initrdAddressMax: number
  readonly cmdlineMax: number
  /** 4096 bytes: `struct boot_params` with the setup header in place. */
  readonly params: Uint8Array
}

/**
 * Loads a Linux kernel, a bzImage or an ELF64 `vmlinux`, with its initrd, command line and boot parameters, for the 64-bit boot
 * protocol (Linux: Documentation/arch/x86/boot.rst).
 *
 * @throws {ConfigError} `kernel`: cut short or without a 64-bit entry point; `initrd`: it does not fit; `modules`: there are
 *   some; `cmdline`: too long; `memory`: too small for the kernel
 */
export function loadLinux(memory: GuestMemory, file: Uint8Array, source: BootSource): BootEntry {
  const { cmdline = '', rsdp, modules = [] } = source
  if (modules.length > 0) {
    const remedy = 'give an initrd, or force another way to boot with --boot'
    throw new ConfigError('modules', `${modules.length} modules`, 'a Linux kernel takes none', remedy)
  }
  const loaded = isElf(file) ? loadVmlinux(memory, file) : loadBzImage(memory, file)
  const initrd = placeInitrd(source.initrd, loaded, lowMemoryEnd(memory))
  writeBootParams(memory, loaded.params, { cmdline, cmdlineMax: loaded.cmdlineMax, rsdp, initrd })
  if (initrd) writeContent(memory, source.initrd, initrd.address)
  return {
    mode: 'long',
    registers: { rip: BigInt(loaded.entry), rsi: BigInt(BOOT_PARAMS_ADDRESS) },
    kernel: loaded.occupied,
    initrd,
    modules: [],
  }
}

/** As high as the kernel allows: what lies low is in the way of the kernel when it unpacks and moves itself. */
function placeInitrd(initrd: Content | undefined, kernel: LoadedKernel, lowMemory: number): Placement | undefined {
  const size = sizeOf(initrd)
  if (size === 0) return undefined
  const end = Math.min(kernel.initrdAddressMax + 1, lowMemory)
  const address = Math.floor((end - size) / PAGE_SIZE) * PAGE_SIZE
  const kernelEnd = kernel.occupied.address + kernel.occupied.size
  if (address < kernelEnd) {
    const missing = Math.ceil((kernelEnd - address) / 2 ** 20)
    const remedy =
      end < lowMemory || lowMemory === LOW_MEMORY_END
        ? `this kernel takes an initrd only below 0x${end.toString(16)}: make it smaller by ${missing} MiB`
        : `give the guest at least ${missing} MiB more memory, or a smaller initrd`
    throw new ConfigError('initrd', `${size} bytes`, 'it does not fit into memory above the kernel', remedy)
  }
  return { address, size }
}
