import type { L1Options } from './l1.js'
import * as at from './l1-layout.js'
import { type Extension, INJECT_L2_VECTOR, selfInterrupt, variable } from './l1-source.js'

/** Fields of the VMCS by their encodings (Intel SDM vol. 3, appendix B). */
const VMCS = {
  guestSelectors: { es: 0x800, cs: 0x802, ss: 0x804, ds: 0x806, fs: 0x808, gs: 0x80a, ldtr: 0x80c, tr: 0x80e },
  hostSelectors: { es: 0xc00, cs: 0xc02, ss: 0xc04, ds: 0xc06, fs: 0xc08, gs: 0xc0a, tr: 0xc0c },
  msrBitmap: 0x2004,
  eptPointer: 0x201a,
  guestPhysicalAddress: 0x2400,
  linkPointer: 0x2800,
  pinControls: 0x4000,
  processorControls: 0x4002,
  exceptionBitmap: 0x4004,
  exitControls: 0x400c,
  entryControls: 0x4012,
  entryInterruption: 0x4016,
  secondaryControls: 0x401e,
  instructionError: 0x4400,
  exitReason: 0x4402,
  instructionLength: 0x440c,
  limits: { es: 0x4800, cs: 0x4802, ss: 0x4804, ds: 0x4806, fs: 0x4808, gs: 0x480a, ldtr: 0x480c, tr: 0x480e },
  gdtrLimit: 0x4810,
  idtrLimit: 0x4812,
  rights: { es: 0x4814, cs: 0x4816, ss: 0x4818, ds: 0x481a, fs: 0x481c, gs: 0x481e, ldtr: 0x4820, tr: 0x4822 },
  activityState: 0x4826,
  preemptionTimer: 0x482e,
  guestCr0: 0x6800,
  guestCr3: 0x6802,
  guestCr4: 0x6804,
  guestGsBase: 0x6810,
  guestGdtrBase: 0x6816,
  guestIdtrBase: 0x6818,
  guestDr7: 0x681a,
  guestRsp: 0x681c,
  guestRip: 0x681e,
  guestRflags: 0x6820,
  hostCr0: 0x6c00,
  hostCr3: 0x6c02,
  hostCr4: 0x6c04,
  hostGdtrBase: 0x6c0c,
  hostIdtrBase: 0x6c0e,
  hostRsp: 0x6c14,
  hostRip: 0x6c16,
} as const

/** Basic exit reasons (Intel SDM vol. 3, appendix C). */
const reason = {
  interruptWindow: 7,
  cpuid: 10,
  hlt: 12,
  hypercall: 18,
  nestedFault: 48,
  preemptionTimer: 52,
} as const

const INTERRUPT_WINDOW_EXITING = 1 << 2
const PREEMPTION_TIMER = 1 << 6
const SAVE_PREEMPTION_TIMER = 1 << 22

/** The hypervisor for Intel's extension. */
export const vmx: Extension = {
  hypercall: 'vmcall',
  reason,
  enable: options => `
  mov ecx, 0x3a              # IA32_FEATURE_CONTROL: locked, VMX outside SMX
  rdmsr
  test al, 1
  jnz 1f
  or eax, 5
  wrmsr
1:
  mov rax, cr4
  or eax, 0x2000             # VMXE
  mov cr4, rax
  mov ecx, 0x480             # IA32_VMX_BASIC: the revision
  rdmsr
  mov [${at.HOST_AREA}], eax
  mov [${at.CONTROL_BLOCK}], eax
  vmxon [rip + host_area]
  jbe on_error
  report ${at.station.enabled}
  vmclear [rip + control_block]
  jbe on_error
  report ${at.station.cleared}
  vmptrld [rip + control_block]
  jbe on_error
  report ${at.station.loaded}
  ${controls(options).map(adjust).join('\n')}
  lea rsi, [rip + fields]
1:
  mov rax, [rsi]
  test rax, rax
  jz 2f
  mov rbx, [rsi + 8]
  vmwrite rax, rbx
  jbe on_error
  add rsi, 16
  jmp 1b
2:
  mov rax, cr0
  ${vmwrite(VMCS.guestCr0, 'rax')}
  ${vmwrite(VMCS.hostCr0, 'rax')}
  mov rax, cr4
  ${vmwrite(VMCS.guestCr4, 'rax')}
  ${vmwrite(VMCS.hostCr4, 'rax')}
  mov rax, cr3
  ${vmwrite(VMCS.hostCr3, 'rax')}
  ${vmwrite(VMCS.hostRsp, 'rsp')}
  lea rax, [rip + vm_exit]
  ${vmwrite(VMCS.hostRip, 'rax')}
  mov qword ptr [${variable.rip}], ${at.L2_ORIGIN}
  report ${at.station.ready}
  jmp enter_l2

on_error:
  pushfq
  pop rax
  fail
host_area:
  .quad ${at.HOST_AREA}
control_block:
  .quad ${at.CONTROL_BLOCK}
fields:
  ${fields(options)
    .map(([encoding, value]) => `.quad ${encoding}, ${value}`)
    .join('\n  ')}
  .quad 0
`,
  enter: options => `
  mov rax, [${variable.rip}]
  ${vmwrite(VMCS.guestRip, 'rax')}
  mov rax, [${variable.inject}]
  ${vmwrite(VMCS.entryInterruption, 'rax')}
  mov qword ptr [${variable.inject}], 0
  load_registers
  mov rax, [${variable.rax}]
  cmp qword ptr [${variable.launched}], 0
  jne 1f
  mov qword ptr [${variable.launched}], 1
  vmlaunch
  jmp 2f
1:
  vmresume
2:
  ${vmread('rax', VMCS.instructionError)}
  fail
vm_exit:
  mov [${variable.rax}], rax
  save_registers
  ${vmread('rax', VMCS.guestRip)}
  mov [${variable.rip}], rax
  ${vmread('rax', VMCS.instructionLength)}
  mov [${variable.length}], rax
  ${vmread('rax', VMCS.guestPhysicalAddress)}
  mov [${variable.faultAddress}], rax
  ${options.interrupt === 'l1' ? selfInterrupt(at.L1_VECTOR) : ''}
  ${vmread('rax', VMCS.exitReason)}
  mov [${variable.reason}], rax
  report ${at.station.exit}
  ${options.interrupt === 'l1' ? 'sti\n nop\n cli' : ''}
  # Once in the middle L1 lets go of the VMCS and takes it up again, to be launched anew.
  cmp qword ptr [${variable.exits}], 4
  jne 1f
  vmclear [rip + control_block]
  jbe on_error
  report ${at.station.clearedAgain}
  vmptrld [rip + control_block]
  jbe on_error
  mov qword ptr [${variable.launched}], 0
1:
`,
  pend: () => setControl(VMCS.processorControls, 'or', INTERRUPT_WINDOW_EXITING),
  window: () => `
  ${setControl(VMCS.processorControls, 'and', ~INTERRUPT_WINDOW_EXITING)}
  mov eax, ${INJECT_L2_VECTOR}
  mov [${variable.inject}], rax`,
  // Without the timer its value must not be saved either (Intel SDM vol. 3, 27.2.1.2).
  disarm: () =>
    setControl(VMCS.pinControls, 'and', ~PREEMPTION_TIMER) +
    setControl(VMCS.exitControls, 'and', ~SAVE_PREEMPTION_TIMER),
  disable: `
  vmxoff
  mov rax, cr4
  and eax, ~0x2000
  mov cr4, rax
`,
}

interface Control {
  field: number
  /** The capability MSR, and where IA32_VMX_BASIC bit 55 says so, the one to use in its place (Intel SDM vol. 3, A.2). */
  msr: number
  trueMsr?: number
  wanted: number
}

function controls(options: L1Options): Control[] {
  const { interrupt } = options
  const externalInterrupts = interrupt === 'apic' || interrupt === 'halt' ? 0 : 1
  const hltExiting = interrupt === 'halt' ? 0 : 1 << 7
  const secondary = options.nestedPaging ? 1 << 31 : 0
  const all: Control[] = [
    {
      field: VMCS.pinControls,
      msr: 0x481,
      trueMsr: 0x48d,
      wanted: externalInterrupts | (options.timer ? PREEMPTION_TIMER : 0),
    },
    // MSR bitmaps, secondary controls
    { field: VMCS.processorControls, msr: 0x482, trueMsr: 0x48e, wanted: hltExiting | (1 << 28) | secondary },
    // 64-bit L1; the timer's value is kept over an exit.
    {
      field: VMCS.exitControls,
      msr: 0x483,
      trueMsr: 0x48f,
      wanted: (1 << 9) | (options.timer ? SAVE_PREEMPTION_TIMER : 0),
    },
    // 64-bit L2
    { field: VMCS.entryControls, msr: 0x484, trueMsr: 0x490, wanted: 1 << 9 },
  ]
  // EPT
  if (options.nestedPaging) all.push({ field: VMCS.secondaryControls, msr: 0x48b, wanted: 1 << 1 })
  return all
}

/** Writes a field of controls, with the bits that must be 1 or 0 as the capability MSR tells (Intel SDM vol. 3, A.3). */
function adjust({ field, msr, trueMsr, wanted }: Control): string {
  const chosen =
    trueMsr === undefined
      ? ''
      : `
  mov ecx, 0x480
  rdmsr
  bt edx, ${55 - 32}
  mov eax, ${trueMsr}
  mov ecx, ${msr}
  cmovc ecx, eax`
  return `
  mov ecx, ${msr}${chosen}
  rdmsr
  mov ebx, ${wanted >>> 0}
  or ebx, eax
  and ebx, edx
  ${vmwrite(field, 'rbx')}`
}

/** The fields whose values do not depend on the processor. */
function fields(options: L1Options): [number, number | string][] {
  const { guestSelectors: guest, hostSelectors: host, limits, rights } = VMCS
  const segments = ['es', 'ss', 'ds', 'fs', 'gs'] as const
  return [
    [VMCS.msrBitmap, at.MSR_BITMAP],
    // Write-back, four levels
    ...(options.nestedPaging ? [[VMCS.eptPointer, at.NESTED_TABLES | 6 | (3 << 3)] as [number, number]] : []),
    ...(options.timer ? [[VMCS.preemptionTimer, options.timer] as [number, number]] : []),
    [VMCS.linkPointer, '0xffffffffffffffff'],
    [VMCS.exceptionBitmap, 0],
    ...segments.flatMap((name): [number, number][] => [
      [guest[name], at.DATA],
      [limits[name], 0xffffffff],
      [rights[name], 0xc093],
      [host[name], name === 'fs' || name === 'gs' ? 0 : at.DATA],
    ]),
    [guest.cs, at.CODE],
    [limits.cs, 0xffffffff],
    [rights.cs, 0xa09b],
    [host.cs, at.CODE],
    [guest.tr, at.TASK],
    [limits.tr, 0x67],
    [rights.tr, 0x8b],
    [host.tr, at.TASK],
    [rights.ldtr, 0x10000], // unusable
    [VMCS.guestGsBase, at.L2_TABLE_A],
    [VMCS.guestGdtrBase, at.L2_GDT],
    [VMCS.gdtrLimit, 0x27],
    [VMCS.guestIdtrBase, at.L2_IDT],
    [VMCS.idtrLimit, 0xfff],
    [VMCS.hostGdtrBase, at.L1_GDT],
    [VMCS.hostIdtrBase, at.L1_IDT],
    [VMCS.guestCr3, at.L2_PAGE_TABLES],
    [VMCS.guestDr7, 0x400],
    [VMCS.guestRsp, at.L2_STACK],
    [VMCS.guestRflags, 2],
  ]
}

/** Uses RCX. */
function vmwrite(field: number, register: string): string {
  return `mov ecx, ${field}\n vmwrite rcx, ${register}`
}

function vmread(register: string, field: number): string {
  return `mov ecx, ${field}\n vmread ${register}, rcx`
}

/** Uses RAX and RCX. */
function setControl(field: number, operation: 'or' | 'and', mask: number): string {
  return `${vmread('rax', field)}\n ${operation} eax, ${mask}\n vmwrite rcx, rax\n`
}
