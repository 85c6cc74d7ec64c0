import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { cap } from '../../lib/kvm/capabilities.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import { KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE } from '../../lib/kvm/structs.js'
import { loadGuest, ORIGIN, openGuest, runTo } from './guest.js'

/** Writes a byte to each address in turn, saying so on a port after each. */
const touch = (...addresses: number[]) =>
  `${addresses.map(address => `mov byte ptr [0x${address.toString(16)}], 1\nout 0x10, al`).join('\n')}\nhlt`

/**
 * Numbers of the pages whose bits are set, but for the one that the guest's code is on: KVM may map it for writing, and
 * so count it, when it is first fetched from.
 */
function pages(bitmap: Uint8Array): number[] {
  return [...bitmap]
    .flatMap((byte, i) => [0, 1, 2, 3, 4, 5, 6, 7].filter(bit => byte & (1 << bit)).map(bit => i * 8 + bit))
    .filter(page => page !== ORIGIN / 4096)
}

describe('the dirty log', () => {
  it('has the pages that the guest wrote since it was last read, and no others', () => {
    using guest = loadGuest('protected', touch(0x20000, 0x7f123, 0x20008, 0xff000), { logDirty: true })
    const { vm, vcpu, ram } = guest
    expect(vm.getDirtyLog(ram.slot).length).toBe(32)
    expect(pages(vm.getDirtyLog(ram.slot))).toEqual([])
    runTo(vcpu, 'io-out')
    runTo(vcpu, 'io-out')
    expect(pages(vm.getDirtyLog(ram.slot))).toEqual([0x20, 0x7f])
    expect(pages(vm.getDirtyLog(ram.slot))).toEqual([])
    runTo(vcpu, 'io-out')
    runTo(vcpu, 'io-out')
    expect(pages(vm.getDirtyLog(ram.slot))).toEqual([0x20, 0xff])
  })

  it('can be started and stopped while the region is there', () => {
    using guest = loadGuest('protected', touch(0x20000, 0x30000))
    const { vm, vcpu, ram } = guest
    expect(() => vm.getDirtyLog(ram.slot)).toThrow(/KVM_GET_DIRTY_LOG: ENOENT/)
    runTo(vcpu, 'io-out')
    ram.setLogDirty(true)
    runTo(vcpu, 'io-out')
    expect(pages(vm.getDirtyLog(ram.slot))).toEqual([0x30])
    ram.setLogDirty(false)
    expect(() => vm.getDirtyLog(ram.slot)).toThrow(/KVM_GET_DIRTY_LOG: ENOENT/)
  })

  it('with manual protection keeps its bits until they are cleared, range by range', () => {
    using guest = loadGuest('protected', touch(0x20000, 0x7f000, 0x20000), { logDirty: true })
    const { vm, vcpu, ram } = guest
    expect(vm.checkExtension(cap.MANUAL_DIRTY_LOG_PROTECT2) & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE).toBeTruthy()
    vm.enableCap(cap.MANUAL_DIRTY_LOG_PROTECT2, BigInt(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
    runTo(vcpu, 'io-out')
    runTo(vcpu, 'io-out')
    const log = vm.getDirtyLog(ram.slot)
    expect(pages(log)).toEqual([0x20, 0x7f])
    expect(pages(vm.getDirtyLog(ram.slot))).toEqual([0x20, 0x7f])
    // Pages 0..63 only: the bitmap starts at the first page of the range.
    vm.clearDirtyLog(ram.slot, 0, 64, log.subarray(0, 8))
    expect(pages(vm.getDirtyLog(ram.slot))).toEqual([0x7f])
    vm.clearDirtyLog(ram.slot, 64, 64, log.slice(8, 16))
    expect(pages(vm.getDirtyLog(ram.slot))).toEqual([])
    runTo(vcpu, 'io-out')
    expect(pages(vm.getDirtyLog(ram.slot))).toEqual([0x20])
  })

  it('refuses a slot that is not there, and a range or bitmap that does not fit', () => {
    using guest = openGuest({ logDirty: true })
    const { vm, ram } = guest
    vm.enableCap(cap.MANUAL_DIRTY_LOG_PROTECT2, BigInt(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
    expect(() => vm.getDirtyLog(7)).toThrow(/memslot 7/)
    expect(() => vm.clearDirtyLog(ram.slot, 0, 65, new Uint8Array(8))).toThrow(/bitmap is too short/)
    expect(() => vm.clearDirtyLog(ram.slot, 1, 64, new Uint8Array(8))).toThrow(/KVM_CLEAR_DIRTY_LOG: EINVAL/)
    expect(() => vm.clearDirtyLog(ram.slot, 256, 64, new Uint8Array(8))).toThrow(/KVM_CLEAR_DIRTY_LOG: EINVAL/)
  })
})

describe('coalesced writes', () => {
  it('to memory: queued without an exit, in order, with their addresses and bytes', () => {
    using guest = loadGuest(
      'protected',
      `mov dword ptr [ebx], 0x44332211
       mov byte ptr [ebx + 8], 0x55
       mov word ptr [ebx + 0x1000], 0x7766
       hlt`,
      { regs: { rbx: 0xd0000000n } },
    )
    const { vm, vcpu } = guest
    const zone = { address: 0xd0000000, size: 0x1000 }
    vm.registerCoalescedMmio(zone)
    const exit = runTo(vcpu, 'mmio-write')
    expect(exit.address).toBe(0xd0001000)
    const writes = vcpu
      .coalescedWrites()
      .map(({ phys_addr, len, data, pio }) => [Number(phys_addr), pio, ...data.subarray(0, len)])
    expect(writes).toEqual([
      [0xd0000000, 0, 0x11, 0x22, 0x33, 0x44],
      [0xd0000008, 0, 0x55],
    ])
    expect(vcpu.coalescedWrites()).toEqual([])
    runTo(vcpu, 'hlt')
  })

  it('to ports', () => {
    using guest = loadGuest(
      'protected',
      'mov dx, 0x3f8\nmov al, 65\nout dx, al\nmov ax, 0x4342\nout dx, ax\nout 0x10, al',
    )
    const { vm, vcpu } = guest
    expect(vm.checkExtension(cap.COALESCED_PIO)).toBeTruthy()
    vm.registerCoalescedMmio({ address: 0x3f8, size: 8, pio: true })
    expect(runTo(vcpu, 'io-out').port).toBe(0x10)
    const writes = vcpu
      .coalescedWrites()
      .map(({ phys_addr, len, data, pio }) => [Number(phys_addr), pio, ...data.subarray(0, len)])
    expect(writes).toEqual([
      [0x3f8, 1, 65],
      [0x3f8, 1, 0x42, 0x43],
    ])
  })

  it('a full ring makes the next write an exit, and nothing is lost', () => {
    const count = 500
    using guest = loadGuest(
      'protected',
      `mov ecx, ${count}
       again: mov [ebx], ecx
       dec ecx
       jnz again
       hlt`,
      { regs: { rbx: 0xd0000000n } },
    )
    const { vm, vcpu } = guest
    vm.registerCoalescedMmio({ address: 0xd0000000, size: 0x1000 })
    const seen: number[] = []
    const value = (data: Uint8Array) => new DataView(data.buffer, data.byteOffset).getUint32(0, true)
    let exits = 0
    for (;;) {
      const exit = vcpu.run()
      for (const write of vcpu.coalescedWrites()) seen.push(value(write.data))
      if (exit.reason === 'hlt') break
      if (exit.reason !== 'mmio-write') throw new Error(`unexpected ${exit.reason}`)
      seen.push(value(exit.data))
      exits++
    }
    expect(seen).toEqual(Array.from({ length: count }, (_, i) => count - i))
    expect(exits).toBeGreaterThan(0)
    expect(exits).toBeLessThan(10)
  })

  it('stop being queued when the zone is unregistered', () => {
    using guest = loadGuest('protected', 'mov [ebx], eax\nmov [ebx], eax\nhlt', { regs: { rbx: 0xd0000000n } })
    const zone = { address: 0xd0000000, size: 0x1000 }
    guest.vm.registerCoalescedMmio(zone)
    guest.vm.unregisterCoalescedMmio(zone)
    runTo(guest.vcpu, 'mmio-write')
  })
})

describe('memory regions', () => {
  it('take the lowest free slot, and give it back with their views detached', () => {
    using guest = openGuest()
    const { vm } = guest
    const a = vm.addMemory({ guestAddress: 0x100000, size: 4096 })
    const b = vm.addMemory({ guestAddress: 0x101000, size: 4096 })
    expect([a.slot, b.slot]).toEqual([1, 2])
    const view = a.bytes
    a.remove()
    expect(view.byteLength).toBe(0)
    expect(() => a.bytes).toThrow(RangeError)
    expect(vm.addMemory({ guestAddress: 0x200000, size: 4096 }).slot).toBe(1)
    expect(vm.regions.length).toBe(3)
  })

  it('removed under the guest: its next access there is MMIO', () => {
    using guest = loadGuest('protected', 'mov [0x200000], al\nout 0x10, al\nmov [0x200000], al\nhlt')
    const extra = guest.vm.addMemory({ guestAddress: 0x200000, size: 4096 })
    runTo(guest.vcpu, 'io-out')
    extra.remove()
    runTo(guest.vcpu, 'mmio-write')
  })

  it('are refused where they overlap or are not whole pages, and leave nothing behind', () => {
    using guest = openGuest()
    const { vm } = guest
    expect(() => vm.addMemory({ guestAddress: 0x1000, size: 4096 })).toThrow(/KVM_SET_USER_MEMORY_REGION: EEXIST/)
    expect(() => vm.addMemory({ guestAddress: 0x100800, size: 4096 })).toThrow(/KVM_SET_USER_MEMORY_REGION: EINVAL/)
    expect(() => vm.addMemory({ guestAddress: 0x100000, size: 100 })).toThrow(/KVM_SET_USER_MEMORY_REGION: EINVAL/)
    expect(() => vm.addMemory({ guestAddress: 0x100000, size: 0 })).toThrow()
    expect(() => vm.addMemory({ guestAddress: -4096, size: 4096 })).toThrow(RangeError)
    expect(() => vm.addMemory({ guestAddress: Number.NaN, size: 4096 })).toThrow(RangeError)
    expect(() => vm.addMemory({ guestAddress: 0x100000, size: 2 ** 51 })).toThrow(/ENOMEM/)
    expect(() => vm.addMemory({ guestAddress: 0x100000, size: 4096, slot: 0 })).toThrow(/memslot 0 is in use/)
    expect(vm.regions.length).toBe(1)
    expect(vm.addMemory({ guestAddress: 0x100000, size: 4096 }).slot).toBe(1)
  })

  it('larger than 2 GiB come in several views', () => {
    using guest = openGuest()
    const region = guest.vm.addMemory({ guestAddress: 2 ** 32, size: 5 * 2 ** 30 })
    expect(region.chunks.map(chunk => chunk.length)).toEqual([2 ** 31, 2 ** 31, 2 ** 30])
    expect(() => region.bytes).toThrow(/chunks|2 GiB/)
    region.chunks[2]![2 ** 30 - 1] = 7
    expect(region.chunks[2]![2 ** 30 - 1]).toBe(7)
  })
})

it('memory is of huge pages where they are asked for, and of small ones where they are not', () => {
  using kvm = Kvm.open()
  using vm = kvm.createVm()
  const MIB = 1 << 20
  /** Kilobytes of a region that a page's first byte makes resident, rounded to what the kernel gave. */
  const touched = (hugePages: 'always' | 'never') => {
    const guestAddress = hugePages === 'always' ? 0 : 64 * MIB
    const region = vm.addMemory({ guestAddress, size: 16 * MIB, backing: 'memfd', hugePages })
    const shmem = () => Number(/^RssShmem:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))![1])
    const before = shmem()
    region.bytes[4 * MIB] = 1
    return shmem() - before
  }
  // As root; without it, the demand is refused.
  if (process.getuid!() === 0) expect(touched('always')).toBe(2048)
  else expect(() => touched('always')).toThrow(/huge pages need CAP_SYS_ADMIN/)
  expect(touched('never')).toBeLessThan(2048)
})
