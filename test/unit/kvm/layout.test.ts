import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { cap } from '../../../lib/kvm/capabilities.js'
import * as constants from '../../../lib/kvm/constants.js'
import {
  array,
  flexible,
  type Members,
  type Struct,
  struct,
  type Type,
  u8,
  u16,
  u32,
  u64,
} from '../../../lib/kvm/layout.js'
import * as structs from '../../../lib/kvm/structs.js'

/**
 * What our definitions have and the oldest supported kernel header (Debian 12, Linux 6.1) has not, with the reason we have
 * it. A header that does know one is held to it all the same (`#ifdef`) where C can ask; struct members it cannot.
 */
const newer = {
  members: new Map([
    ['kvm_svm_nested_state_hdr.gpat', "8 bytes of the header's padding until then"],
    ['kvm_run.memory_fault', 'Linux 6.8, KVM_CAP_MEMORY_FAULT_INFO'],
  ]),
  sizes: new Map([['kvm_svm_nested_state_hdr', 'grew by gpat']]),
  constants: new Map([
    ['KVM_EXIT_MEMORY_FAULT', 'Linux 6.8'],
    ['KVM_MEMORY_EXIT_FLAG_PRIVATE', 'Linux 6.8'],
    ['KVM_RUN_X86_GUEST_MODE', 'Linux 6.10: the exit came while L2 ran'],
    ['KVM_CAP_USER_MEMORY2', 'Linux 6.8'],
    ['KVM_CAP_MEMORY_FAULT_INFO', 'Linux 6.8'],
    ['KVM_CAP_X86_APIC_BUS_CYCLES_NS', 'Linux 6.11'],
    ['KVM_CAP_X86_GUEST_MODE', 'Linux 6.10'],
  ]),
}

type AnyStruct = Type<unknown> & { name: string; members: Members; offsetOf(path: string): number }

const all = Object.values(structs).filter(
  (value): value is typeof value & AnyStruct => typeof value === 'object' && 'offsetOf' in value,
)

/** Every path of a struct as C writes it, with what we say of its offset and size. */
function* paths(members: Members, prefix = '', base = 0): Generator<{ path: string; offset: number; size: number }> {
  for (const { name, type, offset, anonymous } of members) {
    const path = prefix + name
    if (anonymous) {
      yield* paths(type.members ?? [], prefix, base + offset)
      continue
    }
    yield { path, offset: base + offset, size: type.size }
    yield* paths(type.members ?? [], `${path}.`, base + offset)
    const { element, count } = type
    if (!element || count === undefined) continue
    const last = count - 1
    const at = base + offset + last * element.size
    yield { path: `${path}[${last}]`, offset: at, size: element.size }
    yield* paths(element.members ?? [], `${path}[${last}].`, at)
  }
}

const isNewer = (struct: string, path: string) =>
  [...newer.members.keys()].some(known => `${struct}.${path}` === known || `${struct}.${path}`.startsWith(`${known}.`))

/** Our definitions as lines of "what = number", and the C program that prints the header's. */
function comparison() {
  const ours = new Map<string, number>()
  const lines: string[] = []
  const print = (label: string, value: number, expression: string) => {
    ours.set(label, value)
    lines.push(`  printf("${label} %lld\\n", (long long)(${expression}));`)
  }
  for (const { name, size, members, offsetOf } of all) {
    if (!newer.sizes.has(name)) print(`sizeof(${name})`, size, `sizeof(struct ${name})`)
    for (const field of paths(members)) {
      if (isNewer(name, field.path)) continue
      print(`offsetof(${name},${field.path})`, offsetOf(field.path), `offsetof(struct ${name}, ${field.path})`)
      expect(offsetOf(field.path), `${name}.${field.path}`).toBe(field.offset)
      // A flexible array member has no sizeof.
      if (field.size > 0) {
        print(`sizeof(${name},${field.path})`, field.size, `sizeof(((struct ${name} *)0)->${field.path})`)
      }
    }
  }
  const numbers: [string, number][] = Object.entries(constants)
  numbers.push(...Object.entries(cap).map(([name, value]): [string, number] => [`KVM_CAP_${name}`, value]))
  for (const [name, value] of numbers) {
    if (newer.constants.has(name)) lines.push(`#ifdef ${name}`)
    print(name, value, name)
    if (newer.constants.has(name)) lines.push('#endif')
  }
  const program = `#include <stdio.h>\n#include <stddef.h>\n#include <linux/kvm.h>\nint main(void) {\n${lines.join('\n')}\n  return 0;\n}\n`
  return { ours, program }
}

describe('our layouts and the C compiler', () => {
  it('agree on every size, offset and constant', () => {
    const { ours, program } = comparison()
    const directory = mkdtempSync(join(tmpdir(), 'nested-kvm-layout-'))
    try {
      const source = join(directory, 'layout.c')
      writeFileSync(source, program)
      execFileSync('cc', ['-Wall', '-Werror', '-o', join(directory, 'layout'), source])
      const output = execFileSync(join(directory, 'layout'), { encoding: 'utf8' })
      const theirs = new Map(
        output
          .trimEnd()
          .split('\n')
          .map((line): [string, number] => [line.split(' ')[0]!, Number(line.split(' ')[1])]),
      )
      const differing = [...theirs].filter(([label, value]) => ours.get(label) !== value)
      expect(differing.map(([label, value]) => `${label}: header ${value}, ours ${ours.get(label)}`)).toEqual([])
      const unchecked = [...ours.keys()].filter(label => !theirs.has(label) && !newer.constants.has(label))
      expect(unchecked).toEqual([])
      expect(theirs.size).toBeGreaterThan(800)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  it('covers every struct of the ioctls', () => {
    expect(all.map(({ name }) => name)).toContain('kvm_run')
    expect(all.length).toBeGreaterThanOrEqual(50)
  })

  it('gives the members newer than the header the place that the kernel documents', () => {
    expect(structs.kvm_svm_nested_state_hdr.offsetOf('gpat')).toBe(8)
    expect(structs.kvm_run.offsetOf('memory_fault.flags')).toBe(32)
    expect(structs.kvm_run.offsetOf('memory_fault.gpa')).toBe(40)
    expect(structs.kvm_run.offsetOf('memory_fault.size')).toBe(48)
  })
})

describe('encode after decode', () => {
  // Those with a union keep only the selected member, and a flexible array needs its count to be true.
  const partial = [
    'kvm_run',
    'kvm_irqchip',
    'kvm_irq_routing_entry',
    'kvm_irq_routing',
    'kvm_hyperv_exit',
    'kvm_xen_exit',
  ]
  const flexibleOnes = ['kvm_cpuid2', 'kvm_msrs', 'kvm_msr_list', 'kvm_signal_mask']

  it.each(all.filter(({ name }) => !partial.includes(name) && !flexibleOnes.includes(name)))(
    'gives back the same bytes: $name',
    type => {
      const codec = type as unknown as Struct<Record<string, Type<unknown>>>
      const bytes = new Uint8Array(randomBytes(codec.size + 5))
      const again = codec.encode(codec.decode(bytes, 5), undefined, 5)
      expect(Buffer.compare(again.subarray(5), bytes.subarray(5))).toBe(0)
    },
  )

  it('follows the discriminator of a union, and zeroes what the member does not cover', () => {
    const bytes = new Uint8Array(randomBytes(structs.kvm_irqchip.size))
    bytes.set([1, 0, 0, 0])
    const slave = structs.kvm_irqchip.decode(bytes)
    expect(Object.keys(slave.chip)).toEqual(['pic'])
    const again = structs.kvm_irqchip.encode(slave, bytes.slice())
    expect(again.subarray(0, 24)).toEqual(bytes.subarray(0, 24))
    expect(again.subarray(24).every(byte => byte === 0)).toBe(true)
    bytes[0] = 2
    const ioapic = structs.kvm_irqchip.decode(bytes)
    expect('ioapic' in ioapic.chip && ioapic.chip.ioapic.redirtbl.length).toBe(24)
  })

  it('finds the member of kvm_run that an exit reason calls valid', () => {
    const bytes = new Uint8Array(structs.kvm_run.size)
    bytes[structs.kvm_run.offsetOf('exit_reason')] = structs.KVM_EXIT_IO
    bytes[structs.kvm_run.offsetOf('io.size')] = 2
    expect(structs.kvm_run.decode(bytes).exit).toEqual({
      io: { direction: 0, size: 2, port: 0, count: 0, data_offset: 0n },
    })
  })

  it('carries a flexible tail', () => {
    const entries = [1, 2].map(index => ({ index, reserved: 0, data: BigInt(index) << 60n }))
    const bytes = structs.kvm_msrs.encode({ nmsrs: 2, pad: 0, entries })
    expect(bytes.length).toBe(8 + 2 * 16)
    expect(structs.kvm_msrs.decode(bytes).entries).toEqual(entries)
    expect(() => structs.kvm_msrs.encode({ nmsrs: 3, pad: 0, entries })).toThrow(/kvm_msrs\.entries.*nmsrs says \(3\)/)
    expect(() => structs.kvm_msrs.decode(bytes.subarray(0, 39))).toThrow(/nmsrs is 2, but only 31 bytes follow/)
  })
})

describe('bad input', () => {
  const sample = struct('sample', { a: u8, b: struct('inner', { c: u64, d: array(u16, 2) }), e: flexible(u32, 'a') })
  const good = { a: 0, b: { c: 1n, d: [1, 2] }, e: [] }

  it('is refused with the name of the member', () => {
    expect(sample.encode(good).length).toBe(sample.size)
    expect(() => sample.encode({ ...good, a: 256 })).toThrow(new TypeError('sample.a: 256 is not an integer in 0..255'))
    expect(() => sample.encode({ ...good, a: -1 })).toThrow(/sample\.a/)
    expect(() => sample.encode({ ...good, a: 0.5 })).toThrow(/sample\.a/)
    expect(() => sample.encode({ ...good, b: { c: 1n << 64n, d: [0, 0] } })).toThrow(
      /sample\.b\.c: 18446744073709551616n/,
    )
    expect(() => sample.encode({ ...good, b: { c: 0n, d: [0] } })).toThrow(
      /sample\.b\.d: Array\(1\) is not an array of 2/,
    )
    expect(() => sample.encode({ ...good, b: { c: 0n, d: [0, 65536] } })).toThrow(/sample\.b\.d\[1\]/)
    expect(() => sample.encode({ a: 0, e: [] } as unknown as typeof good)).toThrow(
      /sample\.b: undefined is not an object/,
    )
    expect(() => sample.encode({ ...good, b: { c: 1, d: [0, 0] } } as unknown as typeof good)).toThrow(
      /sample\.b\.c: 1 is not/,
    )
    expect(() => sample.encode(null as unknown as typeof good)).toThrow(/sample: null is not an object/)
  })

  it('never reads or writes outside the bytes given', () => {
    const short = new Uint8Array(sample.size)
    expect(() => sample.decode(short, 1)).toThrow(RangeError)
    expect(() => sample.decode(short, -1)).toThrow(RangeError)
    expect(() => sample.decode(short, Number.NaN)).toThrow(RangeError)
    expect(() => sample.encode(good, short, 1)).toThrow(/sample: 24 bytes at 1 do not lie within 24 bytes/)
    expect(() => sample.encode({ ...good, a: 1, e: [7] }, short)).toThrow(RangeError)
  })

  it('a path that does not exist has no offset', () => {
    expect(sample.offsetOf('b.d[1]')).toBe(18)
    for (const path of ['', 'x', 'a.b', 'b.d[2]', 'b..c', 'b.c[0]'])
      expect(() => sample.offsetOf(path)).toThrow(TypeError)
  })
})
