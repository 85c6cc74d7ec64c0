import type { VcpuExit } from '../../lib/kvm/exit.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import type { CpuidEntry, KvmRegs, KvmSegment } from '../../lib/kvm/structs.js'
import type { Vcpu } from '../../lib/kvm/vcpu.js'
import { assemble } from '../guests/assemble.js'

/** Where guests are loaded and start. */
export const ORIGIN = 0x1000
const STACK = 0x8000
const PAGE_TABLES = 0x2000

export type Mode = 'real' | 'protected' | 'long' | 'user'

export interface GuestOptions {
  /** Bytes of memory at address 0. */
  size?: number
  irqchip?: boolean
  logDirty?: boolean
}

/** A VM with one vCPU and 1 MiB at address 0. */
export function openGuest({ size = 1 << 20, irqchip = false, logDirty = false }: GuestOptions = {}) {
  const kvm = Kvm.open()
  const vm = kvm.createVm()
  if (irqchip) vm.createIrqchip()
  const ram = vm.addMemory({ guestAddress: 0, size, logDirty })
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid(kvm.supportedCpuid())
  return {
    kvm,
    vm,
    ram,
    vcpu,
    [Symbol.dispose]() {
      vm.close()
      kvm.close()
    },
  }
}

export type Guest = ReturnType<typeof openGuest>

/** Loads `source` into a guest whose first vCPU is about to run it in `mode`: `real`, `protected`, `long` (CPL 0) or `user` (long mode, CPL 3, IOPL 3). */
export function loadGuest(mode: Mode, source: string, options: GuestOptions & { regs?: Partial<KvmRegs> } = {}): Guest {
  const guest = openGuest(options)
  const bits = mode === 'real' ? 16 : mode === 'protected' ? 32 : 64
  guest.ram.bytes.set(assemble(`.code${bits}\n${source}`, ORIGIN), ORIGIN)
  enterMode(guest.vcpu, guest.ram.bytes, mode, options.regs)
  return guest
}

/** Sets the vCPU up to run at ORIGIN in `mode`, flat, with the first 2 MiB mapped to themselves where there is paging. */
export function enterMode(vcpu: Vcpu, memory: Uint8Array, mode: Mode, regs: Partial<KvmRegs> = {}): void {
  const sregs = vcpu.getSregs()
  const flat = { base: 0n, limit: 0xffffffff, present: 1, s: 1, g: 1, l: 0, avl: 0, unusable: 0, padding: 0 }
  const dpl = mode === 'user' ? 3 : 0
  const code: KvmSegment = { ...flat, type: 11, dpl, db: 1, selector: 0x8 | dpl }
  const data: KvmSegment = { ...flat, type: 3, dpl, db: 1, selector: 0x10 | dpl }
  if (mode === 'real') {
    sregs.cs.base = 0n
    sregs.cs.selector = 0
  } else {
    sregs.cs = mode === 'protected' ? code : { ...code, db: 0, l: 1 }
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.cr0 = 0x33n
  }
  if (mode === 'long' || mode === 'user') {
    const tables = new DataView(memory.buffer, memory.byteOffset + PAGE_TABLES)
    tables.setBigUint64(0, BigInt(PAGE_TABLES + 0x1007), true)
    tables.setBigUint64(0x1000, BigInt(PAGE_TABLES + 0x2007), true)
    tables.setBigUint64(0x2000, 0x87n, true)
    // A second 2 MiB page at 0xd0000000 (PDPT entry 3, a directory of its own), for MMIO.
    tables.setBigUint64(0x1000 + 3 * 8, BigInt(PAGE_TABLES + 0x3007), true)
    tables.setBigUint64(0x3000 + 0x80 * 8, 0xd0000087n, true)
    sregs.cr0 = 0x80050033n
    sregs.cr3 = BigInt(PAGE_TABLES)
    sregs.cr4 = 0x20n
    sregs.efer = 0x500n
  }
  vcpu.setSregs(sregs)
  const rflags = mode === 'user' ? 0x3002n : 2n
  vcpu.setRegs({ ...noRegs, rip: BigInt(ORIGIN), rsp: BigInt(STACK), rflags, ...regs })
}

export const noRegs: KvmRegs = {
  rax: 0n,
  rbx: 0n,
  rcx: 0n,
  rdx: 0n,
  rsi: 0n,
  rdi: 0n,
  rsp: 0n,
  rbp: 0n,
  r8: 0n,
  r9: 0n,
  r10: 0n,
  r11: 0n,
  r12: 0n,
  r13: 0n,
  r14: 0n,
  r15: 0n,
  rip: 0n,
  rflags: 2n,
}

type ExitOf<E, R> = E extends { reason: infer All } ? (R extends All ? E : never) : never

/** Runs to the next exit and checks what it is. */
export function runTo<R extends VcpuExit['reason']>(vcpu: Vcpu, reason: R): ExitOf<VcpuExit, R> {
  const exit = vcpu.run()
  if (exit.reason !== reason) {
    const { rip } = vcpu.getRegs()
    throw new Error(`expected ${reason}, got ${exit.reason} at rip 0x${rip.toString(16)}: ${inspect(exit)}`)
  }
  return exit as ExitOf<VcpuExit, R>
}

function inspect(exit: object): string {
  return JSON.stringify(exit, (_, value) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value))
}

const place = (entry: CpuidEntry) => `${entry.function.toString(16)}.${entry.index} ${entry.flags}`

/** The places of leaves. */
export const places = (entries: readonly CpuidEntry[]) => entries.map(place)

/** The places of `entries` that a kernel keeps: a leaf of zeros is as good as none, and some leave it out. */
export function placesKept(entries: readonly CpuidEntry[], kept: readonly CpuidEntry[]): string[] {
  const there = new Set(places(kept))
  return places(
    entries.filter(entry => (entry.eax | entry.ebx | entry.ecx | entry.edx) !== 0 || there.has(place(entry))),
  )
}
