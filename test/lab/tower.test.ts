import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'
import { writeL1Image } from '../../lib/cli/demo-image.js'
import { ensureAssets } from '../../lib/lab/assets.js'
import { Machine } from '../../lib/machine/machine.js'
import { decodeNestedState } from '../../lib/nested/state.js'
import { BOOT } from './linux.js'

const run = promisify(execFile)

it('the demo boots L1, and in it L2, each with the extension', { timeout: 600_000 }, async () => {
  const args = ['dist/cli/main.js', 'demo', '--where', 'host', '--json', '--timeout', '500']
  const { stdout } = await run(process.execPath, args)
  const lines = stdout.trim().split('\n')
  expect(lines).toHaveLength(1)
  const result = JSON.parse(lines[0]!)
  expect(result).toMatchObject({ ok: true, where: 'host', vendor: expect.stringMatching(/^(svm|vmx)$/) })
  expect(result.levels.map((level: { level: number }) => level.level)).toEqual([0, 1, 2])
  for (const { level, kernel, flag, hypervisor, bootSeconds } of result.levels) {
    expect(kernel).toMatch(/^\d+\.\d+/)
    expect(flag).toBe(result.vendor)
    if (level > 0) expect([hypervisor, bootSeconds > 0]).toEqual(['KVMKVMKVM', true])
  }
})

it('the nested state of a Linux L1 shows its Linux L2 running', { timeout: 600_000 }, async () => {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-tower-'))
  try {
    const assets = await ensureAssets(['guestKernel', 'busybox'])
    const initrd = join(directory, 'l1.cpio')
    await writeL1Image(initrd, assets, ['demo', '--level', '1'])
    const cmdline = 'console=ttyS0 panic=-1 quiet mitigations=off'
    await using machine = await Machine.create({ kernel: assets.guestKernel.vmlinuz, initrd, cmdline, memory: '1G' })
    await machine.start()
    await machine.console.expect('booting the L2 kernel', BOOT)
    const inL2 = []
    for (let sample = 0; sample < 200 && inL2.length < 3; sample++) {
      await new Promise(resolve => setTimeout(resolve, 50))
      await machine.pause()
      const state = decodeNestedState(machine.vcpus[0]!.getNestedState())
      if (state.guestMode) inL2.push(state)
      await machine.resume()
    }
    expect(inL2).toHaveLength(3)
    for (const state of inL2) {
      const block = state.format === 'svm' ? state.vmcbPa : state.vmcs12Pa
      expect(machine.memory.contains(Number(block), 4096)).toBe(true)
      expect(Number(block) % 4096).toBe(0)
      expect(state.data.length).toBeGreaterThanOrEqual(4096)
    }
    // L2 was stopped in the middle of its work several times, and comes up all the same.
    await machine.console.expect(/"level":2,"kernel":"\d+\.\d+/, BOOT)
    expect(await machine.wait()).toEqual({ reason: 'shutdown' })
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
})
