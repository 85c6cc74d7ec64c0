import {
  COM1_PORT,
  FIRMWARE_LOW_ROOM,
  FIRMWARE_RANGE,
  HIGH_MEMORY_START,
  HIGH_RAM_START,
  PAGE_SIZE,
} from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { E820_RAM } from './memory-map.js'

const E820_ENTRY_SIZE = 20

/**
 * Puts a firmware image where a PC has it: it ends at 4 GiB, where the vCPU's reset vector is, and its end is also below 1 MiB,
 * in RAM, which it may write to.
 *
 * @throws {ConfigError} `firmware`: its size cannot be an image's; `memory`: it ends below 1 MiB
 */
export function loadFirmware(memory: GuestMemory, image: Uint8Array): void {
  if (image.length === 0 || image.length > FIRMWARE_RANGE.size || image.length % PAGE_SIZE !== 0) {
    const problem = `an image has a multiple of ${PAGE_SIZE} bytes, and ${FIRMWARE_RANGE.size} at most`
    throw new ConfigError('firmware', `${image.length} bytes`, problem, "give SeaBIOS's bios-microvm.bin")
  }
  const end = image.subarray(-FIRMWARE_LOW_ROOM)
  if (!memory.contains(HIGH_RAM_START - end.length, end.length)) {
    throw new ConfigError('memory', memory.size, 'there is no room for firmware', 'give at least 64M')
  }
  memory.write(HIGH_MEMORY_START - image.length, image)
  memory.write(HIGH_RAM_START - end.length, end)
}

/**
 * What firmware is told beside the ACPI tables, as files of fw_cfg: RAM, as whole regions, in which it finds a place for itself;
 * and the serial port to which its text screen goes.
 */
export function firmwareFiles(memory: GuestMemory): ReadonlyMap<string, Uint8Array> {
  const ram = memory.regions.filter(({ guestAddress }) => guestAddress !== FIRMWARE_RANGE.guestAddress)
  const e820 = Buffer.alloc(ram.length * E820_ENTRY_SIZE)
  ram.forEach(({ guestAddress, size }, i) => {
    e820.writeBigUInt64LE(BigInt(guestAddress), i * E820_ENTRY_SIZE)
    e820.writeBigUInt64LE(BigInt(size), i * E820_ENTRY_SIZE + 8)
    e820.writeUInt32LE(E820_RAM, i * E820_ENTRY_SIZE + 16)
  })
  const sercon = Buffer.alloc(2)
  sercon.writeUInt16LE(COM1_PORT)
  return new Map([
    ['etc/e820', e820],
    ['etc/sercon-port', sercon],
  ])
}
