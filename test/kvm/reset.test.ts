import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { virtioSlot } from '../../lib/arch/x86_64/layout.js'
import type { MachineOptions } from '../../lib/config/machine-config.js'
import { REGISTER } from '../../lib/devices/virtio/registers.js'
import { Machine } from '../../lib/machine/machine.js'
import type { GuestReset } from '../../lib/machine/machine-events.js'
import { elfKernel } from '../guests/elf.js'

/** A page that is zero at each start: the guest says what it finds there, and leaves a mark. */
const PAGE = 0x1200000

const say = (text: string) =>
  [...text].map(letter => `mov al, ${letter.charCodeAt(0)}\n mov dx, 0x3f8\n out dx, al\n`).join('')
const spin = '9: jmp 9b\n'

/** Says `(` and `0` at a start with clean memory, else `!`; then does as what is typed says. */
const SOURCE = `
  cli
  ${say('(')}
  mov rbx, ${PAGE}
  mov al, [rbx]
  add al, '0'
  mov dx, 0x3f8
  out dx, al
  mov byte ptr [rbx], 0x21 - 0x30
  # The memory at the end of its first 32 MiB, far from all else.
  mov qword ptr [rbx + 0xd00000], 0x55
wait:
  mov dx, 0x3fd
  in al, dx
  test al, 1
  jz wait
  mov dx, 0x3f8
  in al, dx
  cmp al, 'k'
  je keyboard
  cmp al, 'f'
  je fault
  cmp al, 'p'
  je panic
  cmp al, 'b'
  je button
  cmp al, 'n'
  je nmi
  jmp off
keyboard:
  mov al, 0xfe
  out 0x64, al
  # Not reached: the reset comes before the next instruction.
  ${say('X')}
  ${spin}
fault:
  lidt [rip + none]
  ud2
panic:
  mov dx, 0x505
  in al, dx
  out dx, al
  jmp wait
# PM1_EN: the power button; then waits for its status.
button:
  mov dx, 0x602
  mov ax, 0x100
  out dx, ax
  ${say('b')}
1:
  mov dx, 0x600
  in ax, dx
  test ax, 0x100
  jz 1b
  ${say('B')}
off:
  mov dx, 0x604
  mov ax, 0x3400
  out dx, ax
  ${spin}
# An IDT whose gate 2 is the handler.
nmi:
  lea rax, [rip + on_nmi]
  mov rbx, ${PAGE + 0x1000}
  mov [rbx + 32], ax
  mov word ptr [rbx + 34], cs
  mov byte ptr [rbx + 37], 0x8e
  shr rax, 16
  mov [rbx + 38], ax
  shr rax, 16
  mov [rbx + 40], eax
  mov word ptr [rbx + 0x200], 0xfff
  mov [rbx + 0x202], rbx
  lidt [rbx + 0x200]
  mov rsp, ${PAGE + 0x3000}
  ${say('n')}
  ${spin}
on_nmi:
  ${say('N')}
  iretq
none: .word 0
  .quad 0
`

async function machine(options: Partial<MachineOptions> = {}, source = SOURCE) {
  // vmx and svm, where the host has them and no nested state, could not be reset.
  const base = { kernel: elfKernel(source), memory: '64M', cpu: 'host,-vmx,-svm' }
  const made = await Machine.create({ ...base, ...options })
  onTestFinished(() => made.stop())
  const resets: GuestReset[] = []
  made.on('reset', reset => resets.push(reset))
  await made.start()
  return { made, resets }
}

async function scratch(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-reset-'))
  onTestFinished(() => rm(directory, { recursive: true, force: true }))
  return directory
}

const everything = (machine: Machine) => Buffer.from(machine.memory.read(0, machine.memory.size))

it.each([
  ['the keyboard controller, which is the ACPI reset register', 'k', {}],
  ['a triple fault, where that is asked for', 'f', { onTripleFault: 'reset' }],
] as const)('a guest resets itself by %s, again and again, and finds all as at its start', async (_, key, options) => {
  const { made, resets } = await machine(options)
  const fds = made.vcpus
  for (let round = 0; round < 3; round++) {
    await made.console.expect(/^\(0$/)
    made.console.write(key)
  }
  await made.console.expect(/^\(0$/)
  expect(resets).toHaveLength(3)
  expect(resets[0]!.tail).toBe('(0')
  expect([made.state, made.vcpus]).toEqual(['running', fds])
  made.console.write('q')
  expect(await made.wait()).toEqual({ reason: 'shutdown' })
})

it('with reboot: false it ends the machine, and the console is told', async () => {
  const { made, resets } = await machine({ reboot: false, onTripleFault: 'reset' })
  await made.console.expect('(0')
  made.console.write('f')
  expect(await made.wait()).toEqual({ reason: 'reset', tail: '(0' })
  expect(resets).toEqual([{ tail: '(0' }])
})

it('a triple fault is a crash otherwise, with what the console said last', async () => {
  const { made } = await machine()
  await made.console.expect('(0')
  made.console.write('f')
  expect(await made.wait()).toMatchObject({
    reason: 'crash',
    message: 'triple fault',
    report: expect.stringMatching(/the console's last lines:\n\(0$/),
  })
})

it('a guest that runs, or is paused, is reset from outside', async () => {
  const { made, resets } = await machine()
  await made.console.expect('(0')
  await made.reset()
  await made.console.expect(/^\(0$/)
  await made.pause()
  await made.reset()
  expect([made.state, resets.length]).toEqual(['paused', 2])
  expect(made.vcpus[0]!.getRegs().rbx).toBe(0n)
  await made.resume()
  await made.console.expect(/^\(0$/)
  const resetting = made.reset()
  await expect(made.checkpoint()).rejects.toThrow('cannot checkpoint: a reset is being made')
  await resetting
  await made.console.expect(/^\(0$/)
})

it('the state after a reset is that of a new machine, and its memory as sparse', async () => {
  const { made } = await machine()
  await made.console.expect('(0')
  await made.pause()
  made.memory.fill(0x2000000, 8 << 20, 7)
  await made.reset()
  const fresh = await Machine.create({ kernel: elfKernel(SOURCE), memory: '64M', cpu: 'host,-vmx,-svm' })
  onTestFinished(() => fresh.stop())
  expect(everything(made).equals(everything(fresh))).toBe(true)
  const state = (machine: Machine) => {
    const [vcpu] = machine.vcpus
    return {
      regs: vcpu!.getRegs(),
      sregs: vcpu!.getSregs2(),
      events: vcpu!.getVcpuEvents(),
      debug: vcpu!.getDebugregs(),
      xsave: Buffer.from(vcpu!.getXsave2()).toString('hex'),
      lapic: Buffer.from(vcpu!.getLapic().regs).toString('hex'),
    }
  }
  expect(state(made)).toEqual(state(fresh))
  const directory = await scratch()
  expect((await made.snapshot(join(directory, 'snap'))).bytes).toBeLessThan(1 << 20)
})

it('checkpoints and differentials from before a reset stay right after it', async () => {
  const directory = await scratch()
  const { made } = await machine()
  await made.console.expect('(0')
  await made.pause()
  made.memory.fill(0x2000000, 1 << 20, 7)
  const before = everything(made)
  const checkpoint = await made.checkpoint()
  await made.snapshot(join(directory, 'full'))
  await made.resume()
  made.console.write('k')
  await made.console.expect('(0')
  await made.pause()
  const after = everything(made)
  expect(after.equals(before)).toBe(false)
  await made.snapshot(join(directory, 'after'), { differential: true })
  const restored = async (name: string) => {
    const again = await Machine.restore(join(directory, name))
    onTestFinished(() => again.stop())
    return again
  }
  expect(everything(await restored('after')).equals(after)).toBe(true)

  await made.rollback(checkpoint)
  expect(everything(made).equals(before)).toBe(true)
  await made.snapshot(join(directory, 'back'), { differential: true })
  expect(everything(await restored('back')).equals(before)).toBe(true)
  // It goes on where it was, and a reset works from there, too.
  await made.resume()
  made.console.write('k')
  await made.console.expect('(0')
  await made.pause()
  const second = await made.checkpoint()
  const then = everything(made)
  await made.reset()
  await made.rollback(second)
  expect(everything(made).equals(then)).toBe(true)
})

it('a restored machine boots again from the file that it was started with, and says where there is none', async () => {
  const directory = await scratch()
  const kernel = join(directory, 'kernel')
  await writeFile(kernel, elfKernel(SOURCE))
  const { made } = await machine({ kernel })
  await made.console.expect('(0')
  await made.snapshot(join(directory, 'snap'))
  await made.stop()
  const again = await Machine.restore(join(directory, 'snap'))
  onTestFinished(() => again.stop())
  await again.resume()
  again.console.write('k')
  await again.console.expect(/^\(0$/)
  await rm(kernel)
  await expect(again.reset()).rejects.toThrow(/kernel: ".*kernel": there is no such file/)
  expect(again.state).toBe('running')
  again.console.write('k')
  expect(await again.wait()).toMatchObject({
    reason: 'crash',
    message: expect.stringMatching(/^it cannot be reset: kernel: .*no such file/),
    report: "the console's last lines:\n(0",
  })

  const bytes = await machine()
  await bytes.made.snapshot(join(directory, 'bytes'))
  const restored = await Machine.restore(join(directory, 'bytes'), { reboot: false })
  onTestFinished(() => restored.stop())
  expect(restored.config.reboot).toBe(false)
  await expect(restored.reset()).rejects.toThrow('kernel was given as bytes')
})

/** Counts in EBX without end; started by a SIPI, it does the same on the other vCPUs. */
const SMP = `
  cli
  mov rdi, 0x8000
  lea rsi, [rip + trampoline]
  mov rcx, trampoline_end - trampoline
  rep movsb
  ${say('(')}
  # INIT and SIPI to all but this one, vector 8 (Intel SDM vol. 3, 11.6.1), through the APIC's page.
  mov rbx, 0xfee00000
  mov dword ptr [rbx + 0x300], 0xc4500
  mov dword ptr [rbx + 0x300], 0xc4608
1:
  cmp dword ptr [0x8800], 0
  je 1b
  ${say('2')}
2:
  mov dx, 0x3fd
  in al, dx
  test al, 1
  jz 2b
  mov al, 0xfe
  out 0x64, al
  ${spin}
.code16
trampoline:
  xor ax, ax
  mov ds, ax
3:
  inc dword ptr [0x8800]
  jmp 3b
trampoline_end:
.code64
`

it('with several vCPUs, those that the guest had started wait for their SIPI again', async () => {
  const { made } = await machine({ vcpus: 3 }, SMP)
  for (let round = 0; round < 2; round++) {
    await made.console.expect(/^\(2$/)
    await made.pause()
    expect(made.vcpus.map(vcpu => vcpu.getMpState())).toEqual([0, 0, 0])
    await made.reset()
    expect(made.vcpus.map(vcpu => vcpu.getMpState())).toEqual([0, 1, 1])
    await made.resume()
    await made.console.expect(/^\(2$/)
    made.console.write('k')
  }
  await made.console.expect(/^\(2$/)
})

it('virtio devices are as no driver has left them', async () => {
  const path = join(await scratch(), 'disk')
  await writeFile(path, new Uint8Array(4096))
  // ACKNOWLEDGE in the status register (virtio 1.2, 4.2.2), and what was in it before.
  const source = `
    mov rbx, ${virtioSlot(0).address + REGISTER.Status}
    mov eax, [rbx]
    add al, '0'
    mov dx, 0x3f8
    out dx, al
    mov dword ptr [rbx], 1
    mov eax, [rbx]
    add al, '0'
    out dx, al
    mov al, 0xfe
    out 0x64, al
    ${spin}`
  const { made, resets } = await machine({ disks: [{ path }] }, source)
  for (let round = 0; round < 3; round++) await made.console.expect(/^01/)
  expect(resets.length).toBeGreaterThan(1)
  await made.stop()
})

it('a pause that meets the reset of a guest comes after it', async () => {
  const { made, resets } = await machine({}, `${say('(')}mov al, 0xfe\n out 0x64, al\n${spin}`)
  // A busy host may give the guest no time between a resume and the next pause.
  for (let round = 0; round < 20 || resets.length <= 3; round++) {
    await made.pause()
    expect(made.state).toBe('paused')
    await made.resume()
  }
  await made.snapshot(join(await scratch(), 'snap'))
  await made.stop()
})

it('an NMI reaches the guest, also one that is paused', async () => {
  const { made } = await machine()
  await made.console.expect('(0')
  made.console.write('n')
  await made.console.expect('n')
  await made.injectNmi()
  await made.console.expect('N')
  await made.pause()
  await made.injectNmi(0)
  await made.resume()
  await made.console.expect('N')
  await expect(made.injectNmi(1)).rejects.toThrow('there is no vCPU 1, only 1 in all')
  // One that waits when the machine is reset does not come after it, where the guest has no handler.
  await made.pause()
  await made.injectNmi()
  await made.reset()
  await made.resume()
  await made.console.expect(/^\(0$/)
  await new Promise(resolve => setTimeout(resolve, 50))
  expect(made.state).toBe('running')
})

it('the power button is the guest’s to attend to', async () => {
  const { made } = await machine()
  made.powerButton()
  await made.console.expect('(0')
  await new Promise(resolve => setTimeout(resolve, 50))
  expect(made.state).toBe('running')
  await made.reset()
  await made.console.expect('(0')
  made.console.write('b')
  await made.console.expect('b')
  made.powerButton()
  await made.console.expect('B')
  expect(await made.wait()).toEqual({ reason: 'shutdown' })
  expect(() => made.powerButton()).toThrow('cannot press the power button: the machine is ended')
})

it('a panic that the guest tells of is an event with the last lines, whoever has read them', async () => {
  const { made } = await machine()
  const panics: unknown[] = []
  made.on('panic', panic => panics.push(panic))
  await made.console.expect('(0')
  made.console.write('p')
  made.console.write('q')
  await made.wait()
  expect(panics).toEqual([{ event: 'crash-loaded', tail: '(0' }])
})
