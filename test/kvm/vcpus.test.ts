import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { Kvm } from '../../lib/kvm/kvm.js'
import { KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED } from '../../lib/kvm/structs.js'
import { VcpuThread } from '../../lib/kvm/vcpu-thread.js'
import { assemble } from '../guests/assemble.js'
import { enterMode, loadGuest, ORIGIN, openGuest } from './guest.js'

describe('two vCPUs', () => {
  it('share memory and run at the same time: each waits for the other, a hundred times', async () => {
    // The first makes the counter odd, the second even; neither could go on alone.
    const source = `
      again: mov eax, [0x9000]
      mov ecx, eax
      and ecx, 1
      cmp ecx, ebx
      jne again
      inc eax
      mov [0x9000], eax
      cmp eax, 199
      jl again
      out 0x10, al
      hlt`
    using guest = loadGuest('protected', source, { regs: { rbx: 0n } })
    const second = guest.vm.createVcpu(1)
    enterMode(second, guest.ram.bytes, 'protected', { rbx: 1n })
    const finished = [guest.vcpu, second].map(
      vcpu =>
        new Promise<void>((resolve, reject) => {
          const thread = new VcpuThread(vcpu, exit => void (exit.reason === 'hlt' && resolve(thread.stop())), reject)
          thread.start()
        }),
    )
    await Promise.all(finished)
    expect(new DataView(guest.ram.bytes.buffer).getUint32(0x9000, true)).toBe(200)
  })

  it('the second waits for its start-up IPI, and can be paused and stopped there; made runnable, it runs', async () => {
    using guest = loadGuest('protected', 'out 0x10, al\nhlt', { irqchip: true })
    const second = guest.vm.createVcpu(1)
    expect([guest.vcpu, second].map(vcpu => vcpu.getMpState())).toEqual([
      KVM_MP_STATE_RUNNABLE,
      KVM_MP_STATE_UNINITIALIZED,
    ])
    enterMode(second, guest.ram.bytes, 'protected')
    const ports: number[] = []
    const thread = new VcpuThread(second, exit => void (exit.reason === 'io-out' && ports.push(exit.port)))
    thread.start()
    await sleep(20)
    await thread.pause()
    expect([ports, second.getMpState()]).toEqual([[], KVM_MP_STATE_UNINITIALIZED])
    second.setMpState(KVM_MP_STATE_RUNNABLE)
    thread.resume()
    for (const start = Date.now(); ports.length === 0 && Date.now() - start < 5000; ) await sleep(1)
    expect(ports).toEqual([0x10])
    // It halts inside the kernel: no exit, and still to be paused and stopped.
    for (const start = Date.now(); Date.now() - start < 5000; thread.resume()) {
      await thread.pause()
      if (second.getMpState() === KVM_MP_STATE_HALTED) break
    }
    expect(second.getMpState()).toBe(KVM_MP_STATE_HALTED)
    await thread.stop()
  })

  it('an id that is taken or too large is refused, and leaves the others working', () => {
    using guest = openGuest()
    expect(() => guest.vm.createVcpu(0)).toThrow(/KVM_CREATE_VCPU: EEXIST/)
    expect(() => guest.vm.createVcpu(1 << 20)).toThrow(/KVM_CREATE_VCPU: EINVAL/)
    expect(() => guest.vm.createVcpu(-1)).toThrow(RangeError)
    guest.vm.createVcpu(3).getRegs()
  })
})

describe('fifty VMs', () => {
  it('at once in one process, each on a thread, each with its own memory and answers', async () => {
    const kvm = Kvm.open()
    const code = assemble('.code32\nagain: in al, 0x60\nadd bl, al\ndec ecx\njnz again\nmov [0x9000], bl\nhlt', ORIGIN)
    const vms = Array.from({ length: 50 }, (_, i) => {
      const vm = kvm.createVm()
      const ram = vm.addMemory({ guestAddress: 0, size: 1 << 20 })
      const vcpu = vm.createVcpu(0)
      ram.bytes.set(code, ORIGIN)
      enterMode(vcpu, ram.bytes, 'protected', { rcx: 20n })
      const halted = new Promise<void>((resolve, reject) => {
        const thread = new VcpuThread(
          vcpu,
          exit => {
            if (exit.reason === 'io-in') exit.data[0] = i
            else if (exit.reason === 'hlt') resolve(thread.stop())
            else reject(new Error(exit.reason))
          },
          reject,
        )
        thread.start()
      })
      return { vm, ram, halted }
    })
    await Promise.all(vms.map(({ halted }) => halted))
    expect(vms.map(({ ram }) => ram.bytes[0x9000])).toEqual(vms.map((_, i) => (i * 20) % 256))
    for (const { vm } of vms) vm.close()
    kvm.close()
  })
})
