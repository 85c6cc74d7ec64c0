import { readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { ConfigError } from '../../lib/errors.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import type { RegionImage } from '../../lib/kvm/region-image.js'
import { Machine } from '../../lib/machine/machine.js'
import { elfKernel } from '../guests/elf.js'

const POOL = '/sys/kernel/mm/hugepages/hugepages-2048kB'
const MIB = 2 ** 20
const PAGE = 2 * MIB
const PAGES = 32

const pool = (name: 'nr' | 'free' | 'resv') => Number(readFileSync(`${POOL}/${name}_hugepages`, 'utf8'))
const free = () => pool('free') - pool('resv')

/** Writes a count to a place in each 64 KiB from 17 to 48 MiB in turn, again and again, and says a letter each time round. */
const WRITER = `
  xor rbx, rbx
again:
  mov rdi, 0x1100000
next:
  mov [rdi], rbx
  inc rbx
  add rdi, 0x10000
  cmp rdi, 0x3000000
  jb next
  mov dx, 0x3f8
  mov al, '.'
  out dx, al
  jmp again
`
const OPTIONS = { kernel: elfKernel(WRITER), memory: '64M', cpu: 'host,-vmx,-svm', hugePages: 'hugetlb' } as const

async function writer(): Promise<Machine> {
  const machine = await Machine.create(OPTIONS)
  onTestFinished(() => machine.stop())
  await machine.start()
  await machine.console.expect('..')
  return machine
}

async function goOn(machine: Machine): Promise<void> {
  machine.console.read()
  await machine.resume()
  await machine.console.expect('...')
  await machine.pause()
}

const everything = (machine: Machine) => Buffer.from(machine.memory.read(0, machine.memory.size))

// Only root may fill the pool.
describe.skipIf(process.getuid!() !== 0)('hugetlb', () => {
  const before = pool('nr')
  const others = before - free()

  beforeAll(() => {
    writeFileSync(`${POOL}/nr_hugepages`, String(others + PAGES))
    expect(free()).toBe(PAGES)
  })

  afterAll(() => {
    writeFileSync(`${POOL}/nr_hugepages`, String(before))
    expect(pool('nr')).toBe(before)
  })

  it("memory is of the pool's pages, all of it reserved at once, and given back", () => {
    using kvm = Kvm.open()
    using vm = kvm.createVm()
    const inUse = () => Number(/^HugetlbPages:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))![1])
    const region = vm.addMemory({ guestAddress: 0, size: 8 * PAGE, backing: 'memfd', hugePages: 'hugetlb' })
    expect([free(), inUse()]).toEqual([PAGES - 8, 0])
    region.bytes[3 * PAGE + 5] = 1
    expect([free(), inUse()]).toEqual([PAGES - 8, 2048])
    region.remove()
    expect(free()).toBe(PAGES)
    expect(() => vm.addMemory({ guestAddress: 0, size: PAGE + 4096, backing: 'memfd', hugePages: 'hugetlb' })).toThrow(
      RangeError,
    )
    const large = { guestAddress: 0, size: (PAGES + 1) * PAGE, backing: 'memfd', hugePages: 'hugetlb' } as const
    expect(() => vm.addMemory(large)).toThrow(/mmap of huge pages: ENOMEM \(.*vm\.nr_hugepages/)
    expect(free()).toBe(PAGES)
  })

  it('images of a region are copies, and it goes back to each in its own pages', () => {
    using kvm = Kvm.open()
    using vm = kvm.createVm()
    const region = vm.addMemory({
      guestAddress: 0,
      size: PAGES * PAGE,
      backing: 'memfd',
      hugePages: 'hugetlb',
      logDirty: true,
    })
    const put = (offset: number, value: number) => {
      region.bytes[offset] = value
      region.markWritten(offset, 1)
    }
    const at = (...offsets: number[]) => offsets.map(offset => region.bytes[offset])
    put(PAGE, 1)
    put(9 * PAGE, 2)
    expect(region.dataRanges(region.takeWritten())).toEqual([
      { offset: PAGE, length: PAGE },
      { offset: 9 * PAGE, length: PAGE },
    ])
    // As a checkpoint does.
    const keep = (image: RegionImage) => {
      image.retain()
      return image
    }
    const first = keep(region.freeze(region.takeWritten()))
    put(PAGE, 3)
    put(20 * PAGE + 4096, 4)
    const second = keep(region.freeze(region.takeWritten()))
    expect(at(PAGE, 9 * PAGE, 20 * PAGE + 4096)).toEqual([3, 2, 4])
    put(9 * PAGE, 5)
    put(PAGE + 8192, 6)
    region.rollback(first, region.takeWritten().ranges())
    expect(at(PAGE, PAGE + 8192, 9 * PAGE, 20 * PAGE + 4096)).toEqual([1, 0, 2, 0])
    put(30 * PAGE, 7)
    region.rollback(first, region.takeWritten().ranges())
    expect(at(PAGE, 30 * PAGE)).toEqual([1, 0])
    region.rollback(second, [])
    expect(at(PAGE, PAGE + 8192, 9 * PAGE, 20 * PAGE + 4096)).toEqual([3, 0, 2, 4])
    put(PAGE + 4096, 8)
    region.clear()
    expect(at(PAGE, PAGE + 4096, 9 * PAGE, 20 * PAGE + 4096)).toEqual([0, 0, 0, 0])
    put(2 * PAGE, 9)
    region.rollback(second, region.takeWritten().ranges())
    expect(at(PAGE, PAGE + 4096, 2 * PAGE, 9 * PAGE, 20 * PAGE + 4096)).toEqual([3, 0, 0, 2, 4])
    expect(free()).toBe(0)
  })

  it('a machine whose memory takes all of the pool is saved, restored, rolled back, forked and reset', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-hugetlb-'))
    onTestFinished(() => rm(directory, { recursive: true }))
    const machine = await writer()
    expect(free()).toBe(0)
    await machine.pause()
    const full = everything(machine)
    await machine.snapshot(join(directory, 'full'))
    await goOn(machine)
    const later = everything(machine)
    const { bytes } = await machine.snapshot(join(directory, 'later'), { differential: true })
    expect(bytes).toBeLessThan(16 * MIB)
    for (const [name, memory] of [
      ['full', full],
      ['later', later],
    ] as const) {
      const again = await Machine.restore(join(directory, name), { verify: true })
      expect(everything(again).equals(memory)).toBe(true)
      await goOn(again)
      await again.stop()
    }

    const checkpoint = await machine.checkpoint()
    await goOn(machine)
    const next = await machine.checkpoint()
    const nextMemory = everything(machine)
    await goOn(machine)
    await machine.rollback(next)
    expect(everything(machine).equals(nextMemory)).toBe(true)
    await machine.rollback(checkpoint)
    expect(everything(machine).equals(later)).toBe(true)
    await goOn(machine)

    const twin = await machine.fork()
    onTestFinished(() => twin.stop())
    const moment = everything(machine)
    await goOn(machine)
    expect(everything(twin).equals(moment)).toBe(true)
    await goOn(twin)
    await twin.stop()

    await machine.reset()
    await goOn(machine)
    await machine.rollback(next)
    expect(everything(machine).equals(nextMemory)).toBe(true)
    expect(free()).toBe(0)
    await machine.stop()
    expect(free()).toBe(PAGES)
  })

  it('a machine that the pool cannot hold is told so, and what it would take', async () => {
    using kvm = Kvm.open()
    using vm = kvm.createVm()
    vm.addMemory({ guestAddress: 0, size: 2 * PAGE, backing: 'memfd', hugePages: 'hugetlb' })
    const error = await Machine.create(OPTIONS).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(ConfigError)
    expect(error).toMatchObject({ field: 'hugePages', value: 'hugetlb' })
    expect((error as Error).message).toContain(
      `64M need 32 huge pages of 2 MiB, and of the pool's ${others + PAGES} there are 30 free`,
    )
    expect((error as Error).message).toContain(`echo ${others + PAGES + 2} > ${POOL}/nr_hugepages`)
    expect(free()).toBe(PAGES - 2)
  })
})
