import { describe, expect, it, test } from 'vitest'
import { bitNames } from '../../../lib/nested/bits.js'
import {
  interceptNames,
  NESTED_CONTROL,
  tlbControlText,
  virtualInterruptNames,
} from '../../../lib/nested/controls-svm.js'
import {
  controlNames,
  hasControl,
  PIN_BASED,
  PRIMARY,
  SECONDARY,
  VM_ENTRY,
  VM_EXIT,
} from '../../../lib/nested/controls-vmx.js'
import { eventInjText, exceptionName, interruptionText, pageFaultText } from '../../../lib/nested/events.js'
import { exitCodeText, exitInfoText } from '../../../lib/nested/exits-svm.js'
import { exitQualificationText, exitReasonText } from '../../../lib/nested/exits-vmx.js'
import {
  accessRightsText,
  attributesText,
  cr0Text,
  cr4Text,
  eferText,
  exceptionBitmapText,
  rflagsText,
} from '../../../lib/nested/register-words.js'
import { decodeVmcb12, type Vmcb12Name } from '../../../lib/nested/vmcb12.js'
import { decodeVmcs12, type Vmcs12Name } from '../../../lib/nested/vmcs12.js'
import { vmcb12, vmcs12 } from './states.js'

const vmx = (changes: Partial<Record<Vmcs12Name, bigint>>) => decodeVmcs12(vmcs12(changes))
const svm = (changes: Partial<Record<Vmcb12Name, bigint>>) => decodeVmcb12(vmcb12(changes))
const bit = (n: number) => 1n << BigInt(n)

describe('controls', () => {
  // The kernel's arch/x86/include/asm/vmxfeatures.h and vmx.h have the same bits under other names.
  it.each([
    [PIN_BASED, 'virtual NMIs', 5],
    [PIN_BASED, 'process posted interrupts', 7],
    [PRIMARY, 'HLT exiting', 7],
    [PRIMARY, 'use TPR shadow', 21],
    [PRIMARY, 'use MSR bitmaps', 28],
    [SECONDARY, 'enable EPT', 1],
    [SECONDARY, 'unrestricted guest', 7],
    [SECONDARY, 'VMCS shadowing', 14],
    [SECONDARY, 'use TSC scaling', 25],
    [VM_EXIT, 'host address-space size', 9],
    [VM_EXIT, 'save VMX-preemption timer value', 22],
    [VM_ENTRY, 'IA-32e mode guest', 9],
    [VM_ENTRY, 'load IA32_BNDCFGS', 16],
  ] as const)('%o has %s at bit %i', (table, name, number) => {
    expect((table as Record<string, number>)[name]).toBe(number)
  })

  it('are named, without the bits that are always 1', () => {
    const block = vmx({})
    expect(controlNames(block, 'pin')).toEqual(['external-interrupt exiting', 'NMI exiting'])
    expect(controlNames(block, 'secondary')).toEqual(['enable EPT', 'enable VPID', 'unrestricted guest'])
    expect(controlNames(block, 'entry')).toEqual([
      'load debug controls',
      'IA-32e mode guest',
      'load IA32_PAT',
      'load IA32_EFER',
    ])
    expect(controlNames(block, 'exit')).toContain('acknowledge interrupt on exit')
    expect(bitNames({ a: 1 }, 0x8000_0002n)).toEqual(['a', 'bit 31'])
  })

  it('of the second word are off while that is not activated', () => {
    expect(hasControl(vmx({}), 'secondary', 'enable EPT')).toBe(true)
    expect(hasControl(vmx({ primaryProcessorBasedVmExecutionControls: 0n }), 'secondary', 'enable EPT')).toBe(false)
  })

  it('of SVM are named', () => {
    const intercepts = svm({
      interceptCrReads: 1n,
      interceptCrWrites: bit(8),
      interceptDrWrites: bit(7),
      interceptExceptions: bit(14),
      interceptVector3: bit(0) | bit(28) | bit(31),
      interceptVector4: 1n | bit(13) | bit(19),
      interceptVector5: bit(2) | bit(30),
    })
    expect(interceptNames(intercepts)).toEqual([
      'CR0_READ',
      'CR8_WRITE',
      'DR7_WRITE',
      'EXCP14',
      'INTR',
      'MSR',
      'SHUTDOWN',
      'VMRUN',
      'XSETBV',
      'CR3_WRITE_TRAP',
      'INVPCID',
      'interceptVector5 bit 30',
    ])
    expect(virtualInterruptNames(0x0103_0105n)).toEqual(['V_TPR 5', 'V_INTR_PRIO 3', 'V_IRQ', 'V_INTR_MASKING'])
    expect(bitNames(NESTED_CONTROL, 3n)).toEqual(['NP_ENABLE', 'enable SEV'])
    expect([0n, 1n, 3n, 7n, 2n].map(tlbControlText)).toEqual([
      'do nothing',
      'flush the entire TLB',
      "flush this guest's TLB entries",
      "flush this guest's non-global TLB entries",
      'reserved',
    ])
  })
})

// Intel SDM vol. 3, appendix C
test.each([
  [0n, 'exception or NMI'],
  [10n, 'CPUID'],
  [12n, 'HLT'],
  [18n, 'VMCALL'],
  [28n, 'control-register access'],
  [30n, 'I/O instruction'],
  [32n, 'WRMSR'],
  [36n, 'MWAIT'],
  [37n, 'monitor trap flag'],
  [43n, 'TPR below threshold'],
  [48n, 'EPT violation'],
  [52n, 'VMX-preemption timer expired'],
  [55n, 'XSETBV'],
  [62n, 'page-modification log full'],
  [63n, 'XSAVES'],
  [67n, 'UMWAIT'],
  [70n, 'ENCLV'],
  [74n, 'bus lock'],
  [79n, 'WRMSRLIST'],
  [35n, 'reason 35'],
  [0x8000_0021n, 'VM-entry failure due to invalid guest state, VM-entry failure'],
  [0x0800_000cn, 'HLT, in enclave mode'],
])('exit reason %i is %s', (reason, text) => {
  expect(exitReasonText(reason)).toBe(text)
})

test.each<[string, Partial<Record<Vmcs12Name, bigint>>]>([
  [
    'write (the page is readable) of guest-physical address 0x1000, translating linear address 0xffff800000001000',
    {
      exitReason: 48n,
      exitQualification: 0x18an,
      guestPhysicalAddress: 0x1000n,
      guestLinearAddress: 0xffff_8000_0000_1000n,
    },
  ],
  [
    'fetch (the page is not present) of guest-physical address 0x2000, walking to linear address 0x5',
    { exitReason: 48n, exitQualification: 0x84n, guestPhysicalAddress: 0x2000n, guestLinearAddress: 5n },
  ],
  ['read (the page is not present) of guest-physical address 0x0', { exitReason: 48n, exitQualification: 1n }],
  ['guest-physical address 0xfee00000', { exitReason: 49n, guestPhysicalAddress: 0xfee0_0000n }],
  ['OUT, 1 byte, port 0x3f8', { exitReason: 30n, exitQualification: 0x03f8_0000n }],
  ['REP INS, 4 bytes, port 0x60 (immediate)', { exitReason: 30n, exitQualification: 0x0060_007bn }],
  ['MOV CR3, RAX', { exitReason: 28n, exitQualification: 3n }],
  ['MOV R9, CR8', { exitReason: 28n, exitQualification: 0x918n }],
  ['CLTS', { exitReason: 28n, exitQualification: 0x20n }],
  ['LMSW 0xfff1 from memory', { exitReason: 28n, exitQualification: 0xfff1_0070n }],
  ['MOV DR7, RBX', { exitReason: 29n, exitQualification: 0x307n }],
  ['MOV RSI, DR6', { exitReason: 29n, exitQualification: 0x616n }],
  [
    '#PF at 0xdead: write by user of a page that is not present',
    {
      exitReason: 0n,
      exitQualification: 0xdeadn,
      vmExitInterruptionInformation: 0x8000_0b0en,
      vmExitInterruptionErrorCode: 6n,
    },
  ],
  [
    'hardware exception #GP, error code 0x18',
    { exitReason: 0n, vmExitInterruptionInformation: 0x8000_0b0dn, vmExitInterruptionErrorCode: 0x18n },
  ],
  [
    'hardware exception #DB (B0, BS)',
    { exitReason: 0n, exitQualification: 0x4001n, vmExitInterruptionInformation: 0x8000_0301n },
  ],
  ['NMI', { exitReason: 0n, vmExitInterruptionInformation: 0x8000_0202n }],
  ['external interrupt 0x41', { exitReason: 1n, vmExitInterruptionInformation: 0x8000_0041n }],
  ['JMP to TSS selector 0x28', { exitReason: 9n, exitQualification: 0x8000_0028n }],
  ['linear address 0x7f00', { exitReason: 14n, exitQualification: 0x7f00n }],
  ['linear write at offset 0x300', { exitReason: 44n, exitQualification: 0x1300n }],
  ['entry 3 of the list of MSRs', { exitReason: 34n, exitQualification: 3n }],
  ['VMCS link pointer', { exitReason: 0x8000_0021n, exitQualification: 4n }],
])('exit qualification: %s', (text, changes) => {
  expect(exitQualificationText(vmx(changes))).toBe(text)
})

test('an exit without a qualification has no words for it', () => {
  expect(exitQualificationText(vmx({ exitReason: 12n, exitQualification: 5n }))).toBeUndefined()
})

// AMD APM vol. 2, appendix C
test.each([
  [0x00n, 'CR0_READ'],
  [0x14n, 'CR4_WRITE'],
  [0x27n, 'DR7_READ'],
  [0x30n, 'DR0_WRITE'],
  [0x4en, 'EXCP14'],
  [0x60n, 'INTR'],
  [0x64n, 'VINTR'],
  [0x6en, 'RDTSC'],
  [0x72n, 'CPUID'],
  [0x78n, 'HLT'],
  [0x7bn, 'IOIO'],
  [0x7cn, 'MSR'],
  [0x7fn, 'SHUTDOWN'],
  [0x80n, 'VMRUN'],
  [0x81n, 'VMMCALL'],
  [0x8dn, 'XSETBV'],
  [0x8fn, 'EFER_WRITE_TRAP'],
  [0x90n, 'CR0_WRITE_TRAP'],
  [0xa2n, 'INVPCID'],
  [0xa5n, 'BUSLOCK'],
  [0x400n, 'NPF'],
  [0x401n, 'AVIC_INCOMPLETE_IPI'],
  [0x403n, 'VMGEXIT'],
  [0xffff_ffff_ffff_ffffn, 'INVALID'],
  [0xffff_ffffn, 'INVALID'],
  [0x999n, 'code 0x999'],
])('exit code %i is %s', (code, text) => {
  expect(exitCodeText(code)).toBe(text)
})

test.each<[string | undefined, Partial<Record<Vmcb12Name, bigint>>]>([
  [
    'guest-physical address 0x5000: write by user of a page that is not present, for the final address',
    { exitCode: 0x400n, exitInfo1: 0x1_0000_0006n, exitInfo2: 0x5000n },
  ],
  [
    'guest-physical address 0x6000: read by user of a present page with reserved bits set, for the guest page tables',
    { exitCode: 0x400n, exitInfo1: 0x2_0000_000dn, exitInfo2: 0x6000n },
  ],
  ['IN, 1 byte, port 0x64, next rIP 0x102', { exitCode: 0x7bn, exitInfo1: 0x0064_0011n, exitInfo2: 0x102n }],
  ['REP OUTS, 4 bytes, port 0x3f8, next rIP 0x9', { exitCode: 0x7bn, exitInfo1: 0x03f8_004cn, exitInfo2: 9n }],
  [
    '#PF at 0xbeef: instruction fetch by supervisor of a present page',
    { exitCode: 0x4en, exitInfo1: 0x11n, exitInfo2: 0xbeefn },
  ],
  ['#GP, error code 0x10', { exitCode: 0x4dn, exitInfo1: 0x10n }],
  ['#UD', { exitCode: 0x46n, exitInfo1: 0x10n }],
  ['MOV with RDX', { exitCode: 0x10n, exitInfo1: (1n << 63n) | 2n }],
  [undefined, { exitCode: 0x10n, exitInfo1: 2n }],
  ['WRMSR', { exitCode: 0x7cn, exitInfo1: 1n }],
  ['vector 0x80', { exitCode: 0x75n, exitInfo1: 0x80n }],
  [
    'IRET to TSS selector 0x30, error code 0x5',
    { exitCode: 0x7dn, exitInfo1: 0x30n, exitInfo2: bit(36) | bit(44) | 5n },
  ],
  [undefined, { exitCode: 0x78n, exitInfo1: 3n }],
])('EXITINFO1 and 2: %s', (text, changes) => {
  expect(exitInfoText(svm(changes))).toBe(text)
})

describe('events', () => {
  it('of VMX', () => {
    expect(interruptionText(0x41n, 0n)).toBe('none')
    expect(interruptionText(0x8000_0480n, 0n)).toBe('software interrupt 0x80')
    expect(interruptionText(0x8000_0603n, 0n)).toBe('software exception #BP')
    expect(interruptionText(0x8000_0700n, 0n)).toBe('other event 0x0')
    expect(interruptionText(0x8000_0b08n, 0n)).toBe('hardware exception #DF, error code 0x0')
  })

  it('of SVM', () => {
    expect(eventInjText(0n)).toBe('none')
    expect(eventInjText(0x8000_0041n)).toBe('interrupt 0x41')
    expect(eventInjText(0x8000_0202n)).toBe('NMI')
    expect(eventInjText((3n << 32n) | 0x8000_0b0en)).toBe('exception #PF, write by supervisor of a present page')
    expect(eventInjText(0x8000_0480n)).toBe('software interrupt 0x80')
    expect(eventInjText(0x8000_0500n)).toBe('reserved type 5 0x0')
  })

  it('of page faults, bit by bit', () => {
    expect(pageFaultText(0n)).toBe('read by supervisor of a page that is not present')
    expect(pageFaultText(0x6fn)).toBe(
      'write by user of a present page with reserved bits set against its protection key as shadow stack',
    )
    expect(exceptionName(9)).toBe('exception 9')
  })
})

test('registers in words', () => {
  expect(cr0Text(0x8005_0033n)).toBe('PE, MP, ET, NE, WP, AM, PG')
  expect(cr4Text(0x3020n)).toBe('PAE, LA57, VMXE')
  expect(eferText(0x1d01n)).toBe('SCE, LME, LMA, NXE, SVME')
  expect(rflagsText(0x3246n)).toBe('PF, ZF, IF, IOPL 3')
  expect(rflagsText(2n)).toBe('none')
  expect(exceptionBitmapText(bit(14) | bit(1) | bit(9))).toBe('#DB, exception 9, #PF')
  expect(accessRightsText(0xa09bn)).toBe('code, DPL 0, 64-bit, granular')
  expect(accessRightsText(0x1_0000n)).toBe('unusable')
  expect(accessRightsText(0xc0f3n)).toBe('data, DPL 3, 32-bit, granular')
  expect(attributesText(0xa9bn)).toBe('code, DPL 0, 64-bit, granular')
  expect(attributesText(0x08bn)).toBe('system type 11, DPL 0, 16-bit')
  expect(attributesText(0n)).toBe('not present')
})
