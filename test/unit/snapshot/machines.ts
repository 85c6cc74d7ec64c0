import { randomFillSync } from 'node:crypto'
import { closeSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect } from 'vitest'
import type { Extent, MachineState, MemorySource } from '../../../lib/snapshot/format.js'
import type { Snapshot } from '../../../lib/snapshot/read.js'

export const PAGE = 4096
export const MIB = 2 ** 20

/** A directory that is gone at the end of the test file's process at the latest. */
export function scratch(): string {
  const directory = mkdtempSync(join(tmpdir(), 'snapshot-'))
  process.on('exit', () => rmSync(directory, { recursive: true, force: true }))
  return directory
}

export function bytes(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + seed) & 0xff)
}

export function someState(seed = 1): MachineState {
  return {
    config: { memory: 2 ** 21, cpu: 'host,+vmx', cmdline: 'console=ttyS0 "ü"', kernel: null },
    vm: { KVM_GET_CLOCK: bytes(48, seed), 'KVM_GET_IRQCHIP/IOAPIC': bytes(520, seed + 1), KVM_EMPTY: new Uint8Array() },
    vcpus: [
      {
        id: 0,
        about: { cpuid: ['0x0'] },
        state: { KVM_GET_REGS: bytes(144, seed + 2), KVM_VCPU_TSC_OFFSET: bytes(8) },
      },
      { id: 3, about: null, state: { KVM_GET_REGS: bytes(144, seed + 3) } },
    ],
    devices: { uart: { fifo: [1, 2, 3] }, rtc: null },
  }
}

/** Memory over plain buffers, each region in views of `view` bytes. */
export class PlainMemory {
  readonly regions: { guestAddress: number; size: number; bytes: Buffer; chunks: Uint8Array[] }[]

  constructor(shapes: readonly (readonly [number, number])[], view = Number.POSITIVE_INFINITY) {
    this.regions = shapes.map(([guestAddress, size]) => {
      const bytes = Buffer.alloc(size)
      const chunks: Uint8Array[] = []
      for (let at = 0; at < size; at += view) chunks.push(bytes.subarray(at, Math.min(size, at + view)))
      return { guestAddress, size, bytes, chunks }
    })
  }

  /** Random bytes in the page at `offset`. */
  fill(region: number, offset: number, length = PAGE): void {
    randomFillSync(this.regions[region]!.bytes, offset, length)
  }

  source(data?: readonly (readonly Extent[])[]): MemorySource {
    return {
      regions: this.regions.map(({ guestAddress, size, chunks }, i) => {
        return { guestAddress, size, chunks, data: data ? data[i]! : [{ offset: 0, length: size }] }
      }),
    }
  }

  copy(): Buffer[] {
    return this.regions.map(({ bytes }) => Buffer.from(bytes))
  }
}

/** The memory that a restore would see. */
export function memoryOf(snapshot: Snapshot): Buffer[] {
  return snapshot.memory.regions.map(({ size, extents }) => {
    const memory = Buffer.alloc(size, 0xee)
    for (const { offset, length, file, fileOffset } of extents) {
      const fd = openSync(file, 'r')
      if (readSync(fd, memory, offset, length, fileOffset) !== length) throw new Error(`${file} is too short`)
      closeSync(fd)
    }
    return memory
  })
}

/** Told by the first byte that differs: a comparison by vitest of so many bytes takes minutes. */
export function expectMemory(snapshot: Snapshot, expected: readonly Buffer[]): void {
  const actual = memoryOf(snapshot)
  expect(actual.map(({ length }) => length)).toEqual(expected.map(({ length }) => length))
  const differs = actual.map((memory, i) =>
    memory.equals(expected[i]!) ? -1 : memory.findIndex((b, at) => b !== expected[i]![at]),
  )
  expect(differs).toEqual(expected.map(() => -1))
}
