import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { decodeVmcb12, encodeVmcb12, VMCB12_FIELDS } from '../../../lib/nested/vmcb12.js'
import { decodeVmcs12, encodeVmcs12, VMCS12_FIELDS } from '../../../lib/nested/vmcs12.js'

/** What the kernel's own checks freeze (`CHECK_OFFSET` of arch/x86/kvm/vmx/vmcs12.h), and the SDM's encodings, by sample. */
const vmcs12: readonly [name: string, offset: number, width: number, encoding?: number][] = [
  ['vmcsRevisionIdentifier', 0, 4],
  ['vmxAbortIndicator', 4, 4],
  ['launchState', 8, 4],
  ['addressOfIoBitmapA', 40, 8, 0x2000],
  ['addressOfMsrBitmaps', 56, 8, 0x2004],
  ['tscOffset', 88, 8, 0x2010],
  ['eptPointer', 120, 8, 0x201a],
  ['eoiExitBitmap3', 152, 8, 0x2022],
  ['guestPhysicalAddress', 168, 8, 0x2400],
  ['vmcsLinkPointer', 176, 8, 0x2800],
  ['guestIa32Efer', 200, 8, 0x2806],
  ['guestPdpte3', 240, 8, 0x2810],
  ['hostIa32Efer', 264, 8, 0x2c02],
  ['pmlAddress', 312, 8, 0x200e],
  ['enclsExitingBitmap', 320, 8, 0x202e],
  ['tscMultiplier', 328, 8, 0x2032],
  ['cr0GuestHostMask', 344, 8, 0x6000],
  ['cr3TargetValue0', 376, 8, 0x6008],
  ['exitQualification', 408, 8, 0x6400],
  ['guestCr0', 424, 8, 0x6800],
  ['guestRip', 544, 8, 0x681e],
  ['hostCr0', 584, 8, 0x6c00],
  ['hostRip', 672, 8, 0x6c16],
  ['hostIa32SCet', 680, 8, 0x6c18],
  ['guestIa32InterruptSspTableAddr', 720, 8, 0x682c],
  ['pinBasedVmExecutionControls', 744, 4, 0x4000],
  ['secondaryProcessorBasedVmExecutionControls', 804, 4, 0x401e],
  ['exitReason', 812, 4, 0x4402],
  ['guestEsLimit', 840, 4, 0x4800],
  ['guestTrAccessRights', 908, 4, 0x4822],
  ['guestActivityState', 916, 4, 0x4826],
  ['vmxPreemptionTimerValue', 928, 4, 0x482e],
  ['virtualProcessorIdentifier', 960, 2, 0],
  ['guestInterruptStatus', 980, 2, 0x810],
  ['hostTrSelector', 994, 2, 0xc0c],
  ['pmlIndex', 996, 2, 0x812],
]

/** AMD APM vol. 2, tables B-1 and B-2, by sample. */
const vmcb12: readonly [name: string, offset: number, width: number][] = [
  ['interceptCrWrites', 0x002, 2],
  ['interceptExceptions', 0x008, 4],
  ['interceptVector3', 0x00c, 4],
  ['interceptVector4', 0x010, 4],
  ['pauseFilterCount', 0x03e, 2],
  ['iopmBasePa', 0x040, 8],
  ['msrpmBasePa', 0x048, 8],
  ['tscOffset', 0x050, 8],
  ['guestAsid', 0x058, 4],
  ['tlbControl', 0x05c, 1],
  ['virtualInterruptControl', 0x060, 4],
  ['interruptShadow', 0x068, 8],
  ['exitCode', 0x070, 8],
  ['exitInfo1', 0x078, 8],
  ['exitInfo2', 0x080, 8],
  ['exitIntInfo', 0x088, 8],
  ['nestedControl', 0x090, 8],
  ['eventInj', 0x0a8, 8],
  ['nCr3', 0x0b0, 8],
  ['vmcbCleanBits', 0x0c0, 4],
  ['nRip', 0x0c8, 8],
  ['avicPhysicalTable', 0x0f8, 8],
  ['esSelector', 0x400, 2],
  ['csAttrib', 0x412, 2],
  ['ssLimit', 0x424, 4],
  ['gdtrBase', 0x468, 8],
  ['trBase', 0x498, 8],
  ['cpl', 0x4cb, 1],
  ['efer', 0x4d0, 8],
  ['cr4', 0x548, 8],
  ['cr3', 0x550, 8],
  ['cr0', 0x558, 8],
  ['rflags', 0x570, 8],
  ['rip', 0x578, 8],
  ['rsp', 0x5d8, 8],
  ['rax', 0x5f8, 8],
  ['kernelGsBase', 0x620, 8],
  ['cr2', 0x640, 8],
  ['gPat', 0x668, 8],
  ['lastExcpTo', 0x690, 8],
  ['specCtrl', 0x6e0, 8],
]

const page = fc.uint8Array({ minLength: 4096, maxLength: 4096 })

describe.each([
  { what: 'VMCS12', table: VMCS12_FIELDS, sample: vmcs12, decode: decodeVmcs12, encode: encodeVmcs12 as never },
  { what: 'VMCB12', table: VMCB12_FIELDS, sample: vmcb12, decode: decodeVmcb12, encode: encodeVmcb12 as never },
])('$what', ({ table, sample, decode, encode }) => {
  const reencode = encode as (block: ReturnType<typeof decode>) => Uint8Array

  it.each(sample)('%s lies at %i', (name, offset, width, encoding?: number) => {
    expect(table.find(field => field.name === name)).toMatchObject({
      offset,
      width,
      ...(encoding !== undefined && { encoding }),
    })
  })

  it('has names, labels and places that are each its own', () => {
    expect(new Set(table.map(({ name }) => name)).size).toBe(table.length)
    expect(new Set(table.map(({ label }) => label)).size).toBe(table.length)
    const places = [...table].sort((a, b) => a.offset - b.offset)
    places.reduce((end, { offset, width }) => {
      expect(offset).toBeGreaterThanOrEqual(end)
      return offset + width
    }, 0)
  })

  it('reads each field little-endian from its place alone', () => {
    for (const { name, offset, width } of table) {
      const bytes = new Uint8Array(4096)
      for (let i = 0; i < width; i++) bytes[offset + i] = i + 1
      const { fields, rest } = decode(bytes)
      const value = [...bytes.subarray(offset, offset + width)].reduceRight(
        (sum, byte) => (sum << 8n) | BigInt(byte),
        0n,
      )
      expect(Object.entries(fields).filter(([, v]) => v !== 0n)).toEqual([[name, value]])
      expect(rest.every(byte => byte === 0)).toBe(true)
    }
  })

  it('encodes what it decoded, byte for byte', () => {
    fc.assert(
      fc.property(page, bytes => {
        expect(Buffer.compare(reencode(decode(bytes)), bytes)).toBe(0)
      }),
      { numRuns: 300 },
    )
  })

  it('encodes values that fit and refuses those that do not', () => {
    const block = decode(new Uint8Array(4096))
    const { name, width } = table[4]!
    const most = 2n ** BigInt(width * 8) - 1n
    const set = (value: bigint) => reencode({ ...block, fields: { ...block.fields, [name]: value } } as never)
    expect((decode(set(most)).fields as Record<string, bigint>)[name]).toBe(most)
    expect(() => set(most + 1n)).toThrow(new RegExp(`${name}: ${most + 1n} does not fit into ${width} bytes`))
    expect(() => set(-1n)).toThrow(RangeError)
  })

  it('wants a whole page', () => {
    expect(() => decode(new Uint8Array(4095))).toThrow(/4095 bytes, not 4096/)
    expect(() => reencode({ ...decode(new Uint8Array(4096)), rest: new Uint8Array(1) } as never)).toThrow(RangeError)
  })
})

it("names a VMCS12 field as the SDM's words spell it", () => {
  for (const { name, label } of VMCS12_FIELDS) {
    const words = label
      .replace(/ \(.*\)$/, '')
      .replace('I/O', 'IO')
      .split(/[^A-Za-z0-9]+/)
    const spelt = words.map((word, i) =>
      i ? word[0]!.toUpperCase() + word.slice(1).toLowerCase() : word.toLowerCase(),
    )
    expect(name).toBe(spelt.join(''))
  }
})

it('derives the width of a VMCS12 field from its encoding', () => {
  // Bits 14:13 of an encoding: 16 bits, 64, 32, natural width (Intel SDM vol. 3, table 25-21).
  for (const { encoding, width } of VMCS12_FIELDS) {
    if (encoding !== undefined) expect(width).toBe([2, 8, 4, 8][(encoding >> 13) & 3])
  }
  expect(VMCS12_FIELDS).toHaveLength(154)
})

it('leaves offset 336 of VMCS12 undecoded', () => {
  const bytes = new Uint8Array(4096).fill(0xff, 336, 344)
  const { fields, rest } = decodeVmcs12(bytes)
  expect(Object.values(fields).every(value => value === 0n)).toBe(true)
  expect(rest).toEqual(bytes)
})
