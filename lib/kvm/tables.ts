/** Encoding of ioctl arguments that several file descriptors share: CPUID entries, MSRs, KVM_ENABLE_CAP. */
import { constants } from 'node:os'
import { KvmError } from '../errors.js'
import {
  type CpuidEntry,
  kvm_cpuid_entry2,
  kvm_cpuid2,
  kvm_enable_cap,
  kvm_msr_entry,
  kvm_msrs,
  type Msr,
} from './structs.js'

/** A `struct kvm_cpuid2` with room for `entries`. */
export function emptyCpuid(entries: number): Uint8Array {
  const bytes = new Uint8Array(kvm_cpuid2.size + entries * kvm_cpuid_entry2.size)
  new DataView(bytes.buffer).setUint32(0, entries, true)
  return bytes
}

export function decodeCpuid(bytes: Uint8Array): CpuidEntry[] {
  return kvm_cpuid2.decode(bytes).entries.map(({ padding: _, ...entry }) => entry)
}

export function encodeCpuid(entries: readonly CpuidEntry[]): Uint8Array {
  const padded = entries.map(entry => ({ ...entry, padding: [0, 0, 0] }))
  return kvm_cpuid2.encode({ nent: entries.length, padding: 0, entries: padded })
}

/** KVM_GET_MSRS: stops at the first MSR that it does not give, and returns how many it gave. */
export function readMsrs(indices: readonly number[], call: (bytes: Uint8Array) => number): Msr[] {
  return decodeMsrs(readRawMsrs(indices, call))
}

/** The most that one call takes: below `MAX_IO_MSRS` of arch/x86/kvm/x86.c; more are E2BIG. */
const MOST_MSRS = 255

/** As `readMsrs`, undecoded: `struct kvm_msrs`. */
export function readRawMsrs(indices: readonly number[], call: (bytes: Uint8Array) => number): Uint8Array {
  const bytes = encodeMsrs(indices.map(index => ({ index, value: 0n })))
  const count = inBatches(bytes, call)
  if (count < indices.length) throw refused('KVM_GET_MSRS', indices[count]!, 'cannot be read on this host')
  return bytes
}

/** KVM_SET_MSRS: stops at the first MSR that it refuses, and returns how many it took. `bytes`: `struct kvm_msrs`. */
export function writeRawMsrs(bytes: Uint8Array, call: (bytes: Uint8Array) => number): void {
  const bad = kvm_msrs.size + inBatches(bytes, call) * kvm_msr_entry.size
  if (bad >= bytes.length) return
  const { index, data } = kvm_msr_entry.decode(bytes, bad)
  throw refused('KVM_SET_MSRS', index, `does not take 0x${data.toString(16)}`)
}

/** Makes the call for as many entries at a time as the kernel takes; returns how many it did. */
function inBatches(bytes: Uint8Array, call: (bytes: Uint8Array) => number): number {
  const { size } = kvm_msr_entry
  const all = Math.floor((bytes.length - kvm_msrs.size) / size)
  if (all <= MOST_MSRS) return call(bytes)
  for (let first = 0; first < all; first += MOST_MSRS) {
    const from = kvm_msrs.size + first * size
    const entries = bytes.subarray(from, Math.min(bytes.length, from + MOST_MSRS * size))
    const count = entries.length / size
    const batch = new Uint8Array(kvm_msrs.size + entries.length)
    new DataView(batch.buffer).setUint32(0, count, true)
    batch.set(entries, kvm_msrs.size)
    const done = call(batch)
    entries.set(batch.subarray(kvm_msrs.size))
    if (done < count) return first + done
  }
  return all
}

export function decodeMsrs(bytes: Uint8Array): Msr[] {
  return kvm_msrs.decode(bytes).entries.map(({ index, data }) => ({ index, value: data }))
}

export function encodeMsrs(msrs: readonly Msr[]): Uint8Array {
  const entries = msrs.map(({ index, value }) => ({ index, reserved: 0, data: value }))
  return kvm_msrs.encode({ nmsrs: msrs.length, pad: 0, entries })
}

function refused(ioctl: string, index: number, what: string): KvmError {
  return new KvmError(ioctl, constants.errno.EINVAL, `MSR 0x${index.toString(16)} ${what}`)
}

/** `struct kvm_enable_cap`, for a VM or a vCPU. */
export function encodeEnableCap(capability: number, args: readonly bigint[]): Uint8Array {
  const [a = 0n, b = 0n, c = 0n, d = 0n] = args
  return kvm_enable_cap.encode({ cap: capability, flags: 0, args: [a, b, c, d], pad: new Uint8Array(64) })
}
