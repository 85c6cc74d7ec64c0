import { type AcpiOptions, layTables } from './acpi.js'
import { FADT_POINTERS, HEADER_SIZE, RSDP_SIZE, rsdp } from './acpi-tables.js'
import { ACPI_ROOM } from './layout.js'

// The script by which firmware puts tables into memory that it allocates itself (QEMU: hw/acpi/bios-linker-loader.c): commands of
// 128 bytes, little-endian; a file's name takes 56 of them.
const ENTRY_SIZE = 128
const NAME_SIZE = 56
const ALLOCATE = 1
const ADD_POINTER = 2
const ADD_CHECKSUM = 3
const ZONE_HIGH = 1
/** 0xf0000 to 0xfffff: where an operating system looks for the RSDP. */
const ZONE_FSEG = 2

const RSDP_FILE = 'etc/acpi/rsdp'
const TABLES_FILE = 'etc/acpi/tables'
const LOADER_FILE = 'etc/table-loader'

/**
 * The machine's ACPI tables as the files of fw_cfg that firmware makes them of: two with tables, in which a pointer to a table
 * is its offset in the file, and the script that allocates memory for them and makes addresses of the offsets.
 *
 * @throws {ConfigError} `vcpus`: the tables are too large
 */
export function acpiFiles(options: AcpiOptions): ReadonlyMap<string, Uint8Array> {
  const { tables, listed, rsdt, xsdt } = layTables(options, 0, ACPI_ROOM)
  const last = tables.at(-1)!
  const file = new Uint8Array(last.address + last.bytes.length)
  for (const { address, bytes } of tables) file.set(bytes, address)

  const pointers = (table: number, size: 4 | 8) => listed.map((_, i) => pointer(table + HEADER_SIZE + i * size, size))
  const fadt = listed[0]!
  const script = [
    allocate(RSDP_FILE, 16, ZONE_FSEG),
    allocate(TABLES_FILE, 64, ZONE_HIGH),
    ...FADT_POINTERS.map(([offset, size]) => pointer(fadt + offset, size)),
    ...pointers(rsdt, 4),
    ...pointers(xsdt, 8),
    pointer(16, 4, RSDP_FILE),
    pointer(24, 8, RSDP_FILE),
    ...[fadt, rsdt, xsdt].map(address => {
      const { bytes } = tables.find(table => table.address === address)!
      return checksum(TABLES_FILE, address + 9, address, bytes.length)
    }),
    checksum(RSDP_FILE, 8, 0, 20),
    checksum(RSDP_FILE, 32, 0, RSDP_SIZE),
  ]
  return new Map([
    [RSDP_FILE, rsdp(rsdt, xsdt)],
    [TABLES_FILE, file],
    [LOADER_FILE, Buffer.concat(script)],
  ])
}

function allocate(file: string, alignment: number, zone: number): Uint8Array {
  return entry(ALLOCATE, (bytes, view) => {
    bytes.write(file, 4, 'latin1')
    view.setUint32(4 + NAME_SIZE, alignment, true)
    view.setUint8(8 + NAME_SIZE, zone)
  })
}

/** Adds the address of the tables' file to the offset that is at `offset` of `file`. */
function pointer(offset: number, size: number, file = TABLES_FILE): Uint8Array {
  return entry(ADD_POINTER, (bytes, view) => {
    bytes.write(file, 4, 'latin1')
    bytes.write(TABLES_FILE, 4 + NAME_SIZE, 'latin1')
    view.setUint32(4 + 2 * NAME_SIZE, offset, true)
    view.setUint8(8 + 2 * NAME_SIZE, size)
  })
}

function checksum(file: string, offset: number, start: number, length: number): Uint8Array {
  return entry(ADD_CHECKSUM, (bytes, view) => {
    bytes.write(file, 4, 'latin1')
    view.setUint32(4 + NAME_SIZE, offset, true)
    view.setUint32(8 + NAME_SIZE, start, true)
    view.setUint32(12 + NAME_SIZE, length, true)
  })
}

function entry(command: number, fill: (bytes: Buffer, view: DataView) => void): Uint8Array {
  const bytes = Buffer.alloc(ENTRY_SIZE)
  const view = new DataView(bytes.buffer, bytes.byteOffset, ENTRY_SIZE)
  view.setUint32(0, command, true)
  fill(bytes, view)
  return bytes
}
