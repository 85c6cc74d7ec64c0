import { readFile } from 'node:fs/promises'
import { expect, it } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
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
  await using machine = await linuxMachine(`${flag}\npoweroff -f`, { cpu: 'host,-svm,-vmx' })
  await machine.start()
  expect((await machine.console.expect(/flag=(\w*)\./, BOOT)).groups[0]).toBe('')
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

it('a reset ends the machine as one', { timeout: 300_000 }, async () => {
  await using machine = await linuxMachine('reboot -f')
  let reset = 0
  machine.on('reset', () => reset++)
  await machine.start()
  expect(await machine.wait()).toEqual({ reason: 'reset' })
  expect(reset).toBe(1)
})

it('an expectation of a machine that ends is told so', { timeout: 300_000 }, async () => {
  await using machine = await linuxMachine('echo going\npoweroff -f')
  await machine.start()
  await expect(machine.console.expect('never', BOOT)).rejects.toThrow(/the machine ended before "never" came/)
})
