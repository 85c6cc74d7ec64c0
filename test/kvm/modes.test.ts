import { describe, expect, it } from 'vitest'
import { loadGuest, type Mode, runTo } from './guest.js'

/** Adds two registers, says the sum on a port, and halts or, at CPL 3 where HLT is privileged, says a second byte. */
const sum = `
  mov dx, 0x3f8
  add al, bl
  out dx, al
  mov al, 0x2a
  out dx, al
  nop
`

describe('a guest runs', () => {
  it.each(['real', 'protected', 'long', 'user'] satisfies Mode[])('in %s mode', mode => {
    using guest = loadGuest(mode, sum, { regs: { rax: 40n, rbx: 2n } })
    const { vcpu } = guest
    const first = runTo(vcpu, 'io-out')
    expect([first.port, first.size, first.count, [...first.data]]).toEqual([0x3f8, 1, 1, [42]])
    expect([...runTo(vcpu, 'io-out').data]).toEqual([0x2a])
    // Past the second OUT or, on hosts that skip the instruction at the next entry, still at it.
    const { rip } = vcpu.getRegs()
    expect(rip > 0x1006n && rip < 0x100en).toBe(true)
  })

  it('with the width of its registers: 64 bits in long mode only', () => {
    using guest = loadGuest('long', 'shl rax, 40\nmov dx, 0x10\nout dx, al\n', { regs: { rax: 1n } })
    runTo(guest.vcpu, 'io-out')
    expect(guest.vcpu.getRegs().rax).toBe(1n << 40n)
  })

  it('at CPL 3: a privileged instruction is a fault, and with no IDT that is a shutdown', () => {
    using guest = loadGuest('user', 'hlt\n')
    runTo(guest.vcpu, 'shutdown')
  })
})

describe('a guest ends with', () => {
  it.each(['real', 'protected', 'long'] satisfies Mode[])('HLT in %s mode', mode => {
    using guest = loadGuest(mode, 'hlt\nhlt\n')
    runTo(guest.vcpu, 'hlt')
    expect(guest.vcpu.getRegs().rip).toBe(0x1001n)
    runTo(guest.vcpu, 'hlt')
    expect(guest.vcpu.getRegs().rip).toBe(0x1002n)
  })

  it.each(['protected', 'long'] satisfies Mode[])('a triple fault in %s mode', mode => {
    using guest = loadGuest(mode, 'lidt [0x5000]\nud2\n')
    runTo(guest.vcpu, 'shutdown')
  })
})

describe('immediate_exit', () => {
  it('leaves KVM_RUN before the guest runs an instruction', () => {
    using guest = loadGuest('real', 'inc ax\nhlt\n')
    const { vcpu } = guest
    vcpu.immediateExit = true
    expect(vcpu.run().reason).toBe('intr')
    expect(vcpu.run().reason).toBe('intr')
    expect(vcpu.getRegs().rax).toBe(0n)
    vcpu.immediateExit = false
    runTo(vcpu, 'hlt')
    expect(vcpu.getRegs().rax).toBe(1n)
  })

  it('completes a pending port read first', () => {
    using guest = loadGuest('real', 'mov dx, 0x60\nin al, dx\nhlt\n')
    const { vcpu } = guest
    runTo(vcpu, 'io-in').data[0] = 0x77
    vcpu.immediateExit = true
    expect(vcpu.run().reason).toBe('intr')
    expect(vcpu.getRegs().rax & 0xffn).toBe(0x77n)
    expect(vcpu.getRegs().rip).toBe(0x1004n)
  })
})
