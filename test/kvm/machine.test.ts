import { readdirSync } from 'node:fs'
import { expect, it, onTestFinished } from 'vitest'
import type { MachineOptions } from '../../lib/config/machine-config.js'
import { Machine } from '../../lib/machine/machine.js'
import { assemble } from '../guests/assemble.js'
import { ELF_ORIGIN, elfKernel } from '../guests/elf.js'

/** What follows `label` on COM1. */
const print = (label: string) => `
  lea rsi, [rip + ${label}]
1:
  lodsb
  test al, al
  jz 2f
  mov dx, 0x3f8
  out dx, al
  jmp 1b
2:
`
const powerOff = `
  mov dx, 0x604
  mov ax, 0x3400        # SLP_EN, SLP_TYP 5 as the DSDT's _S5 says
  out dx, ax
  hlt
`

async function machine(source: string, options: Partial<MachineOptions> = {}): Promise<Machine> {
  const made = await Machine.create({ kernel: elfKernel(source), memory: '64M', ...options })
  onTestFinished(() => made.stop())
  return made
}

it('a kernel is entered in long mode, talks on the console and powers off', async () => {
  const l1 = await machine(`${print('text')}${powerOff}\ntext: .asciz "hello from L1\\r\\n"`)
  const read: Buffer[] = []
  l1.console.on('data', chunk => read.push(chunk))
  expect(l1.state).toBe('created')
  await l1.start()
  expect(l1.state).toBe('running')
  expect((await l1.console.expect(/from (\w+)\r/)).groups).toEqual(['L1'])
  expect(await l1.wait()).toEqual({ reason: 'shutdown' })
  expect(Buffer.concat(read).toString()).toBe('hello from L1\r\n')
  expect(l1.state).toBe('ended')
})

it('64 vCPUs start by INIT and SIPI, and each finds its own x2APIC id', { timeout: 60_000 }, async () => {
  const [START, IDS, COUNT] = [0x3_0000, 0x800, 0x900]
  const source = `
    mov ecx, 0x1b         # IA32_APIC_BASE: x2APIC
    rdmsr
    or eax, 0xc00
    wrmsr
    xor edx, edx
    mov ecx, 0x830        # ICR: to all but itself
    mov eax, 0xc4500      # INIT
    wrmsr
    mov eax, ${0xc4600 + START / 4096} # start-up there
    wrmsr
    mov ebx, ${START + COUNT}
  3:
    cmp dword ptr [rbx], 63
    jb 3b
    ${print('text')}
    cli
    hlt
    text: .asciz "all here"`
  const trampoline = `.code16
    mov ax, cs
    mov ds, ax
    mov eax, 0xb
    xor ecx, ecx
    cpuid
    mov esi, edx          # this one's x2APIC id
    mov eax, 1
    cpuid
    shr ebx, 24           # and its initial APIC id
    mov byte ptr [si + ${IDS}], bl
    lock inc dword ptr [${COUNT}]
  4:
    hlt
    jmp 4b`
  const l1 = await machine(source, { vcpus: 64 })
  l1.memory.write(START, assemble(trampoline, 0))
  await l1.start()
  await l1.console.expect('all here')
  expect(l1.vcpus).toHaveLength(64)
  expect([...l1.memory.view(START + IDS, 64)]).toEqual(Array.from({ length: 64 }, (_, id) => id))
})

it('the boot parameters hold the command line and the memory map', async () => {
  // boot_params: e820_entries at 0x1e8, cmd_line_ptr at 0x228.
  const source = `
    movzx eax, byte ptr [rsi + 0x1e8]
    add al, 0x30
    mov dx, 0x3f8
    out dx, al
    mov esi, [rsi + 0x228]
    jmp 3f
  text: .asciz ""
  3: ${print('text').replace('lea rsi, [rip + text]', '')}${powerOff}`
  const l1 = await machine(source, { cmdline: 'one=1 two' })
  await l1.start()
  expect((await l1.console.expect(/^(\d)one=1 two/)).groups[0]).toMatch(/[3-9]/)
  await l1.wait()
})

it('what is written to the console arrives at the guest', async () => {
  const l1 = await machine(`
  wait:
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz wait
    mov dx, 0x3f8
    in al, dx
    add al, 1
    out dx, al
    cmp al, '!' + 1
    jne wait
    ${powerOff}`)
  await l1.start()
  l1.console.write('HAL!')
  await l1.console.expect('IBM"')
  expect(await l1.wait()).toEqual({ reason: 'shutdown' })
})

it('the debug-exit device gives its code', async () => {
  const l1 = await machine('mov eax, 3\nout 0xf4, eax\nhlt')
  await l1.start()
  expect(await l1.wait()).toEqual({ reason: 'debug-exit', code: 7 })
})

it('a triple fault is a crash, told with registers and code', async () => {
  const l1 = await machine('mov rbx, 0x1234567890abcdef\nud2')
  const crashes: unknown[] = []
  l1.on('crash', end => crashes.push(end))
  await l1.start()
  const end = await l1.wait()
  if (end.reason !== 'crash') throw new Error(end.reason)
  expect(end.message).toBe('triple fault')
  expect(end.report).toContain('vCPU 0\nexit  shutdown\n')
  expect(end.report).toContain('rbx 1234567890abcdef')
  expect(end.report).toContain(`rip ${(ELF_ORIGIN + 10).toString(16).padStart(16, '0')}`)
  expect(end.report).toContain('code  0f 0b')
  expect(crashes).toEqual([end])
})

it('pause takes a guest that spins with interrupts off out of KVM_RUN, resume lets it go on', async () => {
  const l1 = await machine('cli\nspin: inc rbx\njmp spin')
  await l1.start()
  const seen: bigint[] = []
  for (let round = 0; round < 3; round++) {
    await new Promise(resolve => setTimeout(resolve, 20))
    await l1.pause()
    seen.push(l1.vcpus[0]!.getRegs().rbx)
    await new Promise(resolve => setTimeout(resolve, 20))
    expect(l1.vcpus[0]!.getRegs().rbx).toBe(seen[round])
    await l1.resume()
  }
  expect(seen[1]).toBeGreaterThan(seen[0]!)
  expect(seen[2]).toBeGreaterThan(seen[1]!)
  expect(() => l1.vcpus[0]!.getRegs()).toThrow(/EBUSY.*pause\(\) it first/)
  await l1.stop()
  expect(await l1.wait()).toEqual({ reason: 'stopped' })
})

it('what cannot be done in a state is refused by name', async () => {
  const l1 = await machine('spin: jmp spin')
  await expect(l1.pause()).rejects.toThrow('cannot pause: the machine is created')
  await l1.start()
  await expect(l1.start()).rejects.toThrow('cannot start: the machine is running')
  await expect(l1.resume()).rejects.toThrow('cannot resume: the machine is running')
  await l1.stop()
  await l1.stop()
  await expect(l1.start()).rejects.toThrow('cannot start: the machine is ended')
})

it('an expectation that is not met ends in time and shows what came', async () => {
  const l1 = await machine(`${print('text')}spin: jmp spin\ntext: .asciz "something else\\n"`)
  await l1.start()
  await l1.console.expect('something')
  await expect(l1.console.expect('never', { timeout: 50 })).rejects.toThrow(
    /console: "never" did not come within 0.05 s\n else/,
  )
})

it('several vCPUs: the others wait for their SIPI', async () => {
  const l1 = await machine(`${print('text')}${powerOff}\ntext: .asciz "up"`, { vcpus: 3 })
  expect(l1.vcpus.map(vcpu => vcpu.getMpState())).toEqual([0, 1, 1])
  await l1.start()
  expect(await l1.wait()).toEqual({ reason: 'shutdown' })
})

it('a machine that could not be made, and one that has ended, leave nothing open', async () => {
  const open = () => readdirSync('/proc/self/fd').length
  const once = async () => {
    const l1 = await machine(powerOff)
    await l1.start()
    await l1.wait()
    await expect(machine('hlt', { cpu: 'host,+nonsense' })).rejects.toThrow(/no CPU flag "nonsense"/)
    await expect(machine('hlt', { initrd: new Uint8Array(128 << 20) })).rejects.toThrow(/initrd/)
  }
  await once()
  const before = open()
  for (let i = 0; i < 10; i++) await once()
  expect(open()).toBe(before)
})

it('a paused machine that is about to end does not go on', async () => {
  const l1 = await machine('spin: jmp spin')
  await l1.start()
  await l1.pause()
  const stopped = l1.stop()
  await expect(l1.resume()).rejects.toThrow('cannot resume: the machine is ended')
  await stopped
})
