import { chmodSync, existsSync, mkdirSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest'
import { type Controlled, ControlServer } from '../../../lib/cli/control.js'
import { makeRuntimeDirectory, placeOf, registeredNames, runtimeDirectory } from '../../../lib/cli/control-names.js'
import { describeUptime, listMachines } from '../../../lib/cli/ps.js'

let scratch: string

beforeEach(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'nested-kvm-names-'))
  vi.stubEnv('XDG_RUNTIME_DIR', scratch)
})

afterEach(async () => {
  vi.unstubAllEnvs()
  await rm(scratch, { recursive: true })
})

const directory = () => join(scratch, 'nested-kvm')

/** A machine that has a name, and answers what `state` says. */
async function named(name: string, state = 'running') {
  makeRuntimeDirectory(name)
  const controlled = { machine: { state, config: { vcpus: 2, memory: 1 << 30, kernel: '/boot/vmlinuz' } }, saver: {} }
  const server = await ControlServer.listen(placeOf(name), Promise.resolve(controlled as unknown as Controlled))
  onTestFinished(() => server.close())
  return server
}

/** A socket that nobody listens on any more, as a killed process leaves it. */
async function dead(name: string): Promise<void> {
  makeRuntimeDirectory(name)
  const server = createServer()
  const { path } = placeOf(name)
  await new Promise<void>(resolve => server.listen(join(scratch, 'x'), resolve))
  // `close` would remove it under its own name.
  const { renameSync } = await import('node:fs')
  renameSync(join(scratch, 'x'), path)
  await new Promise(resolve => server.close(resolve))
}

describe('names', () => {
  it('the directory is in XDG_RUNTIME_DIR, else in /run for root, else among the temporary files', () => {
    expect(runtimeDirectory()).toBe(directory())
    for (const unusable of ['', 'relative']) {
      vi.stubEnv('XDG_RUNTIME_DIR', unusable)
      const user = process.getuid!()
      expect(runtimeDirectory()).toBe(user === 0 ? '/run/nested-kvm' : join(tmpdir(), `nested-kvm-${user}`))
    }
  })

  it.each(['vm1', 'a', '9', 'A.b_c-d', 'x'.repeat(48)])('%s is one', name => {
    expect(placeOf(name)).toEqual({ path: join(directory(), `${name}.sock`), field: 'name', value: name })
  })

  it.each(['', '.', '..', '-x', '.x', 'a b', 'a\0', 'ä', 'a\n', 'x'.repeat(49)])('%j is none', name => {
    expect(() => placeOf(name)).toThrow(/^name: .*(letters)/)
  })

  it('with a slash it is a path', () => {
    expect(placeOf('./vm.sock')).toEqual({ path: './vm.sock', field: 'control', value: './vm.sock' })
  })

  it('a directory too deep for sockets is told before the kernel says so', () => {
    vi.stubEnv('XDG_RUNTIME_DIR', join(scratch, 'x'.repeat(80)))
    expect(() => placeOf('vm1')).toThrow(/too long for a socket; set XDG_RUNTIME_DIR/)
  })

  it('the directory is made for this user alone, and not taken from others', async () => {
    makeRuntimeDirectory('vm1')
    expect(statSync(directory()).mode & 0o777).toBe(0o700)
    makeRuntimeDirectory('vm1')
    chmodSync(directory(), 0o770)
    expect(() => makeRuntimeDirectory('vm1')).toThrow(/is not for this user alone; set XDG_RUNTIME_DIR/)
    await rm(directory(), { recursive: true })
    mkdirSync(join(scratch, 'elsewhere'), { mode: 0o700 })
    symlinkSync(join(scratch, 'elsewhere'), directory())
    expect(() => makeRuntimeDirectory('vm1')).toThrow(/is no directory/)
    await rm(directory())
    writeFileSync(directory(), '')
    expect(() => makeRuntimeDirectory('vm1')).toThrow(/cannot be made \(EEXIST\)/)
  })

  it('a name is one machine’s, and free again after it', async () => {
    const server = await named('vm1')
    expect(statSync(server.path).mode & 0o777).toBe(0o600)
    await expect(named('vm1')).rejects.toThrow(
      'name: "vm1": a machine of this name runs already; give another name, or stop that machine: nested-kvm ctl vm1 stop',
    )
    await server.close()
    expect(existsSync(server.path)).toBe(false)
    await dead('vm1')
    await named('vm1')
    expect(readdirSync(directory())).toEqual(['vm1.sock'])
  })
})

describe('ps', () => {
  it('there may be none, and no directory', async () => {
    expect(registeredNames()).toEqual([])
    expect(await listMachines()).toEqual([])
  })

  it('lists those that answer, removes what dead ones left, and waits for nobody who hangs', async () => {
    await named('two', 'paused')
    await named('one')
    await dead('gone')
    const mute = createServer(() => {})
    await new Promise<void>(resolve => mute.listen(placeOf('mute').path, resolve))
    onTestFinished(() => void mute.close())
    writeFileSync(join(directory(), 'no socket'), '')
    const facts = { pid: process.pid, vcpus: 2, memory: 1 << 30, kernel: '/boot/vmlinuz', uptime: expect.any(Number) }
    expect(await listMachines(100)).toEqual([
      { name: 'mute', state: 'no answer' },
      { name: 'one', state: 'running', ...facts },
      { name: 'two', state: 'paused', ...facts },
    ])
    expect(readdirSync(directory()).sort()).toEqual(['mute.sock', 'no socket', 'one.sock', 'two.sock'])
  })

  it.each([
    [0.4, '0 s'],
    [12.9, '12 s'],
    [185, '3 min 5 s'],
    [7620, '2 h 7 min'],
    [349_300, '4 d 1 h'],
  ])('%d seconds are %s', (seconds, text) => {
    expect(describeUptime(seconds)).toBe(text)
  })
})
