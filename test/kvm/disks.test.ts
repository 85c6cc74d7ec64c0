import { cp, mkdtemp, readFile, rm, truncate, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import type { DiskOptions } from '../../lib/config/disks.js'
import { Machine } from '../../lib/machine/machine.js'
import { verifySnapshot } from '../../lib/snapshot/verify.js'
import { elfKernel } from '../guests/elf.js'
import { BATCH, OTHER, policyOf } from './thread-policy.js'

const [DESCRIPTORS, DRIVER, DEVICE, HEADER, STATUS, DATA] = [
  0x1200000, 0x1201000, 0x1202000, 0x1203000, 0x1203800, 0x1204000,
]
const SECTOR = 512
const [IN, OUT] = [0, 1]

/** Offset and value of each register that a driver writes up to DRIVER_OK (virtio 1.2, 3.1.1, 4.2.2). */
const SET_UP = [
  [0x70, 1],
  [0x70, 3],
  [0x24, 1],
  [0x20, 1], // VERSION_1
  [0x70, 11],
  [0x38, 16],
  [0x80, DESCRIPTORS],
  [0x90, DRIVER],
  [0xa0, DEVICE],
  [0x44, 1],
  [0x70, 15],
]

/** A driver for the first disk: for each byte from COM1 it offers chain 0, waits until it is used, and says the status. */
const KERNEL = elfKernel(`
  mov rdi, 0xd0000000
  lea rsi, [rip + registers]
1:
  mov eax, [rsi]
  mov ebx, [rsi + 4]
  mov [rdi + rax], ebx
  add rsi, 8
  cmp dword ptr [rsi], -1
  jne 1b
wait:
  mov dx, 0x3fd
  in al, dx
  test al, 1
  jz wait
  mov dx, 0x3f8
  in al, dx
  mov rbx, ${DRIVER}
  movzx ecx, word ptr [rbx + 2]
  inc ecx
  mov [rbx + 2], cx
  mov dword ptr [rdi + 0x50], 0
  mov rbx, ${DEVICE}
used:
  cmp cx, [rbx + 2]
  jne used
  mov rbx, ${STATUS}
  mov al, [rbx]
  add al, '0'
  mov dx, 0x3f8
  out dx, al
  jmp wait
registers:
  ${SET_UP.map(([offset, value]) => `.long ${offset}, ${value}`).join('\n')}
  .long -1
`)

async function scratch(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-test-'))
  onTestFinished(() => rm(directory, { recursive: true, force: true }))
  return directory
}

async function image(): Promise<string> {
  const path = join(await scratch(), 'disk.img')
  await writeFile(path, Buffer.alloc(64 * SECTOR, 'image.'))
  return path
}

async function start(disk: DiskOptions): Promise<Machine> {
  const machine = await Machine.create({ kernel: KERNEL, memory: '64M', cpu: 'host,-vmx,-svm', disks: [disk] })
  onTestFinished(() => machine.stop())
  await machine.start()
  return machine
}

async function request({ memory, console }: Machine, type: number, sector: number, status = '0'): Promise<void> {
  const header = Buffer.alloc(16)
  header.writeUInt32LE(type)
  header.writeBigUInt64LE(BigInt(sector), 8)
  memory.write(HEADER, header)
  const descriptors = Buffer.alloc(48)
  for (const [i, [address, length, flags]] of [
    [HEADER, 16, 1],
    [DATA, SECTOR, type === IN ? 3 : 1],
    [STATUS, 1, 2],
  ].entries()) {
    descriptors.writeBigUInt64LE(BigInt(address!), 16 * i)
    descriptors.writeUInt32LE(length!, 16 * i + 8)
    descriptors.writeUInt16LE(flags!, 16 * i + 12)
    descriptors.writeUInt16LE(i + 1, 16 * i + 14)
  }
  memory.write(DESCRIPTORS, descriptors)
  console.write('x')
  expect((await console.expect(/\d/)).text).toBe(status)
}

async function read(machine: Machine, sector: number): Promise<string> {
  await request(machine, IN, sector)
  return Buffer.from(machine.memory.read(DATA, 8)).toString()
}

async function write(machine: Machine, sector: number, text: string): Promise<void> {
  machine.memory.write(DATA, Buffer.alloc(SECTOR, text))
  await request(machine, OUT, sector)
}

it('a guest reads and writes the image itself, which nobody else may have meanwhile', async () => {
  const path = await image()
  const machine = await start({ path })
  expect(await read(machine, 0)).toBe('image.im')
  await write(machine, 3, 'guest.')
  expect(await read(machine, 3)).toBe('guest.gu')
  expect((await readFile(path)).subarray(3 * SECTOR, 3 * SECTOR + 8).toString()).toBe('guest.gu')
  await expect(start({ path })).rejects.toThrow(/disks\[0\]\.path: .*another program has it open as a disk/)
  await machine.stop()
  await (await start({ path })).stop()
})

it('rings by and by are tried with patience, which ends where they find little, and where the machine pauses or ends', async () => {
  const path = await image()
  const machine = await start({ path, snapshot: true })
  const policies: number[] = []
  for (let ring = 0; ring < 12; ring++) {
    policies.push(policyOf())
    await read(machine, 0)
  }
  expect(policies).toEqual([...new Array(8).fill(OTHER), ...new Array(4).fill(BATCH)])
  expect(policyOf()).toBe(OTHER)
  for (let ring = 0; ring < 8; ring++) await read(machine, 0)
  expect(policyOf()).toBe(BATCH)
  await machine.pause()
  expect(policyOf()).toBe(OTHER)
  await machine.resume()
  while (policyOf() === OTHER) await read(machine, 0)
  await machine.stop()
  expect(policyOf()).toBe(OTHER)
})

it('with an overlay the image stays, and what was written goes back, forks and comes back with the machine', async () => {
  const path = await image()
  const before = await readFile(path)
  const machine = await start({ path, snapshot: true })
  await write(machine, 1, 'first.')
  const checkpoint = await machine.checkpoint()
  await write(machine, 1, 'second')
  await write(machine, 2, 'second')
  const twin = await machine.fork()
  onTestFinished(() => twin.stop())
  await write(twin, 2, 'twin..')
  expect([await read(twin, 1), await read(twin, 2)]).toEqual(['secondse', 'twin..tw'])
  expect(await read(machine, 2)).toBe('secondse')
  await machine.rollback(checkpoint)
  expect([await read(machine, 1), await read(machine, 2)]).toEqual(['first.fi', 'e.image.'])
  await write(machine, 4, 'later.')

  const directory = join(await scratch(), 'snap')
  await machine.snapshot(directory)
  await write(machine, 1, 'lost..')
  await machine.stop()
  await verifySnapshot(directory)
  const damaged = join(await scratch(), 'snap')
  await cp(directory, damaged, { recursive: true })
  const file = await readFile(join(damaged, 'disk0'))
  file[file.indexOf('later.')]! ^= 1
  await writeFile(join(damaged, 'disk0'), file)
  await expect(Machine.restore(damaged, { verify: true })).rejects.toThrow(/disk0: bytes 0-\d+: its checksum is/)
  const restored = await Machine.restore(directory)
  onTestFinished(() => restored.stop())
  await restored.resume()
  expect([await read(restored, 1), await read(restored, 4)]).toEqual(['first.fi', 'later.la'])
  await write(restored, 1, 'again.')
  expect(await read(twin, 1)).toBe('secondse')
  await Promise.all([restored.stop(), twin.stop()])
  expect(await readFile(path)).toEqual(before)
})

it('without one, a moment is only what the image is: it can be saved with the machine, but not gone back to', async () => {
  const path = await image()
  const machine = await start({ path })
  await write(machine, 1, 'first.')
  await expect(machine.checkpoint()).rejects.toThrow(/disk0: .*writes to the image itself.*snapshot: true/)
  await expect(machine.fork()).rejects.toThrow(/disk0/)
  expect(machine.state).toBe('running')
  const directory = join(await scratch(), 'snap')
  await machine.pause()
  await machine.snapshot(directory)
  await machine.stop()
  const restored = await Machine.restore(directory)
  await restored.resume()
  expect(await read(restored, 1)).toBe('first.fi')
  await restored.stop()
  await utimes(path, new Date(), new Date())
  await expect(Machine.restore(directory)).rejects.toThrow(/disks\[0\]\.path: .*written to since the snapshot/)
  await rm(path)
  await expect(Machine.restore(directory)).rejects.toThrow(/not there any more/)
})

it('a failure of the host’s is an I/O error for the guest, and is told', async () => {
  const path = await image()
  const machine = await start({ path, readonly: true })
  const warnings: string[] = []
  machine.on('warning', (device, error) => warnings.push(`${device}: ${error.message}`))
  await truncate(path, 0)
  await request(machine, IN, 0, '1')
  expect(warnings).toEqual(['disk0: nothing could be read at 0: the file was cut short'])
})
