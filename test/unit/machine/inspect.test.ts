import { expect, it } from 'vitest'
import { msrName } from '../../../lib/arch/x86_64/msr-names.js'
import { inspectSnapshot, stateSection, walkL2 } from '../../../lib/machine/inspect.js'
import { diffInspections } from '../../../lib/machine/inspect-diff.js'
import type { Section } from '../../../lib/nested/describe.js'
import { compareMemory } from '../../../lib/snapshot/compare-memory.js'
import { SnapshotMemory } from '../../../lib/snapshot/snapshot-memory.js'
import { svmGuestMode, svmState, VMCS_PA, VMXON_PA, vmcs12, vmxGuestMode, vmxState } from '../nested/states.js'
import { MIB, PAGE, PlainMemory } from '../snapshot/machines.js'
import { ram, ramWithTables, saved, vcpu } from './saved.js'

const find = (sections: readonly Section[], title: string, name: string) =>
  sections.find(section => section.title === title)?.fields.find(field => field.name === name)

it.each<[string, Uint8Array | undefined]>([
  ['in L1; it has neither vmx nor svm, and no nested state', undefined],
  ['in L1, vmx there but not in use', vmxState()],
  ['in L1, VMXON without a current VMCS', vmxState({ vmxonPa: VMXON_PA })],
  [
    'in L1, with a current VMCS (vmx, VMCS12 at 0x2000)',
    vmxState({ vmxonPa: VMXON_PA, vmcs12Pa: VMCS_PA, data: vmcs12() }),
  ],
  ['in L2 (vmx, VMCS12 at 0x2000)', vmxGuestMode()],
  ['in L2 (svm, VMCB12 at 0x10000)', svmGuestMode()],
  ['in L1, SVM enabled, no L2 running, GIF = 0', svmState(0)],
])('a vCPU is %s', async (doing, nested) => {
  const [inspected] = inspectSnapshot(await saved({ vcpus: [vcpu({ nested })] })).vcpus
  expect(inspected!.doing).toBe(doing)
  const running = inspected![doing.startsWith('in L2') ? 'l2' : 'l1']
  expect(running).toMatchObject({ rip: 0x1234n, rsp: 0x8000n, pagingMode: '4-level' })
})

it('tells registers, MSRs by name, the clock, the devices', async () => {
  const snapshot = await saved({
    vcpus: [vcpu({}, { KVM_GET_MP_STATE: Uint8Array.of(3, 0, 0, 0), KVM_GET_NEW: Uint8Array.of(1, 2) })],
    devices: { uart: { fifo: [1, 2], lcr: 3, deep: [{ a: null }] } },
  })
  const { vcpus, sections, memory } = inspectSnapshot(snapshot)
  const state = vcpus[0]!.sections
  expect(vcpus[0]!.doing).toMatch(/^in L1, halted;/)
  expect(find(state, 'General registers', 'rflags')).toMatchObject({
    label: 'RFLAGS',
    value: 0x246n,
    meaning: 'PF, ZF, IF',
  })
  expect(find(state, 'System registers', 'cr4')).toMatchObject({ value: 0x2020n, meaning: 'PAE, VMXE' })
  expect(find(state, 'MSRs', 'IA32_LSTAR')).toMatchObject({
    label: 'IA32_LSTAR (0xc0000082)',
    value: 0xffff_ffff_8100_0000n,
  })
  expect(find(state, 'MSRs', 'IA32_MTRR_PHYSMASK1')?.value).toBe(0x800n)
  expect(find(state, 'MSRs', 'MSR 0x1234')?.value).toBe(7n)
  expect(find(state, 'Activity', 'mpState')?.meaning).toBe('halted (HLT)')
  expect(find(state, 'TSC offset to the host', 'tscOffset')?.value).toBe('-1')
  expect(find(state, 'Other state', 'KVM_GET_NEW')?.value).toMatch(/^2 bytes, SHA-256 /)
  expect(find(sections, 'Clock', 'clock')).toMatchObject({ value: '1500000000', meaning: '1.500000 s' })
  const devices = sections.find(({ title }) => title === 'Devices')!.fields.map(({ name, value }) => `${name}=${value}`)
  expect(devices).toEqual(['uart.fifo=[1,2]', 'uart.lcr=3', 'uart.deep.0.a=null'])
  expect(memory).toBe(5 * MIB)
})

it('tells why L2 left the last time, if it did', async () => {
  const exit = async (nested: Uint8Array) => {
    const [inspected] = inspectSnapshot(await saved({ vcpus: [vcpu({ nested })] })).vcpus
    return find([stateSection(inspected!)], 'State', 'exit')?.value
  }
  expect(await exit(vmxGuestMode({ exitReason: 30n, exitQualification: 0x3f8_0000n }))).toBe(
    'I/O instruction: OUT, 1 byte, port 0x3f8',
  )
  expect(await exit(vmxGuestMode({ exitReason: 12n }))).toBe('HLT')
  expect(await exit(vmxGuestMode())).toBe(undefined)
  expect(await exit(svmGuestMode({ exitCode: 0x78n }))).toBe('HLT')
  expect(await exit(svmGuestMode())).toBe(undefined)
})

it('what is cut short or garbled is told, not thrown', async () => {
  const inspect = async (more: Record<string, Uint8Array>, nested?: Uint8Array) =>
    inspectSnapshot(await saved({ vcpus: [vcpu({ nested }, more)] })).vcpus[0]!
  const short = await inspect({ KVM_GET_REGS: new Uint8Array(3), KVM_GET_XCRS: new Uint8Array(1) })
  expect(short.doing).toBe('unknown: its registers are not there, or cannot be read')
  expect(find(short.sections, 'General registers', 'KVM_GET_REGS')?.value).toMatch(/^3 bytes that cannot be read/)
  // A count of MSRs far beyond the bytes.
  const many = await inspect({ KVM_GET_MSRS: Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0) })
  expect(many.doing).toMatch(/^unknown/)
  const nested = await inspect({}, new Uint8Array(20))
  expect([nested.doing, nested.problem]).toEqual(['unknown: its nested state cannot be read', expect.any(String)])
  expect(find([stateSection(nested)], 'State', 'problem')).toBeDefined()
})

it.each([
  ['EPT', vmxGuestMode(), 'WB'],
  ['NPT', svmGuestMode(), undefined],
] as const)('walks through %s', async (kind, nested, memoryType) => {
  const snapshot = await saved({ vcpus: [vcpu(), vcpu({ nested })], memory: ramWithTables(kind) })
  using memory = new SnapshotMemory(snapshot)
  const walk = walkL2(snapshot, memory, 0x400123n)
  expect(walk).toMatchObject({
    vcpu: 1,
    kind,
    outcome: 'mapped',
    physical: 0x200123n,
    pageSize: 2 * MIB,
    writable: true,
  })
  expect(walk.steps.map(({ entryAddress }) => entryAddress)).toEqual([0x6000n, 0x8000n, 0x9010n])
  expect(Buffer.from(walk.content!).toString()).toBe('what L2 has here')
  expect((walk as { memoryType?: string }).memoryType).toBe(memoryType)
  expect(walkL2(snapshot, memory, 0x600000n, 1)).toMatchObject({ outcome: 'not present' })
  expect(() => walkL2(snapshot, memory, 0n, 0)).toThrow(/vcpu: 0: it is in L1.*give a vCPU that runs in L2/)
  expect(() => walkL2(snapshot, memory, 0n, 7)).toThrow(/the snapshot has no such vCPU/)
})

it('a walk needs an L2 on nested paging', async () => {
  const walk = async (nested?: Uint8Array) => {
    const snapshot = await saved({ vcpus: [vcpu({ nested })] })
    using memory = new SnapshotMemory(snapshot)
    return walkL2(snapshot, memory, 0n)
  }
  await expect(walk()).rejects.toThrow('no vCPU of this snapshot runs in L2')
  await expect(walk(svmGuestMode({ nestedControl: 0n }))).rejects.toThrow("its physical addresses are L1's")
})

it('finds the fields that changed, and no others', async () => {
  const inspect = async (parts: Parameters<typeof saved>[0]) => inspectSnapshot(await saved(parts))
  const before = await inspect({ vcpus: [vcpu({ nested: vmxGuestMode() })], devices: { rtc: { index: 1 }, old: 1 } })
  const nested = vmxGuestMode({ exitReason: 12n, tscOffset: 5n })
  const after = await inspect({ vcpus: [vcpu({ rip: 0x99n, nested }), vcpu()], devices: { rtc: { index: 2 } } })
  const { vcpus, changed } = diffInspections(before, after)
  expect(vcpus[0]!.changed.map(({ section, name, before, after }) => [section, name, before, after])).toEqual([
    ['State', 'L2.rip', 0x1234n, 0x99n],
    ['State', 'exit', undefined, 'HLT'],
    ['Controls', 'tscOffset', 0xffff_ffff_0000_0000n, 5n],
    // The same value, but with another reason it says something else.
    ['VM-exit information', 'exitQualification', 0n, 0n],
    ['VM-exit information', 'exitReason', 0n, 12n],
    ['For L2', 'tscOffset', -0x1_0000_0000n, 5n],
    ['General registers', 'rip', 0x1234n, 0x99n],
  ])
  expect(vcpus[1]).toMatchObject({ id: 1, after: { doing: expect.stringMatching(/^in L1/) } })
  expect(vcpus[1]!.before).toBe(undefined)
  expect(changed.map(({ name, before, after }) => [name, before, after])).toEqual([
    ['rtc.index', '1', '2'],
    ['old', '1', undefined],
  ])
  expect(diffInspections(after, after).vcpus.flatMap(({ changed }) => changed)).toEqual([])
})

it('reads memory across extents, files and regions', async () => {
  const memory = ram()
  memory.fill(0, 0, 4 * MIB)
  memory.fill(1, 0, MIB)
  const parent = await saved({ memory })
  memory.fill(0, 5 * PAGE)
  memory.fill(0, 7 * PAGE, 2 * PAGE)
  const data = [[5, 7, 8].map(page => ({ offset: page * PAGE, length: PAGE })), []]
  const snapshot = await saved({ memory, data, parent })
  using reader = new SnapshotMemory(snapshot)
  const [low, high] = memory.regions.map(({ bytes }) => bytes) as [Buffer, Buffer]
  for (const [at, length] of [
    [0, 4 * MIB],
    [5 * PAGE - 3, 6],
    [6 * PAGE - 1, PAGE + 2],
    [9 * PAGE - 1, 1],
    [4 * MIB - 1, 1],
    [7, 0],
  ] as const) {
    expect(low.subarray(at, at + length).equals(reader.read(at, length))).toBe(true)
  }
  expect(high.subarray(10, 20).equals(reader.read(2 ** 32 + 10, 10))).toBe(true)
  for (const [at, length] of [
    [4 * MIB - 1, 2],
    [-1, 1],
    [2 ** 40, 1],
    [0, -1],
    [Number.NaN, 1],
  ] as const) {
    expect(() => reader.read(at, length)).toThrow(RangeError)
  }
})

it('finds the pages that differ, and does not read what both share', async () => {
  const memory = ram()
  memory.fill(0, 0, 2 * MIB)
  const before = await saved({ memory })
  const pages = [3, 4, 5, 256, 1000]
  for (const page of pages) memory.fill(0, page * PAGE)
  memory.fill(1, 8 * PAGE)
  // Written, but with what was there.
  const data = [[...pages, 9].sort((a, b) => a - b), [8]].map(list =>
    list.map(page => ({ offset: page * PAGE, length: PAGE })),
  )
  const after = await saved({ memory, data, parent: before })
  const whole = await saved({ memory })
  const expected = {
    pages: 6,
    runs: 4,
    first: [
      { address: 3 * PAGE, pages: 3 },
      { address: 256 * PAGE, pages: 1 },
      { address: 1000 * PAGE, pages: 1 },
      { address: 2 ** 32 + 8 * PAGE, pages: 1 },
    ],
  }
  let read = 0
  const onProgress = (_: number, total: number) => {
    read = total
  }
  expect(await compareMemory(before, after, { onProgress })).toEqual(expected)
  expect(read).toBe(7 * PAGE)
  expect(await compareMemory(before, whole, { onProgress })).toEqual(expected)
  expect(read).toBe(5 * MIB)
  expect(await compareMemory(after, whole)).toEqual({ pages: 0, runs: 0, first: [] })
  const other = await saved({ memory: new PlainMemory([[0, MIB]]) })
  expect(await compareMemory(before, other)).toBe(undefined)
  const signal = AbortSignal.abort(new Error('enough'))
  await expect(compareMemory(before, whole, { signal })).rejects.toThrow('enough')
})

it('names MSRs', () => {
  const names = [0x10, 0x201, 0x402, 0x48c, 0x80b, 0xc0000080, 0xc0010201, 0x4b564d01, 0x7fffffff].map(msrName)
  expect(names).toEqual([
    'IA32_TIME_STAMP_COUNTER',
    'IA32_MTRR_PHYSMASK0',
    'IA32_MC0_ADDR',
    'IA32_VMX_EPT_VPID_CAP',
    'X2APIC_00BH',
    'IA32_EFER',
    'PERF_CTR0',
    'MSR_KVM_SYSTEM_TIME_NEW',
    'MSR 0x7fffffff',
  ])
})
