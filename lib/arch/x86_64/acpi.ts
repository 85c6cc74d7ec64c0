import { ConfigError } from '../../errors.js'
import type { GuestMemory } from '../../memory/guest-memory.js'
import { dsdt, facs, fadt, madt, RSDP_SIZE, rsdp, rsdt, xsdt } from './acpi-tables.js'
import type { Aml } from './aml.js'
import { ACPI_ADDRESS, ACPI_ROOM } from './layout.js'

export interface AcpiOptions {
  readonly vcpus: number
  /** Further devices for the namespace, as terms inside `\_SB` (see `aml.ts`). */
  readonly devices?: readonly Aml[]
}

/** A table and where it lies. */
export interface PlacedTable {
  readonly address: number
  readonly bytes: Uint8Array
}

/**
 * All tables of the machine but the RSDP, one behind the other from `start` on.
 *
 * @throws {ConfigError} `vcpus`: they take more than `room`
 */
export function layTables({ vcpus, devices = [] }: AcpiOptions, start: number, room: number) {
  const tables: PlacedTable[] = []
  // The FACS must be aligned to 64 bytes; it does the others no harm.
  let next = start
  const place = (bytes: Uint8Array): number => {
    const address = next
    next += align(bytes.length)
    if (next > start + room) {
      throw new ConfigError('vcpus', vcpus, 'the ACPI tables for so many do not fit below 1 MiB', 'give fewer')
    }
    tables.push({ address, bytes })
    return address
  }
  const listed = [place(fadt(place(facs()), place(dsdt(devices)))), place(madt(vcpus))]
  return { tables, listed, rsdt: place(rsdt(listed)), xsdt: place(xsdt(listed)) }
}

/**
 * The ACPI tables of the machine (ACPI 6.5, section 5.2), one behind the other from `ACPI_ADDRESS` on. The first is the RSDP.
 *
 * @throws {ConfigError} `vcpus`: their tables do not fit below 1 MiB
 */
export function acpiTables(options: AcpiOptions): PlacedTable[] {
  const rest = align(RSDP_SIZE)
  const { tables, rsdt, xsdt } = layTables(options, ACPI_ADDRESS + rest, ACPI_ROOM - rest)
  return [{ address: ACPI_ADDRESS, bytes: rsdp(rsdt, xsdt) }, ...tables]
}

/**
 * Writes the tables to guest memory and returns the address of the RSDP, for the boot parameters.
 *
 * @throws {ConfigError} `memory`: it ends below 1 MiB; `vcpus`: as `acpiTables`
 */
export function writeAcpi(memory: GuestMemory, options: AcpiOptions): number {
  if (!memory.contains(ACPI_ADDRESS, ACPI_ROOM)) {
    throw new ConfigError('memory', memory.size, 'there is no room for the ACPI tables', 'give at least 64M')
  }
  for (const { address, bytes } of acpiTables(options)) memory.write(address, bytes)
  return ACPI_ADDRESS
}

function align(size: number): number {
  return Math.ceil(size / 64) * 64
}
