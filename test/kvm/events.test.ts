import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { EventFd } from '../../lib/kvm/event-fd.js'
import { VcpuThread } from '../../lib/kvm/vcpu-thread.js'
import { loadGuest, openGuest, runTo } from './guest.js'

/** Real mode: PIC at vectors 0x20 and 0x28, everything but IRQ 5 masked, a handler that says so on port 0x10, then waits. */
const interruptible = `
  mov al, 0x11
  out 0x20, al
  mov al, 0x20
  out 0x21, al
  mov al, 4
  out 0x21, al
  mov al, 1
  out 0x21, al
  mov al, 0xdf
  out 0x21, al
  sti
  out 0x11, al
wait: hlt
  jmp wait
.org 0x100
  push ax
  out 0x10, al
  mov al, 0x20
  out 0x20, al
  pop ax
  iret
`

function loadInterruptible() {
  const guest = loadGuest('real', interruptible, { irqchip: true })
  new DataView(guest.ram.bytes.buffer).setUint16(0x25 * 4, 0x1100, true)
  return guest
}

/** Runs the guest on a thread and records its ports; `next()` resolves at the next port write. */
function recordPorts(guest: ReturnType<typeof openGuest>) {
  const ports: number[] = []
  let arrived: (() => void) | undefined
  const thread = new VcpuThread(guest.vcpu, exit => {
    if (exit.reason === 'io-out') ports.push(exit.port)
    arrived?.()
  })
  const next = async (count: number) => {
    while (ports.length < count) {
      await new Promise<void>((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error(`only ports ${ports} after 5 s`)), 5000)
        arrived = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    }
    return ports
  }
  thread.start()
  return { thread, next, ports }
}

describe('interrupts through the in-kernel controllers', () => {
  it('an irqfd raises one for each signal, without an exit', async () => {
    using guest = loadInterruptible()
    using eventFd = new EventFd()
    guest.vm.irqfd(eventFd, 5)
    const { thread, next, ports } = recordPorts(guest)
    expect(await next(1)).toEqual([0x11])
    for (let i = 2; i <= 4; i++) {
      eventFd.signal()
      await next(i)
    }
    expect(ports).toEqual([0x11, 0x10, 0x10, 0x10])
    guest.vm.removeIrqfd(eventFd, 5)
    eventFd.signal()
    await sleep(50)
    expect(ports.length).toBe(4)
    await thread.stop()
  })

  it('a line set high raises one', async () => {
    using guest = loadInterruptible()
    const { thread, next } = recordPorts(guest)
    await next(1)
    guest.vm.setIrqLine(5, true)
    expect(await next(2)).toEqual([0x11, 0x10])
    guest.vm.setIrqLine(5, false)
    await thread.stop()
  })

  it('a message reaches the local APIC, once that is on', () => {
    using guest = openGuest({ irqchip: true })
    const { vm, vcpu } = guest
    const lapic = vcpu.getLapic()
    lapic.regs[0xf0] = 0xff
    lapic.regs[0xf1] = 1
    vcpu.setLapic(lapic)
    expect(vm.signalMsi({ address: 0xfee00000n, data: 0x31 })).toBe(true)
    // Vector 0x31 is bit 17 of the second 32 of the IRR, at 0x210 (Intel SDM vol. 3, table 12-1).
    expect(vcpu.getLapic().regs[0x212]! & 2).toBe(2)
  })

  it('an EventFd that is bound already or closed is refused', () => {
    using guest = openGuest({ irqchip: true })
    const eventFd = new EventFd()
    guest.vm.irqfd(eventFd, 5)
    expect(() => guest.vm.irqfd(eventFd, 6)).toThrow(/KVM_IRQFD: EBUSY/)
    eventFd.close()
    expect(() => guest.vm.irqfd(eventFd, 5)).toThrow(/EBADF/)
    expect(() => eventFd.signal()).toThrow(/EBADF/)
    expect(() => eventFd.watch(() => {})).toThrow(/EBADF/)
  })
})

describe('ioeventfd', () => {
  it('takes writes to a port without an exit, of the value asked for only', () => {
    using guest = loadGuest('protected', 'mov eax, 7\nout 0x50, al\nmov eax, 8\nout 0x50, al\nhlt')
    using eventFd = new EventFd()
    guest.vm.ioeventfd(eventFd, { address: 0x50, length: 1, pio: true, datamatch: 7n })
    expect(eventFd.read()).toBe(0)
    expect([...runTo(guest.vcpu, 'io-out').data]).toEqual([8])
    expect(eventFd.read()).toBe(1)
    expect(eventFd.read()).toBe(0)
  })

  it('takes writes to an address, of any length with 0', () => {
    using guest = loadGuest('protected', 'mov [ebx], al\nmov [ebx], ax\nmov [ebx], eax\nmov [ebx + 4], eax\nhlt', {
      regs: { rbx: 0xd0000000n },
    })
    using eventFd = new EventFd()
    guest.vm.ioeventfd(eventFd, { address: 0xd0000000, length: 0 })
    expect(runTo(guest.vcpu, 'mmio-write').address).toBe(0xd0000004)
    expect(eventFd.read()).toBe(3)
  })

  it('stops when it is removed, with the same options only', () => {
    using guest = loadGuest('protected', 'out 0x50, al\nhlt')
    using eventFd = new EventFd()
    const options = { address: 0x50, length: 1, pio: true }
    guest.vm.ioeventfd(eventFd, options)
    expect(() => guest.vm.ioeventfd(eventFd, options)).toThrow(/KVM_IOEVENTFD: EEXIST/)
    expect(() => guest.vm.removeIoeventfd(eventFd, { ...options, address: 0x51 })).toThrow(/KVM_IOEVENTFD: ENOENT/)
    guest.vm.removeIoeventfd(eventFd, options)
    expect(runTo(guest.vcpu, 'io-out').port).toBe(0x50)
    expect(() => guest.vm.ioeventfd(eventFd, { ...options, length: 3 })).toThrow(/KVM_IOEVENTFD: EINVAL/)
  })

  it('watched on the event loop: every write is counted, and the guest goes on meanwhile', async () => {
    using guest = loadGuest('protected', 'mov ecx, 1000\nagain: out 0x50, al\nloop again\nout 0x10, al\nhlt')
    using eventFd = new EventFd()
    guest.vm.ioeventfd(eventFd, { address: 0x50, length: 1, pio: true })
    let counted = 0
    eventFd.watch(count => {
      counted += count
    })
    const { thread, next, ports } = recordPorts(guest)
    await next(1)
    expect(ports).toEqual([0x10])
    for (const start = Date.now(); counted < 1000 && Date.now() - start < 2000; ) await sleep(1)
    expect(counted).toBe(1000)
    await thread.stop()
  })
})

describe('EventFd', () => {
  it('counts, is read without waiting, and tells its watcher until unwatched', async () => {
    using eventFd = new EventFd()
    eventFd.signal(3)
    eventFd.signal()
    expect(eventFd.read()).toBe(4)
    const counts: number[] = []
    eventFd.watch(count => counts.push(count))
    eventFd.signal(2)
    await expect.poll(() => counts, { timeout: 5000 }).toEqual([2])
    eventFd.signal(5)
    await expect.poll(() => counts, { timeout: 5000 }).toEqual([2, 5])
    eventFd.unwatch()
    eventFd.signal(7)
    await sleep(20)
    expect(counts).toEqual([2, 5])
    expect(eventFd.read()).toBe(7)
    expect(() => eventFd.signal(-1)).toThrow(RangeError)
    expect(() => eventFd.signal(0.5)).toThrow(RangeError)
  })

  it('signalled before it is watched: the watcher hears of it', async () => {
    using eventFd = new EventFd()
    eventFd.signal(6)
    const count = await new Promise<number>(resolve => eventFd.watch(resolve))
    expect(count).toBe(6)
  })
})
