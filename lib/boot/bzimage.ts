import { HIGH_RAM_START, KERNEL_ADDRESS, PAGE_SIZE } from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { BOOT_FLAG, HEADER, HEADER_MAGIC } from './boot-params.js'
import type { LoadedKernel } from './linux.js'

const SECTOR = 512
/** The first version of the boot protocol with `xloadflags`, which tell of the 64-bit entry point: Linux 3.8. */
const VERSION_MIN = 0x20c
const XLF_KERNEL_64 = 1 << 0
const LOADED_HIGH = 1 << 0
const HEADER_START = HEADER.setup_sects
/** The header may grow up to where `edd_mbr_sig_buffer` begins. */
const HEADER_END_MAX = 0x290
/** Offset of the 64-bit entry point in the loaded kernel (boot.rst, "64-bit Boot Protocol"). */
const ENTRY_64 = 0x200

/** The setup header of a bzImage, as far as the 64-bit boot protocol needs it, under the kernel's own names. */
export interface SetupHeader {
  /** Major in the high byte, minor in the low one: 0x20f is 2.15. */
  readonly version: number
  /** Offset and bytes of the protected-mode kernel in the file. */
  readonly payload: { readonly offset: number; readonly size: number }
  readonly initrd_addr_max: number
  readonly kernel_alignment: number
  readonly relocatable_kernel: boolean
  readonly cmdline_size: number
  readonly pref_address: number
  readonly init_size: number
}

/** Whether `file` claims to be a bzImage: the boot flag and "HdrS" are in place. */
export function isBzImage(file: Uint8Array): boolean {
  if (file.length < HEADER.version) return false
  const view = viewOf(file)
  return view.getUint16(HEADER.boot_flag, true) === BOOT_FLAG && view.getUint32(HEADER.header, true) === HEADER_MAGIC
}

/**
 * Reads and checks the setup header of a bzImage.
 *
 * @throws {ConfigError} `kernel`: no bzImage, cut short, or without a 64-bit entry point
 */
export function parseBzImage(file: Uint8Array): SetupHeader {
  if (!isBzImage(file))
    throw bad(file, 'it has no Linux setup header', 'give a bzImage (the vmlinuz of a distribution)')
  if (file.length < HEADER_END_MAX) throw cutShort(file, HEADER_END_MAX)
  const view = viewOf(file)
  const version = view.getUint16(HEADER.version, true)
  if (version < VERSION_MIN) {
    const name = `${version >> 8}.${version & 0xff}`
    throw bad(file, `its boot protocol is ${name}, and 2.12 is needed`, 'give a kernel of Linux 3.8 or later')
  }
  if (!(view.getUint16(HEADER.xloadflags, true) & XLF_KERNEL_64)) {
    throw bad(file, 'it has no 64-bit entry point', 'give a kernel that was built for x86-64')
  }
  if (!(view.getUint8(HEADER.loadflags) & LOADED_HIGH)) {
    throw bad(file, 'it is a zImage, to be loaded below 640 KiB', 'give a bzImage')
  }
  // boot.rst: 0 means 4, for ancient kernels
  const offset = ((view.getUint8(HEADER.setup_sects) || 4) + 1) * SECTOR
  const size = view.getUint32(HEADER.syssize, true) * 16
  // syssize is rounded up to paragraphs of 16 bytes
  if (offset + size - 15 > file.length) throw cutShort(file, offset + size)
  if (size <= ENTRY_64) throw bad(file, 'its kernel part is empty', 'give an intact copy of it')
  return {
    version,
    payload: { offset, size: Math.min(size, file.length - offset) },
    initrd_addr_max: view.getUint32(HEADER.initrd_addr_max, true),
    kernel_alignment: view.getUint32(HEADER.kernel_alignment, true),
    relocatable_kernel: view.getUint8(HEADER.relocatable_kernel) !== 0,
    cmdline_size: view.getUint32(HEADER.cmdline_size, true),
    pref_address: Number(view.getBigUint64(HEADER.pref_address, true)),
    init_size: view.getUint32(HEADER.init_size, true),
  }
}

/**
 * Puts the kernel part of a bzImage into guest memory: at 16 MiB, or where it wants to be if it cannot be relocated.
 *
 * @throws {ConfigError} `kernel` as `parseBzImage`; `memory`: too small for the kernel to unpack itself
 */
export function loadBzImage(memory: GuestMemory, file: Uint8Array): LoadedKernel {
  const header = parseBzImage(file)
  const { payload, pref_address, kernel_alignment, relocatable_kernel, init_size } = header
  const address = relocatable_kernel ? KERNEL_ADDRESS : pref_address
  // Where it will run (boot.rst, "init_size"): the preferred address, or the next aligned one above that if loaded higher.
  const alignment = kernel_alignment || 1
  const start = relocatable_kernel ? Math.max(pref_address, Math.ceil(address / alignment) * alignment) : pref_address
  const end = Math.max(start + init_size, address + payload.size)
  if (address < HIGH_RAM_START || !Number.isSafeInteger(end)) {
    throw bad(file, `it wants to be loaded at 0x${address.toString(16)}`, 'give a relocatable kernel')
  }
  if (!memory.contains(address, end - address)) {
    const remedy = `give the guest more than ${Math.ceil(end / 2 ** 20)} MiB`
    throw new ConfigError('memory', memory.size, `this kernel unpacks itself up to 0x${end.toString(16)}`, remedy)
  }
  memory.write(address, file.subarray(payload.offset, payload.offset + payload.size))
  return {
    entry: address + ENTRY_64,
    occupied: { address, size: end - address },
    initrdAddressMax: header.initrd_addr_max,
    cmdlineMax: header.cmdline_size,
    params: bootParams(file, address),
  }
}

/** boot.rst, "64-bit Boot Protocol": a zeroed page with the file's setup header in it, which ends as its jump tells. */
function bootParams(file: Uint8Array, address: number): Uint8Array {
  const params = new Uint8Array(PAGE_SIZE)
  const end = Math.min(HEADER.header + viewOf(file).getUint8(HEADER.jump_length), HEADER_END_MAX)
  params.set(file.subarray(HEADER_START, end), HEADER_START)
  viewOf(params).setUint32(HEADER.code32_start, address, true)
  return params
}

function cutShort(file: Uint8Array, needed: number): ConfigError {
  return bad(file, `it is cut short: its header tells of ${needed} bytes`, 'give an intact copy of it')
}

function bad(file: Uint8Array, problem: string, remedy: string): ConfigError {
  return new ConfigError('kernel', `bzImage of ${file.length} bytes`, problem, remedy)
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}
