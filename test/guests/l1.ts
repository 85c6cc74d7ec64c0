import type { CpuidEntry } from '../../lib/kvm/structs.js'
import { assemble } from './assemble.js'
import * as at from './l1-layout.js'
import { l1Source } from './l1-source.js'
import { loadL2, writeGate, writeGdt } from './l2.js'
import { svm, writeVmcb } from './svm-l1.js'
import { vmx } from './vmx-l1.js'

/** What the small hypervisor does; its extension is the one that the vCPU has. */
export interface L1Options {
  /** Rounds that L2 hashes, in all and between two reports (a power of two). */
  rounds: number
  period: number
  /** NPT or EPT. Otherwise L2's page tables are L1's business, and KVM shadows them. */
  nestedPaging: boolean
  /**
   * The interrupts that L2 takes, one a period: `inject`ed by L1 with an entry; pending while L2 has interrupts off, by V_IRQ or an
   * interrupt `window` exit; in the local `apic`, which L1 does not intercept; or from L0, to wake L2 from its `halt`.
   * `l1`: one pends for L1 at each of L2's exits (on svm because GIF is 0).
   */
  interrupt: 'none' | 'inject' | 'window' | 'apic' | 'halt' | 'l1'
  /** vmx: the value of the VMX-preemption timer. L1 goes on to the end only once it has fired. */
  timer?: number
}

export type Extension = 'svm' | 'vmx'

/** The virtualization extension in a CPUID table; undefined where there is none. */
export function extensionOf(cpuid: readonly CpuidEntry[]): Extension | undefined {
  const has = (leaf: number, bit: number) =>
    cpuid.some(entry => entry.function === leaf && (entry.ecx & (1 << bit)) !== 0)
  return has(0x80000001, 2) ? 'svm' : has(1, 5) ? 'vmx' : undefined
}

/** Puts L1, to be started in long mode at `L1_ORIGIN`, and its L2 into `memory` (`L1_MEMORY` bytes). */
export function loadL1(memory: Uint8Array, extension: Extension, options: L1Options, avx: boolean): void {
  const vendor = extension === 'svm' ? svm : vmx
  const { nestedPaging } = options
  const source = l1Source(vendor, options, avx)
  const code = assemble(`.code64\n${source}\n.balign 8\n.quad interrupted`, at.L1_ORIGIN)
  memory.set(code, at.L1_ORIGIN)
  const handler = new DataView(code.buffer, code.byteOffset).getBigUint64(code.length - 8, true)
  writeGdt(memory.subarray(at.L1_GDT))
  writeGate(memory.subarray(at.L1_IDT), at.L1_VECTOR, handler)
  if (extension === 'svm') writeVmcb(memory, options)
  if (nestedPaging) writeNestedTables(memory, extension)
  loadL2(memory, { ...options, hypercall: vendor.hypercall, avx }, nestedPaging ? at.NESTED_OFFSET : 0)
}

/** L2's memory and nothing else, in 4 KiB pages. The two tables are left out: L1 maps them when L2 first touches them. */
function writeNestedTables(memory: Uint8Array, extension: Extension): void {
  const tables = new DataView(memory.buffer, memory.byteOffset + at.NESTED_TABLES)
  for (const level of [0, 1, 2]) {
    tables.setBigUint64(level * 0x1000, BigInt(at.NESTED_TABLES + (level + 1) * 0x1000 + 7), true)
  }
  // EPT leaves name the memory type: write-back.
  const leaf = extension === 'svm' ? 0 : 6 << 3
  for (let page = at.L2_ORIGIN; page < at.L2_ORIGIN + at.L2_SIZE; page += 0x1000) {
    const present = page === at.L2_TABLE_A || page === at.L2_TABLE_B ? 0 : 7
    tables.setBigUint64(0x3000 + (page >> 12) * 8, BigInt((page + at.NESTED_OFFSET) | leaf | present), true)
  }
}
