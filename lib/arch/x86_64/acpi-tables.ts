import {
  type Aml,
  device,
  eisaId,
  integer,
  ioPort,
  isaIrq,
  name,
  packageOf,
  resourceTemplate,
  scope,
  string,
} from './aml.js'
import {
  ACPI_PM_PORT,
  ACPI_PM_TIMER,
  ACPI_PM1_CONTROL,
  ACPI_PM1_EVENT,
  ACPI_S5_SLEEP_TYPE,
  COM1_IRQ,
  COM1_PORT,
  COM1_PORT_COUNT,
  I8042_COMMAND_PORT,
  IOAPIC_ADDRESS,
  LOCAL_APIC_ADDRESS,
  PVPANIC_PORT,
  SCI_IRQ,
  TIMER_GSI,
} from './layout.js'

/** Bytes before the content of a table that has the common header. */
export const HEADER_SIZE = 36
export const RSDP_SIZE = 36
export const FACS_SIZE = 64
const FADT_SIZE = 276
/** Where the FADT points to other tables, and how many bytes each pointer has: FIRMWARE_CTRL, DSDT, X_DSDT. */
export const FADT_POINTERS = [
  [36, 4],
  [40, 4],
  [140, 8],
] as const

const OEM_ID = 'NESTED'
const OEM_TABLE_ID = 'NESTKVM '
const CREATOR_ID = 'NKVM'

/** The I8042's "pulse reset" command, as the FADT's reset value. */
const RESET_VALUE = 0xfe

// FADT fixed feature flags (ACPI 6.5, table 5.10)
const WBINVD = 1 << 0
const PROC_C1 = 1 << 2
// PWR_BUTTON (1 << 4) stays off: the power button is fixed hardware, in PM1. There is no such sleep button.
const SLP_BUTTON = 1 << 5
const FIX_RTC = 1 << 6
const TMR_VAL_EXT = 1 << 8
const RESET_REG_SUP = 1 << 10

// IA-PC boot architecture flags (table 5.11). LEGACY_DEVICES and 8042 stay off: nothing is to be probed for.
const VGA_NOT_PRESENT = 1 << 2
const PCIE_ASPM_NOT = 1 << 4

// MADT (section 5.2.12)
const PCAT_COMPAT = 1 << 0
const LOCAL_APIC = 0
const IO_APIC = 1
const INTERRUPT_SOURCE_OVERRIDE = 2
const LOCAL_APIC_NMI = 4
const LOCAL_X2APIC = 9
const LOCAL_X2APIC_NMI = 10
const ENABLED = 1 << 0
const LEVEL_ACTIVE_HIGH = 0xd
const BUS_DEFAULT = 0
/** APIC ids from here on need the x2APIC structures (section 5.2.12.12); 255 is the broadcast. */
const FIRST_X2APIC_ID = 255

/** Root System Description Pointer, revision 2 (section 5.2.5.3). */
export function rsdp(rsdt: number, xsdt: number): Uint8Array {
  const bytes = new Uint8Array(RSDP_SIZE)
  const view = new DataView(bytes.buffer)
  ascii(bytes, 0, 'RSD PTR ')
  ascii(bytes, 9, OEM_ID)
  view.setUint8(15, 2)
  view.setUint32(16, rsdt, true)
  view.setUint32(20, RSDP_SIZE, true)
  view.setBigUint64(24, BigInt(xsdt), true)
  view.setUint8(8, checksum(bytes.subarray(0, 20)))
  view.setUint8(32, checksum(bytes))
  return bytes
}

/** Root System Description Table: the tables' 32-bit addresses (section 5.2.7). */
export function rsdt(tables: readonly number[]): Uint8Array {
  return table('RSDT', 1, new Uint8Array(Uint32Array.from(tables).buffer))
}

/** Extended System Description Table: the tables' 64-bit addresses (section 5.2.8). */
export function xsdt(tables: readonly number[]): Uint8Array {
  return table('XSDT', 1, new Uint8Array(BigUint64Array.from(tables, BigInt).buffer))
}

/** Firmware ACPI Control Structure (section 5.2.10): there is no waking vector to be set. */
export function facs(): Uint8Array {
  const bytes = new Uint8Array(FACS_SIZE)
  ascii(bytes, 0, 'FACS')
  new DataView(bytes.buffer).setUint32(4, FACS_SIZE, true)
  bytes[32] = 2
  return bytes
}

/**
 * Fixed ACPI Description Table, revision 6 (section 5.2.9): ACPI mode is always on (SMI_CMD 0), PM1 and the PM timer are ports, a reset
 * goes to the keyboard controller.
 */
export function fadt(facsAddress: number, dsdtAddress: number): Uint8Array {
  const bytes = new Uint8Array(FADT_SIZE)
  const view = new DataView(bytes.buffer)
  view.setUint32(36, facsAddress, true)
  view.setUint32(40, dsdtAddress, true)
  view.setUint16(46, SCI_IRQ, true)
  view.setUint32(56, ACPI_PM_PORT + ACPI_PM1_EVENT, true)
  view.setUint32(64, ACPI_PM_PORT + ACPI_PM1_CONTROL, true)
  view.setUint32(76, ACPI_PM_PORT + ACPI_PM_TIMER, true)
  view.setUint8(88, 4) // PM1_EVT_LEN
  view.setUint8(89, 2) // PM1_CNT_LEN
  view.setUint8(91, 4) // PM_TMR_LEN
  view.setUint16(96, 0xffff, true) // P_LVL2_LAT: no C2
  view.setUint16(98, 0xffff, true) // P_LVL3_LAT: no C3
  view.setUint8(108, 0x32) // CENTURY
  view.setUint16(109, VGA_NOT_PRESENT | PCIE_ASPM_NOT, true)
  view.setUint32(112, WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | TMR_VAL_EXT | RESET_REG_SUP, true)
  portAddress(view, 116, I8042_COMMAND_PORT, 8)
  view.setUint8(128, RESET_VALUE)
  view.setUint8(131, 5) // FADT minor version: 6.5
  view.setBigUint64(140, BigInt(dsdtAddress), true)
  portAddress(view, 148, ACPI_PM_PORT + ACPI_PM1_EVENT, 32)
  portAddress(view, 172, ACPI_PM_PORT + ACPI_PM1_CONTROL, 16)
  portAddress(view, 208, ACPI_PM_PORT + ACPI_PM_TIMER, 32)
  return table('FACP', 6, bytes.subarray(HEADER_SIZE))
}

/**
 * Multiple APIC Description Table (section 5.2.12): a processor for each APIC id from 0 on, one I/O APIC, the PC's timer at pin 2,
 * the SCI level-triggered, NMI at LINT1.
 */
export function madt(processors: number): Uint8Array {
  const parts: number[] = [...le32(LOCAL_APIC_ADDRESS), ...le32(PCAT_COMPAT)]
  const x2apic = processors > FIRST_X2APIC_ID
  for (let id = 0; id < processors; id++) {
    if (id < FIRST_X2APIC_ID) parts.push(LOCAL_APIC, 8, id, id, ...le32(ENABLED))
    else parts.push(LOCAL_X2APIC, 16, 0, 0, ...le32(id), ...le32(ENABLED), ...le32(id))
  }
  parts.push(IO_APIC, 12, 0, 0, ...le32(IOAPIC_ADDRESS), ...le32(0))
  parts.push(INTERRUPT_SOURCE_OVERRIDE, 10, 0, 0, ...le32(TIMER_GSI), BUS_DEFAULT, 0)
  parts.push(INTERRUPT_SOURCE_OVERRIDE, 10, 0, SCI_IRQ, ...le32(SCI_IRQ), LEVEL_ACTIVE_HIGH, 0)
  parts.push(LOCAL_APIC_NMI, 6, 0xff, BUS_DEFAULT, 0, 1)
  if (x2apic) parts.push(LOCAL_X2APIC_NMI, 12, BUS_DEFAULT, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0)
  return table('APIC', 5, Uint8Array.from(parts))
}

/**
 * Differentiated System Description Table: power-off, COM1, pvpanic, and `devices`, terms that are put into `\_SB`.
 */
export function dsdt(devices: readonly Aml[]): Uint8Array {
  const s5 = name('\\_S5', packageOf(integer(ACPI_S5_SLEEP_TYPE), integer(ACPI_S5_SLEEP_TYPE), integer(0), integer(0)))
  const com1 = device(
    'COM1',
    name('_HID', eisaId('PNP0501')),
    name('_UID', integer(1)),
    name('_CRS', resourceTemplate(ioPort(COM1_PORT, COM1_PORT_COUNT), isaIrq(COM1_IRQ))),
  )
  const panic = device(
    'PEVT',
    name('_HID', string('QEMU0001')),
    name('_STA', integer(0xf)),
    name('_CRS', resourceTemplate(ioPort(PVPANIC_PORT, 1))),
  )
  return table('DSDT', 2, Uint8Array.from([...s5, ...scope('\\_SB', com1, panic, ...devices)]))
}

/** A table: the common header (section 5.2.6) and its content. */
function table(signature: string, revision: number, content: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER_SIZE + content.length)
  const view = new DataView(bytes.buffer)
  ascii(bytes, 0, signature)
  view.setUint32(4, bytes.length, true)
  view.setUint8(8, revision)
  ascii(bytes, 10, OEM_ID)
  ascii(bytes, 16, OEM_TABLE_ID)
  view.setUint32(24, 1, true)
  ascii(bytes, 28, CREATOR_ID)
  view.setUint32(32, 1, true)
  bytes.set(content, HEADER_SIZE)
  view.setUint8(9, checksum(bytes))
  return bytes
}

/** Generic Address Structure of a port (section 5.2.3.2). */
function portAddress(view: DataView, at: number, port: number, bits: 8 | 16 | 32): void {
  const SYSTEM_IO = 1
  view.setUint8(at, SYSTEM_IO)
  view.setUint8(at + 1, bits)
  view.setUint8(at + 3, Math.log2(bits) - 2) // access size: 1 byte, 2 word, 3 dword
  view.setBigUint64(at + 4, BigInt(port), true)
}

/** What makes the sum of all bytes 0. */
function checksum(bytes: Uint8Array): number {
  return -bytes.reduce((sum, byte) => sum + byte, 0) & 0xff
}

function ascii(bytes: Uint8Array, at: number, text: string): void {
  bytes.set(Buffer.from(text, 'latin1'), at)
}

function le32(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24]
}
