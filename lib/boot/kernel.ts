import { BOOT_PARAMS_ADDRESS, HIGH_RAM_START, LOW_MEMORY_END, PAGE_SIZE } from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { type Placement, writeBootParams } from './boot-params.js'
import { isBzImage, loadBzImage } from './bzimage.js'
import { isElf, loadElf } from './elf.js'

/**
 * What to boot. `initrd` is the content in one piece or in several that follow each other; or only its `size`, and the caller fills
 * in the place that `loadKernel` returns (`memory.parts(address, size)`), straight from a file. `rsdp` is the
 * guest-physical address of the ACPI RSDP.
 */
export interface BootSource {
  readonly kernel: Uint8Array
  readonly initrd?: Uint8Array | readonly Uint8Array[] | { readonly size: number } | undefined
  readonly cmdline?: string
  readonly rsdp?: number
}

/** How the first vCPU enters the kernel: in long mode, with these in `rip` and `rsi`. */
export interface BootEntry {
  readonly rip: bigint
  readonly rsi: bigint
  /** What the kernel occupies until it has set itself up. */
  readonly kernel: Placement
  readonly initrd?: Placement | undefined
}

/** A kernel whose content is in guest memory. Formats give this to `loadKernel`. */
export interface LoadedKernel {
  readonly entry: number
  readonly occupied: Placement
  /** Highest address that a byte of the initrd may have. */
  readonly initrdAddressMax: number
  readonly cmdlineMax: number
  /** 4096 bytes: `struct boot_params` with the setup header in place. */
  readonly params: Uint8Array
}

/**
 * Loads a Linux kernel, a bzImage or an ELF64 `vmlinux` (found out by its magic number), with its initrd, command line and
 * boot parameters, for the 64-bit boot protocol (Linux: Documentation/arch/x86/boot.rst).
 *
 * @throws {ConfigError} `kernel`: neither format, cut short or without a 64-bit entry point; `initrd`: it does not fit;
 *   `cmdline`: too long; `memory`: too small for the kernel
 */
export function loadKernel(memory: GuestMemory, source: BootSource): BootEntry {
  const { kernel, cmdline = '', rsdp } = source
  const lowMemory = lowMemoryEnd(memory)
  if (lowMemory < HIGH_RAM_START) {
    throw new ConfigError('memory', memory.size, 'there is no room for a kernel', 'give at least 64M')
  }
  const loaded = load(memory, kernel)
  const initrd = placeInitrd(source.initrd, loaded, lowMemory)
  writeBootParams(memory, loaded.params, { cmdline, cmdlineMax: loaded.cmdlineMax, rsdp, initrd })
  if (initrd) writeInitrd(memory, source.initrd, initrd)
  return { rip: BigInt(loaded.entry), rsi: BigInt(BOOT_PARAMS_ADDRESS), kernel: loaded.occupied, initrd }
}

function load(memory: GuestMemory, kernel: Uint8Array): LoadedKernel {
  if (isElf(kernel)) return loadElf(memory, kernel)
  if (isBzImage(kernel)) return loadBzImage(memory, kernel)
  const start = Buffer.from(kernel.subarray(0, 8)).toString('hex') || 'nothing at all'
  throw new ConfigError(
    'kernel',
    `${kernel.length} bytes that start with ${start}`,
    'it is neither a bzImage nor an ELF file, or it is cut short',
    'give the vmlinuz of a distribution, arch/x86/boot/bzImage or vmlinux of a kernel build',
  )
}

/** End of the memory that begins at 0, below the gap for devices. */
function lowMemoryEnd(memory: GuestMemory): number {
  let end = 0
  for (const { guestAddress, size } of memory.regions) {
    if (guestAddress !== end) break
    end += size
  }
  return Math.min(end, LOW_MEMORY_END)
}

/** As high as the kernel allows: what lies low is in the way of the kernel when it unpacks and moves itself. */
function placeInitrd(initrd: BootSource['initrd'], kernel: LoadedKernel, lowMemory: number): Placement | undefined {
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

function sizeOf(initrd: BootSource['initrd']): number {
  if (!initrd) return 0
  if (initrd instanceof Uint8Array) return initrd.length
  if ('size' in initrd) return initrd.size
  return initrd.reduce((sum, part) => sum + part.length, 0)
}

function writeInitrd(memory: GuestMemory, initrd: BootSource['initrd'], { address }: Placement): void {
  if (!initrd || 'size' in initrd) return
  let at = address
  for (const part of initrd instanceof Uint8Array ? [initrd] : initrd) {
    memory.write(at, part)
    at += part.length
  }
}
