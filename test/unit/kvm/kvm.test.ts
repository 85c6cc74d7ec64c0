import { afterEach, describe, expect, it, vi } from 'vitest'
import { KvmError } from '../../../lib/errors.js'
import { Kvm } from '../../../lib/kvm/kvm.js'
import { kvm_cpuid2, kvm_msr_list } from '../../../lib/kvm/structs.js'

const E2BIG = 7

/** The part of the kernel that these tests need: what it answers, and what was asked of it. */
const kernel = vi.hoisted(() => ({
  version: 12,
  cpuidEntries: 0,
  msrs: [] as number[],
  closed: 0,
  sizes: [] as number[],
}))

vi.mock('../../../lib/kvm/binding.js', () => ({
  addon: {
    Kvm: class {
      getApiVersion = () => kernel.version
      checkExtension = () => 1
      close = () => kernel.closed++
      getSupportedCpuid(bytes: Uint8Array) {
        const view = new DataView(bytes.buffer)
        const room = view.getUint32(0, true)
        kernel.sizes.push(room)
        if (room < kernel.cpuidEntries) throw new KvmError('KVM_GET_SUPPORTED_CPUID', E2BIG)
        view.setUint32(0, kernel.cpuidEntries, true)
        for (let i = 0; i < kernel.cpuidEntries; i++) view.setUint32(kvm_cpuid2.size + i * 40, i, true)
      }
      getMsrIndexList(bytes: Uint8Array) {
        const view = new DataView(bytes.buffer)
        const room = view.getUint32(0, true)
        view.setUint32(0, kernel.msrs.length, true)
        if (room < kernel.msrs.length) throw new KvmError('KVM_GET_MSR_INDEX_LIST', E2BIG)
        for (const [i, msr] of kernel.msrs.entries()) view.setUint32(kvm_msr_list.size + i * 4, msr, true)
      }
    },
  },
}))

afterEach(() => Object.assign(kernel, { version: 12, cpuidEntries: 0, msrs: [], closed: 0, sizes: [] }))

describe('Kvm.open', () => {
  it.each([0, 11, 13])('refuses API version %i, says which it speaks, and closes the device', version => {
    kernel.version = version
    expect(() => Kvm.open('/dev/odd')).toThrow(
      new RegExp(`KVM_GET_API_VERSION: ENOTSUP \\(/dev/odd speaks version ${version} of the KVM API, this program 12`),
    )
    expect(kernel.closed).toBe(1)
  })
})

describe('lists whose length only the kernel knows', () => {
  it.each([0, 1, 128, 129, 1000])('CPUID tables of %i entries come whole', count => {
    kernel.cpuidEntries = count
    const entries = Kvm.open().supportedCpuid()
    expect(entries.map(entry => entry.function)).toEqual(Array.from({ length: count }, (_, i) => i))
    expect(kernel.sizes.at(-1)).toBeGreaterThanOrEqual(count)
  })

  it('a kernel that never has enough room does not keep us asking', () => {
    kernel.cpuidEntries = 2 ** 31
    expect(() => Kvm.open().supportedCpuid()).toThrow(KvmError)
    expect(kernel.sizes.length).toBeLessThan(20)
  })

  it.each([0, 1, 300])('MSR lists of %i come whole', count => {
    kernel.msrs = Array.from({ length: count }, (_, i) => 0xc0000000 + i)
    expect(Kvm.open().msrIndices()).toEqual(kernel.msrs)
  })
})
