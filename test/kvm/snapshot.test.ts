import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { Machine } from '../../lib/machine/machine.js'
import { readSnapshot } from '../../lib/snapshot/read.js'
import { elfKernel } from '../guests/elf.js'

/** Says the alphabet again and again, and writes a count to one page after the other of the MiB at 0x1100000. */
const ALPHABET = `
  xor rbx, rbx
  mov rdi, 0x1100000
next:
  mov [rdi], rbx
  add rdi, 0x1000
  cmp rdi, 0x1200000
  jb same
  mov rdi, 0x1100000
same:
  mov rax, rbx
  xor rdx, rdx
  mov rcx, 26
  div rcx
  lea rax, [rdx + 'a']
  mov dx, 0x3f8
  out dx, al
  inc rbx
  mov rcx, 300
spin:
  dec rcx
  jnz spin
  jmp next
`
// vmx and svm, where the host has them and no nested state, could not be saved.
const OPTIONS = { kernel: elfKernel(ALPHABET), memory: '64M', cpu: 'host,-vmx,-svm' }

async function alphabet(options = {}): Promise<Machine> {
  const machine = await Machine.create({ ...OPTIONS, ...options })
  onTestFinished(() => machine.stop())
  await machine.start()
  return machine
}

async function restored(directory: string): Promise<Machine> {
  const machine = await Machine.restore(directory)
  onTestFinished(() => machine.stop())
  return machine
}

async function scratch(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-test-'))
  onTestFinished(() => rm(directory, { recursive: true, force: true }))
  return directory
}

/** All that has been said so far. */
function said(machine: Machine): string {
  return (machine.console.read() as Buffer | null)?.toString() ?? ''
}

async function hear(machine: Machine, letters: number): Promise<string> {
  let text = said(machine)
  while (text.length < letters) {
    await new Promise(resolve => setTimeout(resolve, 5))
    text += said(machine)
  }
  return text
}

const letter = (text: string) => text.charCodeAt(0) - 97

/** Whether each letter follows the one before. */
function isAlphabet(text: string): boolean {
  return [...text].every((c, i) => i === 0 || letter(c) === (letter(text[i - 1]!) + 1) % 26)
}

/** Whether the second text is where the first goes on. */
function follows(before: string, after: string): boolean {
  return isAlphabet(before.at(-1)! + after)
}

const everything = (machine: Machine) => Buffer.from(machine.memory.read(0, machine.memory.size))

it('a machine goes on in a new one, from a directory', async () => {
  const directory = join(await scratch(), 'snap')
  const first = await alphabet()
  let before = await hear(first, 30)
  await first.pause()
  const info = await first.snapshot(directory)
  before += said(first)
  expect(first.state).toBe('paused')
  const memory = everything(first)
  await first.stop()

  const second = await restored(directory)
  expect(second.state).toBe('paused')
  expect(everything(second).equals(memory)).toBe(true)
  expect(second.config).toMatchObject({ memory: 64 << 20, vcpus: 1, cpu: 'host,-vmx,-svm', kernel: undefined })
  await second.resume()
  const after = await hear(second, 30)
  expect([isAlphabet(after), follows(before, after)]).toEqual([true, true])
  expect(info).toMatchObject({ directory, id: (await readSnapshot(directory)).id })
  // 64 MiB of which next to nothing is used.
  expect(info.bytes).toBeLessThan(4 << 20)
  expect((await stat(join(directory, 'memory'))).blocks * 512).toBeLessThan(4 << 20)
})

it('a running machine is saved, and goes on', async () => {
  const directory = join(await scratch(), 'snap')
  const machine = await alphabet()
  let text = await hear(machine, 10)
  await machine.snapshot(directory)
  expect(machine.state).toBe('running')
  text += await hear(machine, 30)
  expect(isAlphabet(text)).toBe(true)
})

it('a chain of differentials restores at each link, and each is small', async () => {
  const directory = await scratch()
  const machine = await alphabet()
  const moments: { path: string; memory: Buffer; last: string; bytes: number }[] = []
  // The guest writes to a MiB at most; this is what only the full one has.
  machine.memory.fill(0x2000000, 8 << 20, 5)
  for (const name of ['full', 'one', 'two', 'three']) {
    await hear(machine, 20)
    await machine.pause()
    const path = join(directory, name)
    const { bytes } = await machine.snapshot(path, { differential: name !== 'full' })
    moments.push({ path, memory: everything(machine), last: said(machine), bytes })
    await machine.resume()
  }
  for (const { path, memory } of moments) {
    const again = await restored(path)
    expect(everything(again).equals(memory)).toBe(true)
    await again.resume()
    expect(isAlphabet(await hear(again, 10))).toBe(true)
    await again.stop()
  }
  for (const { bytes } of moments.slice(1)) expect(bytes).toBeLessThan(2 << 20)
  expect(moments[0]!.bytes).toBeGreaterThan(8 << 20)
})

it('a differential of a restored machine is based on what it was restored from', async () => {
  const directory = await scratch()
  const first = await alphabet()
  await hear(first, 5)
  await first.snapshot(join(directory, 'full'))
  await first.stop()
  const second = await restored(join(directory, 'full'))
  await second.resume()
  await hear(second, 40)
  await second.pause()
  second.memory.write(0x1300000, Uint8Array.of(1, 2, 3))
  await second.snapshot(join(directory, 'diff'), { differential: true })
  const memory = everything(second)
  const third = await restored(join(directory, 'diff'))
  expect(everything(third).equals(memory)).toBe(true)
  expect(third.memory.read(0x1300000, 3)).toEqual(Uint8Array.of(1, 2, 3))
  expect((await readSnapshot(join(directory, 'diff'))).chain).toHaveLength(2)
})

it('a machine goes back to a checkpoint, as often as wanted, and to an older one', async () => {
  const machine = await alphabet()
  await hear(machine, 30)
  await machine.pause()
  const older = await machine.checkpoint()
  const olderMemory = everything(machine)
  await machine.resume()
  await hear(machine, 30)
  await machine.pause()
  const checkpoint = await machine.checkpoint()
  const memory = everything(machine)
  const regs = machine.vcpus[0]!.getRegs()
  said(machine)
  const continuations: string[] = []
  for (let i = 0; i < 5; i++) {
    await machine.resume()
    const text = await hear(machine, 20)
    await machine.pause()
    continuations.push((text + said(machine)).slice(0, 20))
    machine.memory.fill(0x1400000, 0x2345, i + 1)
    expect(everything(machine).equals(memory)).toBe(false)
    await machine.rollback(checkpoint)
    expect(everything(machine).equals(memory)).toBe(true)
    expect(machine.vcpus[0]!.getRegs()).toEqual(regs)
  }
  expect(new Set(continuations).size).toBe(1)
  expect(isAlphabet(continuations[0]!)).toBe(true)
  await machine.rollback(older)
  expect(everything(machine).equals(olderMemory)).toBe(true)
  await machine.rollback(checkpoint)
  expect(everything(machine).equals(memory)).toBe(true)
})

it('a snapshot after a rollback has what the rollback brought back', async () => {
  const directory = await scratch()
  const machine = await alphabet()
  await hear(machine, 10)
  await machine.pause()
  const checkpoint = await machine.checkpoint()
  await machine.resume()
  await hear(machine, 60)
  await machine.snapshot(join(directory, 'full'))
  await hear(machine, 10)
  await machine.pause()
  await machine.rollback(checkpoint)
  const memory = everything(machine)
  await machine.snapshot(join(directory, 'diff'), { differential: true })
  expect(everything(await restored(join(directory, 'diff'))).equals(memory)).toBe(true)
})

it('a fork runs beside its parent, each with a memory of its own', async () => {
  const machine = await alphabet()
  const start = await hear(machine, 30)
  const twin = await machine.fork()
  onTestFinished(() => twin.stop())
  expect([machine.state, twin.state]).toEqual(['running', 'running'])
  const [mine, its] = [start + (await hear(machine, 40)), await hear(twin, 40)]
  expect([isAlphabet(mine), isAlphabet(its)]).toEqual([true, true])
  await Promise.all([machine.pause(), twin.pause()])
  machine.memory.write(0x1500000, Uint8Array.of(1))
  expect(twin.memory.read(0x1500000, 1)).toEqual(Uint8Array.of(0))
  const grandchild = await twin.fork()
  onTestFinished(() => grandchild.stop())
  expect(grandchild.state).toBe('paused')
  expect(everything(grandchild).equals(everything(twin))).toBe(true)
  await machine.stop()
  await grandchild.resume()
  expect(isAlphabet(await hear(grandchild, 30))).toBe(true)
})

it('what cannot be done is told, and the machine is unharmed', async () => {
  const directory = await scratch()
  const machine = await alphabet()
  await expect(machine.snapshot(join(directory, 'x'), { differential: true })).rejects.toThrow(
    /take a full snapshot first/,
  )
  await writeFile(join(directory, 'mine'), 'text')
  await expect(machine.snapshot(directory)).rejects.toThrow(/which is no part of a snapshot/)
  await expect(machine.snapshot(join(directory, 'mine'))).rejects.toThrow('mine')
  expect(await readFile(join(directory, 'mine'), 'utf8')).toBe('text')
  const other = await alphabet()
  await expect(machine.rollback(await other.checkpoint())).rejects.toThrow('of another machine')
  const [saving, forking] = [machine.snapshot(join(directory, 'y')), machine.fork()]
  await expect(forking).rejects.toThrow(/cannot fork: a snapshot is being made/)
  await saving
  expect(machine.state).toBe('running')
  expect(isAlphabet(await hear(machine, 30))).toBe(true)
  await machine.stop()
  await expect(machine.checkpoint()).rejects.toThrow('cannot checkpoint: the machine is ended')
  await expect(Machine.restore(join(directory, 'none'))).rejects.toThrow(/none/)
})

it('a chain of very many pieces is mapped where they are large and read where they are small', async () => {
  const directory = await scratch()
  const machine = await alphabet()
  await machine.pause()
  await machine.snapshot(join(directory, 'full'))
  // Every second page of 20 MiB, and two larger pieces.
  for (let page = 0; page < 5120; page += 2)
    machine.memory.write(0x2000000 + page * 4096, Uint8Array.of(1, page & 0xff))
  machine.memory.fill(0x3800000, 1 << 20, 7)
  await machine.snapshot(join(directory, 'diff'), { differential: true })
  const memory = everything(machine)
  await machine.stop()
  const again = await restored(join(directory, 'diff'))
  expect(everything(again).equals(memory)).toBe(true)
  const mappings = (await readFile('/proc/self/maps', 'utf8')).split('\n').filter(line => line.includes(directory))
  expect(mappings.length).toBeGreaterThan(2)
  expect(mappings.length).toBeLessThan(2000)
  const checkpoint = await again.checkpoint()
  again.memory.fill(0x2000000, 20 << 20, 9)
  await again.rollback(checkpoint)
  expect(everything(again).equals(memory)).toBe(true)
})

it('a machine that is stopped while it is saved leaves nothing half-written', async () => {
  const directory = await scratch()
  const machine = await alphabet()
  await machine.pause()
  machine.memory.fill(0x1400000, 16 << 20, 0x5a)
  const saving = machine.snapshot(join(directory, 'snap'))
  const stopping = machine.stop()
  await expect(saving).rejects.toThrow(/the machine has ended/)
  await stopping
  await expect(stat(join(directory, 'snap'))).rejects.toThrow('ENOENT')
})
