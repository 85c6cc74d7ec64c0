/** Snapshots on disk of vCPUs in each state that `inspect` tells apart. */
import { join } from 'node:path'
import * as k from '../../../lib/kvm/structs.js'
import { encodeCpuid, encodeMsrs } from '../../../lib/kvm/tables.js'
import type { Blobs, Json } from '../../../lib/snapshot/format.js'
import { readSnapshot, type Snapshot } from '../../../lib/snapshot/read.js'
import { writeSnapshot } from '../../../lib/snapshot/save.js'
import { MIB, PlainMemory, scratch } from '../snapshot/machines.js'

const directory = scratch()
let count = 0

/** A vCPU in 64-bit mode that is at `rip`. */
export function vcpu(
  { rip = 0x1234n, nested }: { rip?: bigint; nested?: Uint8Array | undefined } = {},
  more: Blobs = {},
): Blobs {
  const regs = k.kvm_regs.decode(new Uint8Array(k.kvm_regs.size))
  const sregs2 = k.kvm_sregs2.decode(new Uint8Array(k.kvm_sregs2.size))
  const leaf = { function: 0x80000008, index: 0, flags: 0, eax: 0x3028, ebx: 0, ecx: 0, edx: 0 }
  return {
    KVM_GET_REGS: k.kvm_regs.encode({ ...regs, rip, rsp: 0x8000n, rflags: 0x246n }),
    KVM_GET_SREGS2: k.kvm_sregs2.encode({ ...sregs2, cr0: 0x8005_0033n, cr3: 0xa000n, cr4: 0x2020n, efer: 0x1d01n }),
    KVM_GET_MP_STATE: k.kvm_mp_state.encode({ mp_state: 0 }),
    KVM_GET_VCPU_EVENTS: new Uint8Array(k.kvm_vcpu_events.size),
    KVM_GET_MSRS: encodeMsrs([
      { index: 0xc0000082, value: 0xffff_ffff_8100_0000n },
      { index: 0x203, value: 0x800n },
      { index: 0x1234, value: 7n },
    ]),
    KVM_SET_CPUID2: encodeCpuid([leaf]),
    KVM_VCPU_TSC_OFFSET: Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
    ...(nested && { KVM_GET_NESTED_STATE: nested }),
    ...more,
  }
}

export interface SavedParts {
  readonly vcpus?: readonly Blobs[]
  readonly devices?: Readonly<Record<string, Json>>
  readonly config?: Json
  readonly memory?: PlainMemory
  readonly data?: readonly (readonly { offset: number; length: number }[])[]
  readonly parent?: Snapshot
}

export async function saved(parts: SavedParts = {}): Promise<Snapshot> {
  const { vcpus = [vcpu()], devices = {}, config = { memory: 4 * MIB }, memory = ram(), data, parent } = parts
  const state = {
    config,
    devices,
    vm: {
      KVM_GET_CLOCK: k.kvm_clock_data.encode({
        clock: 1_500_000_000n,
        flags: 0,
        pad0: 0,
        realtime: 0n,
        host_tsc: 9n,
        pad: [0, 0, 0, 0],
      }),
    },
    vcpus: vcpus.map((state, id) => ({ id, state, about: null })),
  }
  const path = join(directory, String(count++))
  await writeSnapshot(path, { state, memory: memory.source(data), ...(parent && { parent }) })
  return readSnapshot(path)
}

/** 4 MiB from address 0, and a page of its own at 4 GiB. */
export function ram(): PlainMemory {
  return new PlainMemory([
    [0, 4 * MIB],
    [2 ** 32, MIB],
  ])
}

/** Memory in which L2's 0x400000 leads to L1's 0x200000, through a 2 MiB page of tables whose top is at 0x6000. */
export function ramWithTables(kind: 'EPT' | 'NPT'): PlainMemory {
  const memory = ram()
  const { bytes } = memory.regions[0]!
  bytes.writeBigUInt64LE(0x8007n, 0x6000)
  bytes.writeBigUInt64LE(0x9007n, 0x8000)
  // EPT: write-back, all rights. NPT: user, writable.
  bytes.writeBigUInt64LE(0x20_0000n | (kind === 'EPT' ? 0xb7n : 0x87n), 0x9000 + 2 * 8)
  bytes.write('what L2 has here', 0x200123, 'latin1')
  return memory
}
