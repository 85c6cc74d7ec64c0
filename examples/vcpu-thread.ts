/**
 * A vCPU on a thread of its own, with a doorbell: the guest's writes to port 0x10 signal an eventfd in the kernel and cause no
 * exit; the event loop stays free all the while.
 */
import { EventFd, Kvm, VcpuThread } from 'nested-kvm'

// next: inc bx; out 0x10, al; cmp bx, 1000; jne next; mov ax, bx; out 0x20, ax; spin: jmp spin
const program = [0x43, 0xe6, 0x10, 0x81, 0xfb, 0xe8, 0x03, 0x75, 0xf7, 0x89, 0xd8, 0xe7, 0x20, 0xeb, 0xfe]

using kvm = Kvm.open()
using vm = kvm.createVm()
const ram = vm.addMemory({ guestAddress: 0, size: 1 << 20 })
ram.bytes.set(program, 0x1000)

let rings = 0
using doorbell = new EventFd()
doorbell.watch(count => {
  rings += count
})
vm.ioeventfd(doorbell, { address: 0x10, length: 1, pio: true })

const vcpu = vm.createVcpu(0)
vcpu.setCpuid(kvm.supportedCpuid())
const sregs = vcpu.getSregs()
vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } })
vcpu.setRegs({ ...vcpu.getRegs(), rbx: 0n, rip: 0x1000n, rflags: 2n })

let thread: VcpuThread | undefined
const counted = await new Promise<number>((resolve, reject) => {
  thread = new VcpuThread(
    vcpu,
    exit => {
      if (exit.reason === 'io-out') resolve(exit.data[0]! | (exit.data[1]! << 8))
      else reject(new Error(`unexpected exit: ${exit.reason}`))
    },
    reject,
  )
  thread.start()
})
await thread?.stop() // also though the guest spins
rings += doorbell.read() // what came since the event loop last looked
console.log(`the guest counted to ${counted} and rang ${rings} times, at rip 0x${vcpu.getRegs().rip.toString(16)}`)
