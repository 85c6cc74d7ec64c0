import { expect, it, onTestFinished } from 'vitest'
import { CPU_MODELS } from '../../lib/arch/x86_64/cpu-models/models.js'
import { vendorOf } from '../../lib/arch/x86_64/cpuid.js'
import { checkCpuid } from '../../lib/arch/x86_64/cpuid-check.js'
import { CpuidTable } from '../../lib/arch/x86_64/cpuid-table.js'
import { ConfigError } from '../../lib/errors.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import { decodeCpuid } from '../../lib/kvm/tables.js'
import { Machine } from '../../lib/machine/machine.js'
import { assemble } from '../guests/assemble.js'
import { elfKernel } from '../guests/elf.js'

/** Prints the brand string that CPUID gives, and powers off. */
const BRAND = `
  mov r8d, 0x80000002
next:
  mov eax, r8d
  cpuid
  mov [rip + text], eax
  mov [rip + text + 4], ebx
  mov [rip + text + 8], ecx
  mov [rip + text + 12], edx
  lea rsi, [rip + text]
  mov ecx, 16
1:
  lodsb
  mov dx, 0x3f8
  out dx, al
  loop 1b
  inc r8d
  cmp r8d, 0x80000005
  jne next
  mov dx, 0x604
  mov ax, 0x3400
  out dx, ax
  hlt
text: .space 16
`

async function machine(cpu: string): Promise<Machine> {
  const made = await Machine.create({ kernel: elfKernel(BRAND), memory: '64M', vcpus: 3, cpu })
  onTestFinished(() => made.stop())
  return made
}

const tablesOf = (made: Machine) => made.vcpus.map(vcpu => decodeCpuid(vcpu.configuredCpuid))

it.each(['host', ...CPU_MODELS.map(({ name }) => `${name},check`)])('%s: what KVM takes is consistent', async cpu => {
  for (const table of tablesOf(await machine(cpu))) expect(checkCpuid(table)).toEqual([])
})

it('a guest sees the model, and whoever listens is told what it goes without', async () => {
  using kvm = Kvm.open()
  const foreign = vendorOf(kvm.supportedCpuid()) === 'GenuineIntel' ? 'EPYC' : 'Haswell'
  const l1 = await machine(`${foreign},check`)
  const warnings: string[] = []
  l1.on('warning', (device, { message }) => warnings.push(`${device}: ${message}`))
  let text = ''
  l1.serial.on('data', chunk => {
    text += chunk.toString('latin1')
  })
  await l1.start()
  expect(await l1.wait()).toEqual({ reason: 'shutdown' })
  const { brand, vendor } = CPU_MODELS.find(({ name }) => name === foreign)!
  expect(text.replaceAll('\0', '')).toBe(brand)
  expect(warnings).toEqual([expect.stringMatching(`^cpu: KVM on this host does not offer .*vendor-${vendor}`)])
})

it('a model that this host cannot give is refused, by name', async () => {
  using kvm = Kvm.open()
  const foreign = vendorOf(kvm.supportedCpuid()) === 'GenuineIntel' ? 'EPYC' : 'Haswell'
  await expect(machine(foreign)).rejects.toThrow(ConfigError)
  await expect(machine(foreign)).rejects.toThrow(/does not offer vendor-.* to guests; go without/)
})

it('a VMM of one’s own gives its guest a table that it has edited', () => {
  using kvm = Kvm.open()
  const table = new CpuidTable(kvm.supportedCpuid())
  table.entry(0x40000000).ebx = 0x31415926
  table.remove('cx16')
  using vm = kvm.createVm()
  const ram = vm.addMemory({ guestAddress: 0, size: 0x10000 })
  const code = assemble('.code16\nmov eax, 0x40000000\ncpuid\nmov esi, ebx\nmov eax, 1\ncpuid\nhlt')
  ram.bytes.set(code, 0x1000)
  using vcpu = vm.createVcpu(0)
  vcpu.setCpuid(table.entries)
  const sregs = vcpu.getSregs()
  vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } })
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n, rflags: 2n })
  expect(vcpu.run().reason).toBe('hlt')
  const { rsi, rcx } = vcpu.getRegs()
  expect(rsi).toBe(0x31415926n)
  expect((rcx >> 13n) & 1n).toBe(0n)
})
