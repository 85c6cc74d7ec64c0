import { describe, expect, test } from 'vitest'
import { acpiTables, writeAcpi } from '../../../lib/arch/x86_64/acpi.js'
import {
  buffer,
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
} from '../../../lib/arch/x86_64/aml.js'
import { ConfigError } from '../../../lib/errors.js'
import { plainMemory } from '../memory/plain.js'

const bytes = (hex: string) => [...Buffer.from(hex.replace(/\s/g, ''), 'hex')]
const text = (table: Uint8Array, from: number, to: number) => Buffer.from(table.subarray(from, to)).toString('latin1')
const sum = (table: Uint8Array) => table.reduce((total, byte) => total + byte, 0) & 0xff
const view = (table: Uint8Array) => new DataView(table.buffer, table.byteOffset, table.byteLength)

function named(signature: string, vcpus = 2): Uint8Array {
  return acpiTables({ vcpus }).find(({ bytes }) => text(bytes, 0, signature.length) === signature)!.bytes
}

// As ACPI 6.5, section 20.2 lays them out; iasl disassembles them to the same terms.
describe('AML', () => {
  test.each([
    [0, '00'],
    [1, '01'],
    [2, '0a02'],
    [0x100, '0b0001'],
    [0x10000, '0c00000100'],
    [0x1_0000_0000, '0e0000000001000000'],
    [0xffff_ffff_ffff_ffffn, '0effffffffffffffff'],
  ])('integer %d', (value, expected) => {
    expect(integer(value)).toEqual(bytes(expected))
  })

  test('terms', () => {
    expect(string('A')).toEqual(bytes('0d4100'))
    expect(name('\\_S5', integer(1))).toEqual(bytes('085c5f53355f01'))
    expect(name('\\_SB.PCI0', integer(0))).toEqual(bytes('085c2e5f53425f5043493000'))
    expect(name('_SB.PCI0.S0', integer(0))).toEqual(bytes('082f035f53425f5043493053305f5f00'))
    expect(packageOf(integer(5), integer(0))).toEqual(bytes('1205020a0500'))
    expect(scope('\\_SB', name('A', integer(0)))).toEqual(bytes('100c5c5f53425f08415f5f5f00'))
    expect(device('COM1')).toEqual(bytes('5b8205434f4d31'))
    expect(buffer([1, 2])).toEqual(bytes('11050a020102'))
    expect(eisaId('PNP0501')).toEqual(bytes('0c41d00501'))
    expect(ioPort(0x3f8, 8)).toEqual(bytes('4701f803f8030108'))
    expect(isaIrq(4)).toEqual(bytes('221000'))
    expect(resourceTemplate(isaIrq(8))).toEqual(bytes('11080a052200017900'))
  })

  test.each([
    [0x3e, '3f'],
    [0x3f, '4104'],
    [0xffd, '4fff'],
    [0xffe, '810001'],
    [0xf_fffc, '8fffff'],
    [0xf_fffd, 'c1000001'],
  ])('the length in front of %i bytes counts itself', (length, expected) => {
    const prefix = bytes(expected)
    // A scope's body: a name of four bytes, and here padding that stands for terms.
    expect(scope('AAAA', Array(length - 4).fill(0)).slice(0, 1 + prefix.length)).toEqual([0x10, ...prefix])
  })

  test.each([
    () => integer(-1),
    () => integer(2n ** 64n),
    () => string('ä'),
    () => string('a\0'),
    () => name('TOOLONG', integer(0)),
    () => name('1ABC', integer(0)),
    () => name('', integer(0)),
    () => eisaId('pnp0501'),
    () => packageOf(...Array(256).fill(integer(0))),
  ])('what cannot be encoded is refused (%#)', action => {
    expect(action).toThrow(RangeError)
  })
})

describe('the ACPI tables', () => {
  const tables = acpiTables({ vcpus: 2 })
  const at = (address: number) => tables.find(table => table.address === address)!.bytes

  test('every checksum is right, every length is the table’s, none overlaps', () => {
    let end = 0
    for (const { address, bytes } of tables) {
      expect(address % 64).toBe(0)
      expect(address).toBeGreaterThanOrEqual(end)
      end = address + bytes.length
      if (text(bytes, 0, 8) === 'RSD PTR ') {
        expect(sum(bytes.subarray(0, 20))).toBe(0)
        expect(sum(bytes)).toBe(0)
        continue
      }
      expect(view(bytes).getUint32(4, true)).toBe(bytes.length)
      if (text(bytes, 0, 4) !== 'FACS') expect(sum(bytes)).toBe(0)
    }
    expect(end).toBeLessThanOrEqual(0x100000)
  })

  test('the RSDP is at 0xe0000, and leads through RSDT and XSDT to FADT and MADT', () => {
    const rsdp = at(0xe0000)
    expect(text(rsdp, 0, 8)).toBe('RSD PTR ')
    expect(rsdp[15]).toBe(2)
    expect(view(rsdp).getUint32(20, true)).toBe(36)
    const rsdt = at(view(rsdp).getUint32(16, true))
    const xsdt = at(Number(view(rsdp).getBigUint64(24, true)))
    const listed = [0, 1].map(i => view(rsdt).getUint32(36 + 4 * i, true))
    expect([0, 1].map(i => Number(view(xsdt).getBigUint64(36 + 8 * i, true)))).toEqual(listed)
    expect(listed.map(address => text(at(address), 0, 4))).toEqual(['FACP', 'APIC'])
    expect([rsdt.length, xsdt.length]).toEqual([44, 52])
  })

  test('the FADT is revision 6, with the fixed hardware at its ports', () => {
    const fadt = named('FACP')
    const fields = view(fadt)
    expect([fadt.length, fadt[8]]).toEqual([276, 6])
    expect(text(at(fields.getUint32(36, true)), 0, 4)).toBe('FACS')
    expect(text(at(fields.getUint32(40, true)), 0, 4)).toBe('DSDT')
    expect(fields.getBigUint64(140, true)).toBe(BigInt(fields.getUint32(40, true)))
    expect(fields.getUint16(46, true)).toBe(9)
    expect(fields.getUint32(48, true)).toBe(0)
    expect([56, 64, 76].map(offset => fields.getUint32(offset, true))).toEqual([0x600, 0x604, 0x608])
    expect([88, 89, 91].map(offset => fadt[offset])).toEqual([4, 2, 4])
    // No VGA, no ASPM; a CMOS RTC, without which Xen gives up.
    expect(fields.getUint16(109, true)).toBe(0x14)
    expect(fields.getUint32(112, true)).toBe(0x565)
    expect([...fadt.subarray(116, 129)]).toEqual(bytes('01080001 6400000000000000 fe'))
    expect([...fadt.subarray(148, 160)]).toEqual(bytes('01200003 0006000000000000'))
    expect([...fadt.subarray(172, 184)]).toEqual(bytes('01100002 0406000000000000'))
    expect([...fadt.subarray(208, 220)]).toEqual(bytes('01200003 0806000000000000'))
  })

  test('the MADT, byte for byte', () => {
    expect([...named('APIC').subarray(36)]).toEqual(
      bytes(`0000e0fe 01000000
             00080000 01000000  00080101 01000000
             010c0000 0000c0fe 00000000
             020a0000 02000000 0000
             020a0009 09000000 0d00
             0406ff00 0001`),
    )
  })

  test('APIC ids from 255 on are x2APIC entries, with their own NMI', () => {
    const madt = named('APIC', 257)
    expect(madt.length).toBe(36 + 8 + 255 * 8 + 2 * 16 + 12 + 10 + 10 + 6 + 12)
    const x2apic = 36 + 8 + 255 * 8
    expect([...madt.subarray(x2apic - 8, x2apic + 32)]).toEqual(
      bytes(`0008fefe 01000000
             09100000 ff000000 01000000 ff000000
             09100000 00010000 01000000 00010000`),
    )
    expect([...madt.subarray(-12)]).toEqual(bytes('0a0c0000 ffffffff 01000000'))
  })

  test('the DSDT, byte for byte', () => {
    expect([...named('DSDT').subarray(36)]).toEqual(
      bytes(`08 5c5f53355f 12 08 04 0a05 0a05 00 00
             10 4406 5c5f53425f
             5b82 2b 434f4d31
             08 5f484944 0c41d00501
             08 5f554944 01
             08 5f435253 11 10 0a0d 4701f803f8030108 221000 7900
             5b82 2e 50455654
             08 5f484944 0d 51454d553030303100
             08 5f535441 0a0f
             08 5f435253 11 0d 0a0a 4701050505050101 7900`),
    )
  })

  test('further devices go into \\_SB', () => {
    const extra = device('VIO0', name('_HID', string('LNRO0005')))
    const dsdt = acpiTables({ vcpus: 1, devices: [extra] }).find(({ bytes }) => text(bytes, 0, 4) === 'DSDT')!.bytes
    expect(sum(dsdt)).toBe(0)
    expect([...dsdt.subarray(-extra.length)]).toEqual(extra)
    const scope = 36 + 15
    expect((dsdt[scope + 1]! & 0xf) + dsdt[scope + 2]! * 16).toBe(dsdt.length - scope - 1)
  })

  test('so many processors that they do not fit are refused', () => {
    expect(acpiTables({ vcpus: 4096 })).toHaveLength(7)
    expect(() => acpiTables({ vcpus: 10_000 })).toThrow(ConfigError)
  })

  test('memory that ends below 1 MiB is refused', () => {
    expect(() => writeAcpi(plainMemory([[0, 0xff000]]), { vcpus: 1 })).toThrow(ConfigError)
  })

  test('writeAcpi puts them where they say they are', () => {
    const memory = plainMemory([[0, 0x100000]])
    expect(writeAcpi(memory, { vcpus: 2 })).toBe(0xe0000)
    for (const { address, bytes } of tables) expect(memory.read(address, bytes.length)).toEqual(bytes)
  })
})
