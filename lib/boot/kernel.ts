import { HIGH_RAM_START } from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { isBzImage } from './bzimage.js'
import { isElf, parseElf } from './elf.js'
import { unpacked } from './gzip.js'
import { loadLinux } from './linux.js'
import { lowMemoryEnd, type Placement } from './memory-map.js'
import type { BootModule, Content } from './modules.js'
import { findMultibootHeader, loadMultiboot } from './multiboot.js'
import { loadPvh, pvhEntry } from './pvh.js'

/** How a kernel is booted: Linux's 64-bit boot protocol, as a PVH guest, or as a Multiboot kernel. */
export type KernelBoot = 'linux' | 'pvh' | 'multiboot'

/** What to boot. `rsdp` is the guest-physical address of the ACPI RSDP. */
export interface BootSource {
  readonly kernel: Uint8Array
  /** Default: what the kernel is made for. */
  readonly boot?: KernelBoot | undefined
  /** The kernel's name, for kernels whose command line begins with it (Multiboot). */
  readonly name?: string
  readonly initrd?: Content | undefined
  readonly modules?: readonly BootModule[]
  readonly cmdline?: string
  readonly rsdp?: number
}

/** How the first vCPU enters the kernel. */
export interface BootEntry {
  /** In 64-bit mode with paging, or in 32-bit protected mode without; flat segments both. */
  readonly mode: 'long' | 'protected'
  /** All others are 0. */
  readonly registers: Readonly<Partial<Record<'rip' | 'rax' | 'rbx' | 'rsi', bigint>>>
  /** What the kernel occupies until it has set itself up. */
  readonly kernel: Placement
  /** Where the initrd and the modules lie. */
  readonly initrd: Placement | undefined
  readonly modules: readonly Placement[]
}

/**
 * Loads a kernel, gzip'd or not, with what belongs to it, and says how to enter it.
 *
 * @throws {ConfigError} `kernel`: of no known format, cut short, or not to be booted the way that `boot` says; `initrd`,
 *   `modules`, `modules[0]`...: it does not fit, or this way to boot has none; `cmdline`: too long; `memory`: too small
 */
export function loadKernel(memory: GuestMemory, source: BootSource): BootEntry {
  if (lowMemoryEnd(memory) < HIGH_RAM_START) {
    throw new ConfigError('memory', memory.size, 'there is no room for a kernel', 'give at least 64M')
  }
  const file = unpacked(source.kernel)
  switch (source.boot ?? findOut(file)) {
    case 'linux':
      return loadLinux(memory, file, source)
    case 'pvh':
      return loadPvh(memory, file, source)
    case 'multiboot':
      return loadMultiboot(memory, file, source)
  }
}

/**
 * The way for which a kernel is made. Linux is entered at its 64-bit entry point, also where it has another for PVH: that way is
 * the quicker one, and its boot parameters tell more. It is known by the notes that it writes under its own name since 4.18; an
 * older one has none, and starts by PVH as well. For an ELF32 file with both, Multiboot goes before PVH, as with QEMU.
 */
function findOut(file: Uint8Array): KernelBoot {
  if (isBzImage(file)) return 'linux'
  const multiboot = findMultibootHeader(file)
  if (multiboot?.addresses) return 'multiboot'
  if (!isElf(file)) {
    const start = Buffer.from(file.subarray(0, 8)).toString('hex') || 'nothing at all'
    throw new ConfigError(
      'kernel',
      `${file.length} bytes that start with ${start}`,
      'it is neither a bzImage nor an ELF file nor a Multiboot kernel, or it is cut short',
      'give the vmlinuz of a distribution, arch/x86/boot/bzImage or vmlinux of a kernel build',
    )
  }
  const elf = parseElf(file)
  if (elf.bits === 32 && multiboot) return 'multiboot'
  if (pvhEntry(elf) !== undefined && !elf.notes.some(({ owner }) => owner === 'Linux')) return 'pvh'
  if (elf.bits === 64) return 'linux'
  throw new ConfigError(
    'kernel',
    `ELF file of ${file.length} bytes`,
    'it is a 32-bit ELF file with neither a Multiboot header nor an entry point for PVH',
    'give a 64-bit vmlinux, or a kernel with one of them',
  )
}
