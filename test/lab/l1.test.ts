import { readFile } from 'node:fs/promises'
import { expect, it } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
import { Machine } from '../../lib/machine/machine.js'
import type { GuestReset } from '../../lib/machine/machine-events.js'
import { decodeNestedState } from '../../lib/nested/state.js'
import { WRITABLE_VMX_MSRS } from '../../lib/nested/vmx-capabilities.js'
import { vmxFeaturesOf } from '../../lib/nested/vmx-switch.js'
import { elfKernel } from '../guests/elf.js'
import { loadL1 } from '../guests/l1.js'
import { L1_MEMORY, L1_ORIGIN } from '../guests/l1-layout.js'
import { enterMode } from '../kvm/guest.js'
import { hostExtension } from './l1-run.js'
import { BOOT, linuxMachine } from './linux.js'

const flag = 'echo "flag=$(grep -o -w -m1 -e svm -e vmx /proc/cpuinfo)."'

it('a stock kernel boots, sees the extension, talks on its console and powers off', { timeout: 300_000 }, async () => {
  await using machine = await linuxMachine(`${flag}\necho ready\nread -r line\necho "you said $line"\npoweroff -f`)
  await machine.start()
  expect((await machine.console.expect(/flag=(\w*)\./, BOOT)).groups[0]).toMatch(/^(svm|vmx)$/)
  await machine.console.expect('ready', BOOT)
  machine.console.write('hello\n')
  await machine.console.expect('you said hello', BOOT)
  expect(await machine.wait()).toEqual({ reason: 'shutdown' })
  expect(machine.state).toBe('ended')
})

it('an extension that is withheld is not there', { timeout: 300_000 }, async () => {
  const name = hostExtension() === 'svm' ? 'kvm_amd' : 'kvm_intel'
  const script = `${flag}\necho "loaded=$(grep -c ^${name} /proc/modules)."\npoweroff -f`
  await using machine = await linuxMachine(script, { cpu: 'host,-svm,-vmx', modules: [name] })
  await machine.start()
  // Its KVM refuses to load.
  await machine.console.expect(`insmod: can't insert '/modules/${name}.ko': Operation not supported`, BOOT)
  expect((await machine.console.expect(/flag=(\w*)\./, BOOT)).groups[0]).toBe('')
  expect((await machine.console.expect(/loaded=(\d)\./, BOOT)).groups[0]).toBe('0')
  expect(await machine.wait()).toEqual({ reason: 'shutdown' })
})

it('the ELF vmlinux of the same kernel boots', { timeout: 300_000 }, async () => {
  const { guestKernel } = await ensureAssets(['guestKernel'])
  expect((await readFile(guestKernel.image)).subarray(0, 4).toString('latin1')).toBe('\x7fELF')
  await using machine = await linuxMachine('echo ready\npoweroff -f', { image: 'image' })
  await machine.start()
  await machine.console.expect('ready', BOOT)
  expect(await machine.wait()).toEqual({ reason: 'shutdown' })
})

it('two vCPUs come up, are paused while they run, and go on', { timeout: 300_000 }, async () => {
  const count = 'while :; do n=$((n + 1)); echo "count=$n."; usleep 1000; done'
  await using machine = await linuxMachine(`echo "cpus=$(nproc)."\n${count}`, { vcpus: 2 })
  await machine.start()
  expect((await machine.console.expect(/cpus=(\d+)\./, BOOT)).groups[0]).toBe('2')
  for (let round = 0; round < 5; round++) {
    await machine.console.expect(/count=\d+\./, BOOT)
    await machine.pause()
    expect(machine.state).toBe('paused')
    // The state of a paused vCPU can be read.
    for (const vcpu of machine.vcpus) expect(vcpu.getRegs().rip).toBeGreaterThan(0n)
    await machine.resume()
  }
  const seen = Number((await machine.console.expect(/count=(\d+)\./, BOOT)).groups[0])
  expect(Number((await machine.console.expect(/count=(\d+)\./, BOOT)).groups[0])).toBe(seen + 1)
  await machine.stop()
  expect(await machine.wait()).toEqual({ reason: 'stopped' })
})

it('a guest that reboots comes up again, in the same machine', { timeout: 300_000 }, async () => {
  await using machine = await linuxMachine('echo init\nread line\n$line -f', { reboot: true, vcpus: 2 })
  const resets: GuestReset[] = []
  machine.on('reset', reset => resets.push(reset))
  await machine.start()
  await machine.console.expect('init', BOOT)
  machine.console.write('reboot\n')
  await machine.console.expect('init', BOOT)
  expect([machine.state, resets.length]).toEqual(['running', 1])
  machine.console.write('poweroff\n')
  expect(await machine.wait()).toEqual({ reason: 'shutdown' })
})

it('an expectation of a machine that ends is told so', { timeout: 300_000 }, async () => {
  await using machine = await linuxMachine('echo going\npoweroff -f')
  await machine.start()
  await expect(machine.console.expect('never', BOOT)).rejects.toThrow(/the machine ended before "never" came/)
})

it('a machine is reset while L2 runs, and L1 and L2 come up in it again', { timeout: 300_000 }, async () => {
  const options = { rounds: 2 ** 30, period: 2 ** 30, nestedPaging: true, interrupt: 'none' } as const
  const isVmx = hostExtension() === 'vmx'
  const created = { kernel: elfKernel('hlt'), memory: '64M', cpu: isVmx ? 'host,-vmx-pml' : 'host,-vgif' } as const
  await using machine = await Machine.create(created)
  const [vcpu] = machine.vcpus
  const capabilities = () => (isVmx ? vcpu!.getMsrs(WRITABLE_VMX_MSRS) : [])
  const offered = capabilities()
  expect(vmxFeaturesOf(new Map(offered.map(({ index, value }) => [index, value])))).not.toContain('vmx-pml')
  const load = () => {
    loadL1(machine.memory.view(0, L1_MEMORY), hostExtension(), options, false)
    enterMode(vcpu!, machine.memory.view(0, L1_MEMORY), 'long', { rip: BigInt(L1_ORIGIN) })
  }
  const inL2 = async () => {
    for (let sample = 0; sample < 100; sample++) {
      await new Promise(resolve => setTimeout(resolve, 20))
      await machine.pause()
      if (decodeNestedState(vcpu!.getNestedState()).guestMode) return
      await machine.resume()
    }
    throw new Error('L2 does not run')
  }
  load()
  await machine.start()
  const fresh = await Machine.create(created)
  const { cr0, cr4, efer } = fresh.vcpus[0]!.getSregs()
  const idle = fresh.vcpus[0]!.getNestedState()
  await fresh.stop()
  for (let round = 0; round < 2; round++) {
    await inL2()
    await machine.reset()
    expect(vcpu!.getNestedState()).toEqual(idle)
    expect(capabilities()).toEqual(offered)
    expect(vcpu!.getSregs()).toMatchObject({ cr0, cr4, efer })
    load()
    await machine.resume()
  }
  await inL2()
})
