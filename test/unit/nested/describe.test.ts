import { describe, expect, it } from 'vitest'
import * as k from '../../../lib/kvm/structs.js'
import { describeNested, type NestedContext, type NestedDescription } from '../../../lib/nested/describe.js'
import { diffNested, toJson } from '../../../lib/nested/diff.js'
import { checkNestedState } from '../../../lib/nested/rules.js'
import { decodeNestedState, encodeNestedState } from '../../../lib/nested/state.js'
import { decodeVmcb12, encodeVmcb12 } from '../../../lib/nested/vmcb12.js'
import { walkNpt } from '../../../lib/nested/walk.js'
import { captured } from './captured.js'
import { NONE, svmGuestMode, svmState, svmVcpu, VMCS_PA, VMXON_PA, vmcs12, vmxGuestMode, vmxState } from './states.js'

/** A vCPU with these registers, in 64-bit mode. */
function context(changes: Partial<k.KvmSregs2> = {}, rip = 0x1234n): NestedContext {
  const sregs2 = k.kvm_sregs2.decode(new Uint8Array(k.kvm_sregs2.size))
  return {
    regs: { ...k.kvm_regs.decode(new Uint8Array(k.kvm_regs.size)), rip, rsp: 0x8000n },
    sregs2: { ...sregs2, cr0: 0x8005_0033n, cr3: 0xa000n, cr4: 0x2020n, efer: 0xd01n, ...changes },
  }
}

function fieldOf({ sections }: NestedDescription, name: string) {
  return sections.flatMap(({ fields }) => fields).find(field => field.name === name)
}

describe('vmx', () => {
  it.each([
    ['not in use', vmxState()],
    ['VMXON, no current VMCS', vmxState({ vmxonPa: VMXON_PA })],
    ['L1, VMCS current', vmxState({ vmxonPa: VMXON_PA, vmcs12Pa: VMCS_PA, data: vmcs12() })],
    ['SMM, VMX operation suspended', vmxState({ vmxonPa: VMXON_PA, vmcs12Pa: VMCS_PA, smmFlags: 2, data: vmcs12() })],
    ['L2', vmxGuestMode()],
  ])('%s', (mode, bytes) => {
    const description = describeNested(bytes, context())
    expect(description).toMatchObject({ format: 'vmx', mode })
    // Outside guest mode the vCPU's own registers are L1's.
    expect(description[mode === 'L2' ? 'l2' : 'l1']).toMatchObject({
      rip: 0x1234n,
      rsp: 0x8000n,
      pagingMode: '4-level',
    })
    expect(description.sections.length).toBe(mode === 'not in use' || mode.startsWith('VMXON') ? 0 : 5)
  })

  it('in L2: L1 is the host-state area', () => {
    const description = describeNested(vmxGuestMode(), context({ cr0: 0x31n, efer: 0n }))
    expect(description.l1).toEqual({
      rip: 0x10_0000n,
      rsp: 0x9000n,
      pagingMode: '4-level',
      cr0: 0x8005_0033n,
      cr3: 0x7000n,
      cr4: 0x2020n,
      efer: 0xd01n,
    })
    expect(description.l2).toMatchObject({ rip: 0x1234n, pagingMode: 'no paging' })
    expect(description.nestedPaging).toEqual({ kind: 'EPT', pointer: 0x601en, meaning: '4 levels at 0x6000, WB' })
    expect(description.tscOffset).toBe(-0x1_0000_0000n)
    expect(fieldOf(description, 'guestRip')).toMatchObject({ value: 0x20_0000n, label: 'Guest RIP', offset: 544 })
    expect(fieldOf(description, 'secondaryProcessorBasedVmExecutionControls')?.meaning).toBe(
      'enable EPT, enable VPID, unrestricted guest',
    )
    expect(fieldOf(description, 'vmcsLinkPointer')?.meaning).toBe('none')
    expect(fieldOf(description, 'guestCsAccessRights')?.meaning).toBe('code, DPL 0, 64-bit, granular')
    expect(fieldOf(description, 'guestActivityState')?.meaning).toBe('active')
    expect(fieldOf(description, 'vmcsRevisionIdentifier')?.meaning).toBe("KVM's, ordinary VMCS")
    expect(description.sections.map(({ title, fields }) => [title, fields.length])).toEqual([
      ['VMCS12', 3],
      ['Controls', expect.any(Number)],
      ['VM-exit information', 11],
      ['Guest-state area (L2)', expect.any(Number)],
      ['Host-state area (L1)', expect.any(Number)],
    ])
  })

  it('a 32-bit L1 without EFER of its own, no EPT, no TSC offsetting', () => {
    const bytes = vmxGuestMode({
      vmExitControls: 0x3_6dffn,
      vmEntryControls: 0x11ffn,
      primaryProcessorBasedVmExecutionControls: 0x0401_e172n,
    })
    const description = describeNested(bytes, context())
    expect(description.l1).toMatchObject({ pagingMode: 'PAE', efer: 0n })
    expect(description).not.toHaveProperty('nestedPaging')
    expect(description.tscOffset).toBe(0n)
  })

  it('reads the bitmaps from memory, where they are there', () => {
    const bitmaps = new Uint8Array(0x10000).fill(0xff)
    bitmaps[0x3000 + (0x60 >> 3)]! &= ~1 // port 0x60
    bitmaps[0x4000]! = 0xf0 // ports 0x8000 to 0x8003
    bitmaps[0x5000 + (0x10 >> 3)]! &= ~1 // read TSC
    bitmaps[0x5000 + 0xc00 + (0x100 >> 3)]! &= ~3 // write FS and GS base
    const memory = {
      read: (address: number, length: number) => {
        if (address + length > bitmaps.length) throw new RangeError('not there')
        return bitmaps.slice(address, address + length)
      },
    }
    const description = describeNested(vmxGuestMode(), { ...context(), memory })
    expect(description.ports).toEqual(['0x60', '0x8000-0x8003'])
    expect(description.msrs).toEqual({ address: 0x5000n, reads: ['0x10'], writes: ['0xc0000100-0xc0000101'] })
    const away = describeNested(vmxGuestMode({ addressOfMsrBitmaps: 0xf_f000n }), { ...context(), memory })
    expect(away).not.toHaveProperty('msrs')
    const striped = new Uint8Array(0x10000).fill(0x55)
    const many = describeNested(vmxGuestMode(), {
      ...context(),
      memory: { read: (at, n) => striped.slice(at, at + n) },
    })
    expect(many.ports).toHaveLength(257)
    expect(many.ports?.at(-1)).toBe('and 32512 more')
  })

  it('tells the shadow VMCS, and what lies beside the fields', () => {
    const data = new Uint8Array(8192)
    data.set(vmcs12({ secondaryProcessorBasedVmExecutionControls: 0xa2n | (1n << 14n), vmcsLinkPointer: 0x8000n }))
    data.set(vmcs12({ vmcsRevisionIdentifier: 0x91e5_7ed0n, guestRip: 0x77n }), 4096)
    data[336] = 9
    const description = describeNested(vmxState({ flags: 1, vmxonPa: VMXON_PA, vmcs12Pa: VMCS_PA, data }), context())
    const shadow = description.sections.find(({ title }) => title === 'Shadow VMCS12: Guest-state area (L2)')
    expect(shadow?.fields.find(({ name }) => name === 'guestRip')?.value).toBe(0x77n)
    expect(description.sections.find(({ title }) => title === 'Bytes without a field')?.fields).toEqual([
      { name: 'offset336', label: 'Offset 336', value: 9n, offset: 336 },
    ])
  })

  it('tells the header, and the MSR that switches vmx on', () => {
    const { header } = describeNested(vmxGuestMode({}, { vmxFlags: 1 }), {
      ...context(),
      msrs: [{ index: 0x3a, value: 5n }],
    })
    expect(header.map(({ name, value }) => [name, value])).toEqual([
      ['guestMode', 'yes'],
      ['runPending', 'no'],
      ['vmxonPa', 0x1000n],
      ['vmcs12Pa', 0x2000n],
      ['enlightenedVmcs', 'no'],
      ['mtfPending', 'no'],
      ['smmGuestMode', 'no'],
      ['smmVmxon', 'no'],
      ['preemptionTimerDeadline', 0n],
      ['IA32_FEATURE_CONTROL', 5n],
    ])
    expect(header.at(-1)?.meaning).toBe('locked, VMX outside SMX')
    expect(describeNested(vmxState(), context()).header[2]?.value).toBe('none')
  })
})

describe('svm', () => {
  const on = context({ efer: 0x1d01n, cr4: 0x20n })

  it('outside guest mode', () => {
    expect(describeNested(svmState(0x100), context())).toMatchObject({
      format: 'svm',
      mode: 'not in use',
      sections: [],
    })
    expect(describeNested(svmState(0x100), on)).toMatchObject({ mode: 'L1, SVM enabled', l1: { rip: 0x1234n } })
  })

  it('in L2: L1 is the save area', () => {
    const description = describeNested(svmGuestMode(), { ...on, msrs: [{ index: 0xc0010117, value: 0x1_1000n }] })
    expect(description).toMatchObject({
      mode: 'L2',
      l1: { rip: 0x10_0000n, rsp: 0x9000n, cr3: 0x7000n, pagingMode: '4-level' },
      l2: { rip: 0x1234n, cr3: 0xa000n },
      nestedPaging: { kind: 'NPT', pointer: 0x6000n, meaning: '4-level tables at 0x6000' },
      tscOffset: 0x1234n,
    })
    expect(fieldOf(description, 'interceptVector3')).toMatchObject({ meaning: 'HLT, IOIO, MSR', offset: 12 })
    expect(fieldOf(description, 'nestedControl')?.meaning).toBe('NP_ENABLE')
    expect(fieldOf(description, 'virtualInterruptControl')?.meaning).toBe('V_INTR_MASKING')
    expect(fieldOf(description, 'csAttrib')?.meaning).toBe('code, DPL 0, 64-bit, granular')
    expect(description.header.at(-1)).toMatchObject({ name: 'VM_HSAVE_PA', value: 0x1_1000n })
    expect(describeNested(svmGuestMode({ nestedControl: 0n }), on)).not.toHaveProperty('nestedPaging')
  })

  it('reads the maps from memory', () => {
    const maps = new Uint8Array(0x20_0000).fill(0xff)
    maps[0x11_0000 + 0x800]! = 0b1111_0110 // 0xc0000080: read and not write goes through, 0xc0000081 ...
    maps[0x10_0000 + (0x3f8 >> 3)]! = 0xfe
    const memory = { read: (address: number, length: number) => maps.slice(address, address + length) }
    const description = describeNested(svmGuestMode({ interceptVector3: (1n << 27n) | (1n << 28n) }), { ...on, memory })
    expect(description.msrs).toEqual({ address: 0x11_0000n, reads: ['0xc0000000'], writes: ['0xc0000001'] })
    expect(description.ports).toEqual(['0x3f8'])
    const unused = describeNested(svmGuestMode({ interceptVector3: 0n }), { ...on, memory })
    expect(unused).not.toHaveProperty('msrs')
    expect(unused).not.toHaveProperty('ports')
  })
})

describe('states that KVM gave in the lab', () => {
  const { states, memory } = captured('svm')

  it('keep the rules, and come back byte for byte', () => {
    expect(states.length).toBeGreaterThan(5)
    for (const { nested, context } of states) {
      const { efer, cr4 } = context.sregs2
      checkNestedState(nested, { ...svmVcpu, efer, cr4 })
      const state = decodeNestedState(nested)
      expect(encodeNestedState(state)).toEqual(nested)
      if (state.data.length) expect(encodeVmcb12(decodeVmcb12(state.data))).toEqual(state.data)
    }
  })

  it('tell what L1 and L2 are doing, and lead from L2 to L1', () => {
    const modes = Object.fromEntries(
      states.map(({ name, nested, context }) => [name, describeNested(nested, context).mode]),
    )
    expect(modes).toMatchObject({ start: 'not in use', enabled: 'L1, SVM enabled', l2: 'L2', end: 'not in use' })
    const { nested, context } = states.find(({ name }) => name === 'l2')!
    const description = describeNested(nested, { ...context, memory })
    expect(description).toMatchObject({
      l1: { pagingMode: '4-level' },
      l2: { pagingMode: '4-level' },
      nestedPaging: { kind: 'NPT', pointer: 0x3_0000n },
    })
    // L1 gave L2 its memory 0x20000 higher.
    const at = walkNpt(memory, description.nestedPaging!.pointer, description.l1!, description.l2!.cr3)
    expect(at).toMatchObject({ outcome: 'mapped', physical: description.l2!.cr3 + 0x2_0000n })
    expect(fieldOf(description, 'interceptVector4')?.meaning).toContain('VMRUN')
  })
})

describe('a difference', () => {
  const a = describeNested(vmxGuestMode(), context())

  it('is empty between equal states', () => {
    expect(diffNested(a, describeNested(vmxGuestMode(), context()))).toEqual([])
  })

  it('names each field that changed, with its meaning', () => {
    const b = describeNested(vmxGuestMode({ exitReason: 12n, guestRip: 0x20_0001n }), context({}, 0x1235n))
    expect(diffNested(a, b)).toEqual([
      { section: 'L2', name: 'rip', label: 'rip', before: 0x1234n, after: 0x1235n },
      {
        section: 'VM-exit information',
        name: 'exitQualification',
        label: 'Exit qualification',
        before: 0n,
        after: 0n,
        beforeMeaning: 'none',
      },
      {
        section: 'VM-exit information',
        name: 'exitReason',
        label: 'Exit reason',
        before: 0n,
        after: 12n,
        beforeMeaning: 'exception or NMI',
        afterMeaning: 'HLT',
      },
      { section: 'Guest-state area (L2)', name: 'guestRip', label: 'Guest RIP', before: 0x20_0000n, after: 0x20_0001n },
    ])
  })

  it('shows what only one of them has', () => {
    const changes = diffNested(describeNested(vmxState({ vmxonPa: VMXON_PA }), context()), a)
    expect(changes).toContainEqual(
      expect.objectContaining({ section: 'State', name: 'mode', before: 'VMXON, no current VMCS', after: 'L2' }),
    )
    const rip = changes.find(({ section, name }) => section === 'L2' && name === 'rip')
    expect(rip).toEqual({ section: 'L2', name: 'rip', label: 'rip', after: 0x1234n })
  })
})

it('becomes JSON, with bigints in hexadecimal', () => {
  const json = toJson(describeNested(vmxGuestMode(), context()))
  const back = JSON.parse(JSON.stringify(json))
  expect(back.l1.rip).toBe('0x100000')
  expect(back.tscOffset).toBe('-0x100000000')
  expect(back.sections[0].fields[0]).toEqual({
    name: 'vmcsRevisionIdentifier',
    label: 'VMCS revision identifier',
    value: '0x11e57ed0',
    meaning: "KVM's, ordinary VMCS",
    offset: 0,
  })
  expect(toJson({ a: undefined, b: [1, null, true] })).toEqual({ b: [1, null, true] })
  expect(() => toJson(() => NONE)).toThrow(/no JSON for function/)
})
