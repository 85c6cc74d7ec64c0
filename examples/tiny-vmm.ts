/** The smallest VMM: a few bytes of real-mode code that print through a port. Synchronous, nothing hidden. */
import { Kvm } from 'nested-kvm'

// mov dx, 0x3f8; mov si, text; next: lodsb; test al, al; jz end; out dx, al; jmp next; end: hlt; text:
const program = [0xba, 0xf8, 0x03, 0xbe, 0x0f, 0x10, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, 0xf4]
const text = Buffer.from('Hello from a guest\n\0')

using kvm = Kvm.open()
using vm = kvm.createVm()
const ram = vm.addMemory({ guestAddress: 0, size: 1 << 20 })
ram.bytes.set([...program, ...text], 0x1000)

using vcpu = vm.createVcpu(0)
vcpu.setCpuid(kvm.supportedCpuid())
const sregs = vcpu.getSregs()
vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } })
vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n, rflags: 2n })

loop: for (;;) {
  const exit = vcpu.run()
  switch (exit.reason) {
    case 'io-out':
      process.stdout.write(String.fromCharCode(exit.data[0]!))
      break
    case 'hlt':
      break loop
    default:
      throw new Error(`unexpected exit: ${exit.reason}`)
  }
}
