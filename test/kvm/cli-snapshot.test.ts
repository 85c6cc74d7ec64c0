import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readlinkSync, statSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { expect, it, onTestFinished, vi } from 'vitest'
import { Machine } from '../../lib/machine/machine.js'
import { elfKernel } from '../guests/elf.js'

vi.setConfig({ testTimeout: 60_000 })

/** These run the compiled command line (`dist`), as its users do. */
const MAIN = 'dist/cli/main.js'

/** Says the alphabet again and again; what is typed ends it through the debug-exit device (port 0xf4). */
const ALPHABET = `
  xor rbx, rbx
next:
  mov rax, rbx
  xor rdx, rdx
  mov rcx, 26
  div rcx
  lea rax, [rdx + 'a']
  mov dx, 0x3f8
  out dx, al
  inc rbx
  mov rcx, 2000
spin:
  dec rcx
  jnz spin
  mov dx, 0x3fd
  in al, dx
  test al, 1
  jz next
  mov dx, 0x3f8
  in al, dx
  cmp al, 'q'
  jne next
  mov al, 21
  mov dx, 0xf4
  out dx, al
`
/** What the debug-exit device makes of 21. */
const QUIT = 43
const MEMORY = '64M'

interface Running {
  readonly child: ChildProcess
  /** All of its output so far. */
  text(): string
  errors(): string
  ended(): Promise<number | null>
}

function start(args: readonly string[], command: readonly string[] = [process.execPath, MAIN]): Running {
  const child = spawn(command[0]!, [...command.slice(1), ...args], { stdio: 'pipe' })
  onTestFinished(() => void child.kill('SIGKILL'))
  const [out, err]: Buffer[][] = [[], []]
  child.stdout.on('data', chunk => out!.push(chunk))
  child.stderr.on('data', chunk => err!.push(chunk))
  const end = once(child, 'close') as Promise<[number | null]>
  return {
    child,
    text: () => Buffer.concat(out!).toString('latin1'),
    errors: () => Buffer.concat(err!).toString(),
    ended: async () => (await end)[0],
  }
}

async function until(what: () => boolean): Promise<void> {
  for (const begin = Date.now(); !what(); ) {
    if (Date.now() - begin > 20_000) throw new Error(`it did not come: ${what}`)
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

async function scratch(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-cli-'))
  onTestFinished(() => rm(directory, { recursive: true, force: true }))
  writeFileSync(join(directory, 'kernel'), elfKernel(ALPHABET))
  return directory
}

/** A machine that says the alphabet, with its control socket in `directory`. */
async function alphabet(directory: string, more: readonly string[] = []): Promise<Running & { control: string }> {
  const control = join(directory, 'control')
  const options = ['--kernel', join(directory, 'kernel'), '--memory', MEMORY, '--cpu', 'host,-vmx,-svm']
  const machine = start(['run', ...options, '--control', control, ...more])
  await until(() => machine.text().length > 10)
  return { ...machine, control }
}

interface Outcome {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

function cli(...args: string[]): Promise<Outcome> {
  return new Promise(resolve => {
    execFile(process.execPath, [MAIN, ...args], (error, stdout, stderr) => {
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr })
    })
  })
}

/** Sends bytes to the socket and gives the lines that come back. */
async function say(control: string, bytes: string | Uint8Array, lines = 1): Promise<unknown[]> {
  const socket = connect(control)
  let text = ''
  socket.on('data', chunk => {
    text += chunk
  })
  socket.on('error', () => {})
  socket.write(bytes)
  await until(() => text.split('\n').length > lines || socket.destroyed)
  socket.destroy()
  return text
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
}

const isAlphabet = (text: string) =>
  [...text].every((c, i) => i === 0 || c.charCodeAt(0) === ((text.charCodeAt(i - 1) - 96) % 26) + 97)

it('a machine is saved by another process, stopped, and goes on in a third', async () => {
  const directory = await scratch()
  const snap = join(directory, 'snap')
  const first = await alphabet(directory)
  expect(statSync(first.control).mode & 0o777).toBe(0o600)
  const saved = await cli('ctl', first.control, 'snapshot', snap, '--stop', '--json')
  expect(saved).toMatchObject({ code: 0, stderr: '' })
  expect(JSON.parse(saved.stdout)).toMatchObject({ ok: true, directory: snap, differential: false, stopped: true })
  expect(await first.ended()).toBe(4)
  expect(existsSync(first.control)).toBe(false)

  const second = start(['restore', snap, '--verify', '--clock', 'stopped', '--control', first.control])
  await until(() => second.text().length > 30)
  expect(isAlphabet(second.text())).toBe(true)
  // Nothing is lost and nothing said twice.
  expect(isAlphabet(first.text() + second.text())).toBe(true)
  expect((await say(first.control, '{"do":"status"}\n'))[0]).toMatchObject({
    ok: true,
    state: 'running',
    pid: second.child.pid,
    vcpus: 1,
    memory: 64 << 20,
  })
  second.child.stdin!.write('q')
  expect(await second.ended()).toBe(QUIT)
  expect(existsSync(first.control)).toBe(false)
})

it('a running machine is saved and goes on; differentials are verified, squashed and restored', async () => {
  const directory = await scratch()
  const machine = await alphabet(directory)
  const [full, diff, whole] = ['full', 'diff', 'whole'].map(name => join(directory, name)) as [string, string, string]
  const early = await cli('ctl', machine.control, 'snapshot', diff, '--differential')
  expect([early.code, early.stderr]).toEqual([1, expect.stringMatching(/take a full snapshot first/)])
  expect((await cli('ctl', machine.control, 'snapshot', full)).stdout).toMatch(/^saved .*full: \d.* in \d/)
  expect((await cli('ctl', machine.control, 'snapshot', diff, '--differential')).code).toBe(0)
  const length = machine.text().length
  await until(() => machine.text().length > length + 30)
  expect(isAlphabet(machine.text())).toBe(true)
  machine.child.kill('SIGTERM')
  expect(await machine.ended()).toBe(143)

  const verified = await cli('snapshot', 'verify', diff, '--json')
  expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, chain: [diff, full] })
  const squashed = await cli('snapshot', 'squash', '--json', diff, whole)
  expect(JSON.parse(squashed.stdout)).toMatchObject({ ok: true, directory: whole })
  await rm(full, { recursive: true })
  expect(await cli('snapshot', 'verify', diff)).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('is missing'),
  })
  const again = start(['restore', whole, '--json'])
  await until(() => again.errors().length > 30)
  again.child.stdin!.write('q')
  expect(await again.ended()).toBe(QUIT)
  expect(isAlphabet(again.errors())).toBe(true)
  expect(JSON.parse(again.text())).toEqual({ ok: false, end: 'debug-exit', exitCode: QUIT })
})

it('several clients pause, resume, ask and stop', async () => {
  const machine = await alphabet(await scratch())
  const state = (answers: unknown[]) => (answers as { ok: boolean; state: string }[]).map(({ state }) => state)
  expect(state(await say(machine.control, '{"do":"pause"}\r\n\n{"do":"pause"}\n{"do":"status"}\n', 3))).toEqual([
    'paused',
    'paused',
    'paused',
  ])
  await new Promise(resolve => setTimeout(resolve, 100))
  const { length } = machine.text()
  await new Promise(resolve => setTimeout(resolve, 200))
  expect(machine.text().length).toBe(length)
  const all = await Promise.all(Array.from({ length: 20 }, () => say(machine.control, '{"do":"status"}\n')))
  expect(state(all.flat())).toEqual(Array(20).fill('paused'))
  const resumed = await say(machine.control, '{"do":"resume"}\n{"do":"resume"}\n{"do":"cancel"}\n', 3)
  expect(resumed).toEqual([
    { ok: true, state: 'running' },
    { ok: false, reason: 'cannot resume: the machine is running' },
    { ok: false, reason: 'no snapshot is being made' },
  ])
  await until(() => machine.text().length > length + 10)
  expect(isAlphabet(machine.text())).toBe(true)
  expect(await say(machine.control, '{"do":"stop"}\n')).toEqual([{ ok: true, state: 'ended' }])
  expect(await machine.ended()).toBe(4)
})

it('garbage gets an error and does not hurt the machine', async () => {
  const machine = await alphabet(await scratch())
  const refused = async (bytes: string | Uint8Array, reason: RegExp) => {
    expect(await say(machine.control, bytes)).toEqual([{ ok: false, reason: expect.stringMatching(reason) }])
  }
  await refused('hello\n', /not JSON/)
  await refused('[]\n', /an object is needed|a JSON object/)
  await refused('{"do":"reboot"}\n', /"reboot": it is none of snapshot, nmi, status/)
  await refused('{"do":"pause","now":true}\n', /"now": pause has no such member/)
  await refused('{"do":"snapshot"}\n', /a path is needed/)
  await refused('{"do":"snapshot","directory":7}\n', /directory: 7: a string is needed/)
  await refused('{"do":"snapshot","directory":"a\\u0000b"}\n', /a path is needed/)
  await refused('{"do":"snapshot","directory":"/proc/no"}\n', /\/proc/)
  await refused(Uint8Array.of(0xff, 0xfe, 0x0a), /not UTF-8/)
  await refused('x'.repeat(100_000), /longer than 65536/)
  await refused(`${'[ '.repeat(30_000)}\n`, /not JSON/)
  // One that says nothing and one that goes away in the middle of a line.
  const mute = connect(machine.control)
  connect(machine.control).end('{"do":')
  await once(mute, 'connect')
  expect(await say(machine.control, '{"do":"status"}\n')).toMatchObject([{ ok: true, state: 'running' }])
  machine.child.stdin!.write('q')
  expect(await machine.ended()).toBe(QUIT)
  expect(isAlphabet(machine.text())).toBe(true)
})

it('a stale socket is replaced, a live one and what is no socket are refused', async () => {
  const directory = await scratch()
  const machine = await alphabet(directory)
  const options = ['--kernel', join(directory, 'kernel'), '--memory', MEMORY, '--cpu', 'host,-vmx,-svm']
  const second = await cli('run', ...options, '--control', machine.control)
  expect(second).toMatchObject({ code: 2, stderr: expect.stringContaining('another machine answers there') })
  expect(await say(machine.control, '{"do":"status"}\n')).toMatchObject([{ ok: true, pid: machine.child.pid }])
  // Killed, it leaves its socket behind.
  machine.child.kill('SIGKILL')
  await machine.ended()
  expect(existsSync(machine.control)).toBe(true)
  const dead = await cli('ctl', machine.control, 'snapshot', join(directory, 'snap'))
  expect(dead).toMatchObject({ code: 2, stderr: expect.stringContaining('no machine answers there') })
  const third = await alphabet(directory)
  expect(await say(third.control, '{"do":"stop"}\n')).toMatchObject([{ ok: true }])
  await third.ended()
  expect(readdirSync(directory)).toEqual(['kernel'])
  const file = await cli('run', ...options, '--control', join(directory, 'kernel'))
  expect(file).toMatchObject({ code: 2, stderr: expect.stringContaining('not a socket') })
  const long = await cli('run', ...options, '--control', join(directory, 'x'.repeat(100)))
  expect(long).toMatchObject({ code: 2, stderr: expect.stringContaining('give a shorter path') })
})

it('a machine with a name is listed, attached to, reset and stopped by it', async () => {
  const directory = await scratch()
  // For the commands that follow, too: they have this process's environment.
  vi.stubEnv('XDG_RUNTIME_DIR', directory)
  onTestFinished(() => void vi.unstubAllEnvs())
  const options = ['--kernel', join(directory, 'kernel'), '--memory', MEMORY, '--cpu', 'host,-vmx,-svm']
  const machine = start(['run', ...options, '--name', 'vm1'])
  await until(() => machine.text().length > 10)
  const { machines } = JSON.parse((await cli('ps', '--json')).stdout)
  const facts = {
    state: 'running',
    pid: machine.child.pid,
    vcpus: 1,
    memory: 64 << 20,
    kernel: join(directory, 'kernel'),
  }
  expect(machines).toMatchObject([{ name: 'vm1', ...facts }])
  expect((await cli('ps')).stdout).toMatch(/^NAME +PID +STATE .*\nvm1 +\d+ +running +1 +64 MiB +\d+ s +kernel\n$/)
  expect(await cli('run', ...options, '--name', 'vm1')).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('a machine of this name runs already'),
  })

  const attached = start(['ctl', 'vm1', 'console'])
  await until(() => attached.text().length > 30)
  expect(isAlphabet(attached.text())).toBe(true)
  expect((await cli('ctl', 'vm1', 'pause')).stdout).toBe('paused\n')
  expect((await cli('ctl', 'vm1', 'status')).stdout).toMatch(/^name +vm1\nstate +paused\n/)
  expect(JSON.parse((await cli('ctl', 'vm1', 'reset', '--json')).stdout)).toEqual({ ok: true, state: 'paused' })
  expect((await cli('ctl', 'vm1', 'resume')).stdout).toBe('running\n')
  await until(() => /boots again\]\na/.test(machine.text()))
  expect(await cli('ctl', 'vm1', 'nmi', '7')).toMatchObject({ code: 1, stderr: expect.stringContaining('no vCPU 7') })
  expect((await cli('ctl', 'vm1', 'power-off')).stdout).toBe('running\n')
  // It attends to no power button, but to what is typed by whom ever.
  attached.child.stdin!.write('q')
  expect(await machine.ended()).toBe(QUIT)
  expect(await attached.ended()).toBe(0)
  expect(JSON.parse((await cli('ps', '--json')).stdout)).toEqual({ ok: true, machines: [] })
  expect(await cli('ctl', 'vm1', 'status')).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('no machine of this'),
  })
})

it('the key to leave an attached console leaves the machine running', async () => {
  const machine = await alphabet(await scratch())
  const attached = inTerminal(['ctl', machine.control, 'console'])
  await until(() => attached.text().length > 30)
  attached.child.stdin!.write('\x01h')
  await until(() => attached.text().includes('Ctrl-A x       leave'))
  attached.child.stdin!.write('\x01x')
  expect(await attached.ended()).toBe(0)
  const { length } = machine.text()
  await until(() => machine.text().length > length)
  machine.child.stdin!.write('q')
  expect(await machine.ended()).toBe(QUIT)
})

it('a save that is cancelled leaves nothing, and the machine goes on', async () => {
  const directory = await scratch()
  await using machine = await Machine.create({ kernel: elfKernel(ALPHABET), memory: MEMORY, cpu: 'host,-vmx,-svm' })
  await machine.start()
  const abort = new AbortController()
  const saving = machine.snapshot(join(directory, 'snap'), { signal: abort.signal })
  abort.abort(new Error('enough'))
  await expect(saving).rejects.toThrow('enough')
  expect([machine.state, readdirSync(directory)]).toEqual(['running', ['kernel']])
  await machine.snapshot(join(directory, 'snap'))
})

it('Ctrl-C in the client of a save cancels it', async () => {
  const directory = await scratch()
  // Stands for a machine whose save takes long: it asks for the cancel that Ctrl-C must send.
  const asked: string[] = []
  const control = join(directory, 'slow')
  let saving: (line: string) => void = () => {}
  const server = createServer(socket => {
    socket.on('data', chunk => {
      for (const line of String(chunk).trim().split('\n')) {
        const request = JSON.parse(line) as { do: string }
        asked.push(request.do)
        if (request.do === 'snapshot') saving = answer => socket.write(answer)
        else if (request.do === 'status') socket.write('{"ok":true,"state":"paused","saving":{"done":1,"total":2}}\n')
        else {
          socket.write('{"ok":true}\n')
          saving('{"ok":false,"reason":"the save was cancelled"}\n')
        }
      }
    })
  }).listen(control)
  onTestFinished(() => void server.close())
  const client = start(['ctl', control, 'snapshot', join(directory, 'snap'), '--json'])
  await until(() => asked.includes('status'))
  client.child.kill('SIGINT')
  expect(await client.ended()).toBe(130)
  expect(asked.at(-1)).toBe('cancel')
  expect(JSON.parse(client.text())).toEqual({ ok: false, reason: 'interrupted by SIGINT' })
})

/** Whether the process has a file of this name open. */
function hasOpen({ child }: Running, name: string): boolean {
  const directory = `/proc/${child.pid}/fd`
  return readdirSync(directory).some(fd => {
    try {
      return basename(readlinkSync(join(directory, fd))) === name
    } catch {
      // Closed just now.
      return false
    }
  })
}

it('Ctrl-C ends the check and the squash of a large snapshot, and leaves nothing behind', async () => {
  const directory = await scratch()
  const kernel = join(directory, 'kernel')
  await using machine = await Machine.create({ kernel, memory: '1G', cpu: 'host,-vmx,-svm' })
  for (const part of machine.memory.parts(64 << 20, 700 << 20)) part.fill(0x5a)
  await machine.snapshot(join(directory, 'snap'))
  const before = readdirSync(directory)
  const [snap, squashed] = [join(directory, 'snap'), join(directory, 'squashed')]
  for (const args of [
    ['snapshot', 'verify', snap],
    ['snapshot', 'squash', snap, squashed],
    ['restore', snap, '--verify'],
  ]) {
    const running = start([...args, '--json'])
    await until(() => hasOpen(running, 'memory'))
    running.child.kill('SIGINT')
    expect([args, await running.ended()]).toEqual([args, 130])
    expect(JSON.parse(running.text())).toEqual({ ok: false, reason: 'interrupted by SIGINT' })
    expect(readdirSync(directory)).toEqual(before)
  }
})

/** A terminal of its own for the command: `script` (bsdutils), which every Debian has. */
function inTerminal(args: readonly string[]): Running {
  const quoted = [process.execPath, MAIN, ...args].map(word => `'${word}'`).join(' ')
  return start(['--quiet', '--return', '--command', quoted, '/dev/null'], ['script'])
}

it('Ctrl-A s saves: to a directory that is asked for, or the one that was given', async () => {
  const directory = await scratch()
  const options = ['--kernel', join(directory, 'kernel'), '--memory', MEMORY, '--cpu', 'host,-vmx,-svm']
  const first = inTerminal(['run', ...options])
  const type = (keys: string) => first.child.stdin!.write(keys)
  await until(() => first.text().length > 10)
  type('\x01h')
  await until(() => /Ctrl-A s +save a snapshot/.test(first.text()))
  type('\x01s')
  await until(() => first.text().includes('to which directory? '))
  type('\x03')
  await until(() => first.text().includes('[not saved]'))
  type(`\x01s${directory}/snop`)
  await until(() => first.text().endsWith('snop'))
  type('\x7f\x7fap\r')
  await until(() => /\[saved: .* in .* s\]/.test(first.text()))
  const { length } = first.text()
  await until(() => first.text().length > length + 30)
  type('\x01x')
  expect(await first.ended()).toBe(4)

  const other = join(directory, 'other')
  const second = inTerminal(['restore', join(directory, 'snap'), '--snapshot-to', other])
  await until(() => second.text().length > 10)
  second.child.stdin!.write('\x01s')
  await until(() => /\[saved: /.test(second.text()))
  second.child.stdin!.write('\x01x')
  expect(await second.ended()).toBe(4)
  expect(await cli('snapshot', 'verify', other)).toMatchObject({ code: 0, stderr: '' })
})

it('what is no snapshot, or a damaged one, is told with exit code 2', async () => {
  const directory = await scratch()
  const none = await cli('restore', directory)
  expect(none).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(/it is no snapshot/) })
  const machine = await alphabet(directory)
  const snap = join(directory, 'snap')
  await cli('ctl', machine.control, 'snapshot', snap, '--stop')
  const { open } = await import('node:fs/promises')
  const memory = await open(join(snap, 'memory'), 'r+')
  await memory.write(Buffer.from('damage'), 0, 6, 5 << 20)
  await memory.close()
  const restored = await cli('restore', snap, '--verify', '--json')
  expect([restored.code, JSON.parse(restored.stdout)]).toEqual([
    2,
    { ok: false, reason: expect.stringMatching(/guest memory 0x500000-/) },
  ])
  expect(await cli('snapshot', 'verify', snap)).toMatchObject({ code: 1, stderr: expect.stringMatching(/damaged/) })
})
