import { expect, test } from 'vitest'
import { acpiTables } from '../../../lib/arch/x86_64/acpi.js'
import { acpiFiles } from '../../../lib/arch/x86_64/acpi-loader.js'
import { device, integer, name } from '../../../lib/arch/x86_64/aml.js'

const text = (bytes: Uint8Array, at: number, length: number) =>
  Buffer.from(bytes.subarray(at, at + length))
    .toString('latin1')
    .replace(/\0.*$/s, '')
const sum = (bytes: Uint8Array) => bytes.reduce((all, byte) => (all + byte) & 0xff, 0)

/** What firmware does with the script (SeaBIOS: src/fw/romfile_loader.c), the files at the addresses given. */
function run(files: ReadonlyMap<string, Uint8Array>, addresses: Record<string, number>): Record<string, Uint8Array> {
  const script = files.get('etc/table-loader')!
  const placed: Record<string, Uint8Array> = {}
  expect(script.length % 128).toBe(0)
  for (let at = 0; at < script.length; at += 128) {
    const view = new DataView(script.buffer, script.byteOffset + at, 128)
    const entry = script.subarray(at, at + 128)
    const file = text(entry, 4, 56)
    switch (view.getUint32(0, true)) {
      case 1: {
        const [alignment, zone] = [view.getUint32(60, true), view.getUint8(64)]
        expect([alignment, zone]).toEqual(file === 'etc/acpi/rsdp' ? [16, 2] : [64, 1])
        placed[file] = Uint8Array.from(files.get(file)!)
        break
      }
      case 2: {
        const [source, offset, size] = [text(entry, 60, 56), view.getUint32(116, true), view.getUint8(120)]
        const target = Buffer.from(placed[file]!.buffer, offset, size)
        const value = target.readUIntLE(0, 4) + addresses[source]!
        target.writeUIntLE(value, 0, 4)
        break
      }
      case 3: {
        const [offset, start, length] = [60, 64, 68].map(field => view.getUint32(field, true)) as [
          number,
          number,
          number,
        ]
        const bytes = placed[file]!
        bytes[offset]! -= sum(bytes.subarray(start, start + length))
        break
      }
      default:
        throw new Error('unknown command')
    }
  }
  return placed
}

test('firmware that runs the script gets the tables that are there without firmware', () => {
  const options = { vcpus: 3, devices: [device('TEST', name('_UID', integer(1)))] }
  const expected = acpiTables(options)
  const [rsdp, ...tables] = expected
  // Where the tables are without firmware: then all pointers and checksums must be the same.
  const start = tables[0]!.address
  const placed = run(acpiFiles(options), { 'etc/acpi/rsdp': rsdp!.address, 'etc/acpi/tables': start })
  expect(placed['etc/acpi/rsdp']).toEqual(rsdp!.bytes)
  for (const { address, bytes } of tables) {
    expect(placed['etc/acpi/tables']!.subarray(address - start, address - start + bytes.length)).toEqual(bytes)
  }
})

test('elsewhere, each pointer leads to its table and each checksum is right', () => {
  const base = 0x0fff_f000
  const placed = run(acpiFiles({ vcpus: 2 }), { 'etc/acpi/rsdp': 0xf_5000, 'etc/acpi/tables': base })
  const rsdp = placed['etc/acpi/rsdp']!
  const file = placed['etc/acpi/tables']!
  expect([sum(rsdp.subarray(0, 20)), sum(rsdp)]).toEqual([0, 0])
  const view = new DataView(file.buffer)
  const table = (address: number) => {
    const at = address - base
    const bytes = file.subarray(at, at + view.getUint32(at + 4, true))
    if (text(bytes, 0, 4) !== 'FACS') expect(sum(bytes)).toBe(0)
    return { at, name: text(bytes, 0, 4), bytes }
  }
  const root = new DataView(rsdp.buffer)
  const rsdt = table(root.getUint32(16, true))
  const xsdt = table(Number(root.getBigUint64(24, true)))
  expect([rsdt.name, xsdt.name]).toEqual(['RSDT', 'XSDT'])
  for (const i of [0, 1]) {
    const found = table(view.getUint32(rsdt.at + 36 + 4 * i, true))
    expect(found.name).toBe(['FACP', 'APIC'][i])
    expect(Number(view.getBigUint64(xsdt.at + 36 + 8 * i, true)) - base).toBe(found.at)
  }
  const fadt = table(view.getUint32(rsdt.at + 36, true))
  expect(table(view.getUint32(fadt.at + 36, true)).name).toBe('FACS')
  expect(table(view.getUint32(fadt.at + 40, true)).name).toBe('DSDT')
  expect(table(Number(view.getBigUint64(fadt.at + 140, true))).name).toBe('DSDT')
})
