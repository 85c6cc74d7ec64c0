import { describe, expect, test } from 'vitest'
import { LOW_MEMORY_END, memoryRanges } from '../../../lib/arch/x86_64/layout.js'
import { registers } from '../../../lib/arch/x86_64/registers.js'
import { descriptor, longModeSregs, protectedModeSregs } from '../../../lib/arch/x86_64/segments.js'
import { kvm_regs, kvm_sregs } from '../../../lib/kvm/structs.js'
import { plainMemory } from '../memory/plain.js'

const reset = {
  ...kvm_sregs.decode(new Uint8Array(kvm_sregs.size)),
  apic_base: 0xfee0_0900n,
  cr8: 3n,
  cr2: 5n,
}

function entries(memory: ReturnType<typeof plainMemory>): bigint[] {
  return [...new BigUint64Array(memory.read(0x500, 48).buffer)]
}

describe('longModeSregs', () => {
  const memory = plainMemory([[0, 0x10000]])
  const sregs = longModeSregs(memory, reset, 0x9000n)

  test('is the state that booted a stock Linux', () => {
    expect(sregs.cr0).toBe(0x80050033n)
    expect(sregs.cr4).toBe(0x20n)
    expect(sregs.efer).toBe(0x500n)
    expect(sregs.cr3).toBe(0x9000n)
    expect(sregs.cr2).toBe(0n)
    expect(sregs.cs).toMatchObject({
      selector: 0x10,
      base: 0n,
      limit: 0xffffffff,
      l: 1,
      db: 0,
      type: 0xb,
      s: 1,
      present: 1,
    })
    expect(sregs.ss).toMatchObject({ selector: 0x18, type: 0x3, l: 0, db: 1 })
    expect(sregs.tr).toMatchObject({ selector: 0x20, type: 0xb, s: 0, present: 1, limit: 0x67 })
    expect(sregs.ldt.unusable).toBe(1)
    expect(sregs.gdt).toEqual({ base: 0x500n, limit: 47, padding: [0, 0, 0] })
    expect(sregs.idt.limit).toBe(0)
  })

  test('keeps what belongs to the local APIC', () => {
    expect(sregs.apic_base).toBe(0xfee0_0900n)
    expect(sregs.cr8).toBe(3n)
  })

  test('the GDT in memory has the same segments', () => {
    expect(entries(memory)).toEqual([0n, 0n, 0x00af9b000000ffffn, 0x00cf93000000ffffn, 0x00008b0000000067n, 0n])
  })

  test('is a complete kvm_sregs', () => {
    expect(kvm_sregs.decode(kvm_sregs.encode(sregs))).toEqual(sregs)
  })
})

test('protectedModeSregs is flat 32-bit protected mode without paging', () => {
  const memory = plainMemory([[0, 0x10000]])
  const sregs = protectedModeSregs(memory, { ...reset, efer: 0x500n, cr3: 0x1000n })
  expect(sregs).toMatchObject({ cr0: 0x11n, cr3: 0n, cr4: 0n, efer: 0n })
  expect(sregs.cs).toMatchObject({ l: 0, db: 1, selector: 0x10 })
  expect(entries(memory)[2]).toBe(0x00cf9b000000ffffn)
})

test('a descriptor spreads base and limit as the SDM says', () => {
  const segment = {
    base: 0x12345678n,
    limit: 0xabcde,
    selector: 0,
    type: 2,
    present: 1,
    dpl: 3,
    db: 0,
    s: 1,
    l: 0,
    g: 0,
    avl: 1,
  }
  expect(descriptor({ ...segment, unusable: 0, padding: 0 })).toBe(0x121af2345678bcden)
})

test('registers are 0 but for those given and the bit of RFLAGS that is always 1', () => {
  const regs = registers({ rip: 0x1000200n, rsi: 0x7000n })
  expect(kvm_regs.decode(kvm_regs.encode(regs))).toEqual(regs)
  const { rip, rsi, rflags, ...rest } = regs
  expect([rip, rsi, rflags]).toEqual([0x1000200n, 0x7000n, 2n])
  expect(Object.values(rest).every(value => value === 0n)).toBe(true)
})

describe('memoryRanges', () => {
  test('up to 3 GiB in one piece', () => {
    expect(memoryRanges(LOW_MEMORY_END)).toEqual([{ guestAddress: 0, size: 3 * 2 ** 30 }])
  })

  test('the rest goes on at 4 GiB', () => {
    expect(memoryRanges(LOW_MEMORY_END + 0x1000)).toEqual([
      { guestAddress: 0, size: 3 * 2 ** 30 },
      { guestAddress: 2 ** 32, size: 0x1000 },
    ])
  })
})
