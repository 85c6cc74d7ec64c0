import { expect, it } from 'vitest'
import { KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI } from '../../lib/kvm/constants.js'
import { loadGuest, runTo } from '../kvm/guest.js'

/** Reached by the `lapic` registers: spurious-interrupt vector, whose bit 8 enables the APIC (Intel SDM vol. 3, section 11.9). */
const SPURIOUS = 0xf0
const RFLAGS_IF = 0x202n
/** Of the real mode's vectors, here. */
const HANDLER = 0x1100

/** A guest in real mode with interrupts on, whose vectors all lead to `handler`. */
function loadInterruptible(main: string, handler: string) {
  const source = `${main}\n.org ${HANDLER - 0x1000}\n${handler}`
  const guest = loadGuest('real', source, { irqchip: true, regs: { rflags: RFLAGS_IF } })
  for (let vector = 0; vector < 256; vector++) Buffer.from(guest.ram.bytes.buffer).writeUInt32LE(HANDLER, vector * 4)
  const lapic = guest.vcpu.getLapic()
  lapic.regs[SPURIOUS + 1]! |= 1
  guest.vcpu.setLapic(lapic)
  return guest
}

/** To the first APIC, edge, fixed (Intel SDM vol. 3, section 11.11). */
const message = (vector: number) => ({ address: 0xfee00000n, data: vector })

it('an interrupt that comes in the shadow of STI waits for the next instruction', () => {
  using guest = loadInterruptible('inc bx\n'.repeat(8), 'mov ax, bx\nout 0x10, al')
  const { vm, vcpu } = guest
  const events = vcpu.getVcpuEvents()
  vcpu.setVcpuEvents({
    ...events,
    flags: events.flags | KVM_VCPUEVENT_VALID_SHADOW,
    interrupt: { ...events.interrupt, shadow: KVM_X86_SHADOW_INT_STI },
  })
  vm.signalMsi(message(0x40))
  expect(runTo(vcpu, 'io-out').data[0]).toBe(1)
})

it('an interrupt is delivered once, however long its handler takes', () => {
  const main = 'again: hlt\njmp again'
  const handler = `
    inc byte ptr [0x800]
    mov ecx, 4000000
    wait: dec ecx
    jnz wait
    mov al, [0x800]
    out 0x10, al
    dec byte ptr [0x800]
    iret`
  using guest = loadInterruptible(main, handler)
  const { vm, vcpu } = guest
  // Each of a higher priority than those before, which are in service still: there is no EOI.
  for (let vector = 0x40; vector < 0xd0; vector += 0x10) {
    vm.signalMsi(message(vector))
    expect(runTo(vcpu, 'io-out').data[0], `vector ${vector}`).toBe(1)
  }
})
