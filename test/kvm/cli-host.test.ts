import { spawnSync } from 'node:child_process'
import { expect, it } from 'vitest'

function command(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['dist/cli/main.js', ...args], { encoding: 'utf8' })
  return { status, stdout, stderr }
}

it('doctor tells of this host, and its exit code says the same', () => {
  const { status, stdout } = command('doctor', '--deep', '--json')
  const report = JSON.parse(stdout)
  expect(report).toMatchObject({ schema: 1, facts: { apiVersion: 12 }, deep: { ok: report.ok } })
  expect(status).toBe(report.ok ? 0 : 1)
  const offered = report.checks.find(({ id }: { id: string }) => id === 'offer').status
  expect(offered).toBe(report.facts.offered.length > 0 ? 'pass' : 'fail')
  // Those of the kernel that runs.
  expect(report.parameters.map(({ module }: { module: string }) => module)).toContain('kvm')
})

it('doctor sees who has KVM open', () => {
  const holder = `const { Kvm } = await import('./dist/index.js')
    const kvm = Kvm.open(), vm = kvm.createVm()
    const { spawnSync } = await import('node:child_process')
    process.stdout.write(spawnSync(process.execPath, ['dist/cli/main.js', 'doctor', '--json']).stdout)
    process.stderr.write(String(process.pid)); vm.close()`
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', holder], {
    encoding: 'utf8',
  })
  const pid = Number(/\d+$/.exec(stderr)![0])
  expect(JSON.parse(stdout).users).toContainEqual(expect.objectContaining({ pid, vms: 1, vcpus: 0 }))
})

it('doctor --libvirt prints elements, whatever the host', () => {
  const { status, stdout } = command('doctor', '--libvirt')
  expect(status).toBe(0)
  expect(stdout).toContain("<cpu mode='host-passthrough'")
})

it('host plans, or says in one line why it cannot', () => {
  const { status, stdout } = command('host', 'enable-nested', '--dry-run', '--json')
  const answer = JSON.parse(stdout)
  if (answer.ok) expect(answer).toMatchObject({ schema: 1, done: false, nested: true })
  else expect(answer.reason).toMatch(/^(CPU|module|modprobe): /)
  expect(status).toBe(answer.ok ? 0 : 2)
})
