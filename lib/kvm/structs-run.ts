/**
 * `struct kvm_run`, the page that a vCPU shares with its VMM, as `<linux/kvm.h>` lays it out for x86-64.
 * What each exit means: the kernel's "KVM API" document, section 5.
 */
import * as c from './constants.js'
import { array, bytes, type Infer, struct, u8, u16, u32, u64, union } from './layout.js'
import { kvm_regs, kvm_sregs, kvm_vcpu_events } from './structs-vcpu.js'

export const kvm_debug_exit_arch = struct('kvm_debug_exit_arch', {
  exception: u32,
  pad: u32,
  pc: u64,
  dr6: u64,
  dr7: u64,
})
export type KvmDebugExitArch = Infer<typeof kvm_debug_exit_arch>

const synic = struct('synic', { msr: u32, pad2: u32, control: u64, evt_page: u64, msg_page: u64 })
const hypervHcall = struct('hcall', { input: u64, result: u64, params: array(u64, 2) })
const syndbg = struct('syndbg', {
  msr: u32,
  pad2: u32,
  control: u64,
  status: u64,
  send_page: u64,
  recv_page: u64,
  pending_page: u64,
})

export const kvm_hyperv_exit = struct('kvm_hyperv_exit', {
  type: u32,
  pad1: u32,
  u: union({ synic, hcall: hypervHcall, syndbg }, ({ type }) => {
    if (type === c.KVM_EXIT_HYPERV_SYNIC) return 'synic'
    return type === c.KVM_EXIT_HYPERV_HCALL ? 'hcall' : 'syndbg'
  }),
})

const xenHcall = struct('hcall', { longmode: u32, cpl: u32, input: u64, result: u64, params: array(u64, 6) })

export const kvm_xen_exit = struct('kvm_xen_exit', { type: u32, u: union({ hcall: xenHcall }, () => 'hcall') })

export const kvm_sync_regs = struct('kvm_sync_regs', { regs: kvm_regs, sregs: kvm_sregs, events: kvm_vcpu_events })

const exits = {
  hw: struct('hw', { hardware_exit_reason: u64 }),
  fail_entry: struct('fail_entry', { hardware_entry_failure_reason: u64, cpu: u32 }),
  ex: struct('ex', { exception: u32, error_code: u32 }),
  io: struct('io', { direction: u8, size: u8, port: u16, count: u32, data_offset: u64 }),
  debug: struct('debug', { arch: kvm_debug_exit_arch }),
  mmio: struct('mmio', { phys_addr: u64, data: bytes(8), len: u32, is_write: u8 }),
  hypercall: struct('hypercall', { nr: u64, args: array(u64, 6), ret: u64, longmode: u32, pad: u32 }),
  tpr_access: struct('tpr_access', { rip: u64, is_write: u32, pad: u32 }),
  internal: struct('internal', { suberror: u32, ndata: u32, data: array(u64, 16) }),
  emulation_failure: struct('emulation_failure', {
    suberror: u32,
    ndata: u32,
    flags: u64,
    insn_size: u8,
    insn_bytes: bytes(15),
  }),
  system_event: struct('system_event', { type: u32, ndata: u32, data: array(u64, 16) }),
  eoi: struct('eoi', { vector: u8 }),
  hyperv: kvm_hyperv_exit,
  msr: struct('msr', { error: u8, pad: bytes(7), reason: u32, index: u32, data: u64 }),
  xen: kvm_xen_exit,
  notify: struct('notify', { flags: u32 }),
  memory_fault: struct('memory_fault', { flags: u64, gpa: u64, size: u64 }),
  padding: bytes(256),
} as const

/** Which member of the union is valid after which exit; the others carry no data. */
const memberOfExit = new Map<unknown, keyof typeof exits>([
  [c.KVM_EXIT_UNKNOWN, 'hw'],
  [c.KVM_EXIT_FAIL_ENTRY, 'fail_entry'],
  [c.KVM_EXIT_EXCEPTION, 'ex'],
  [c.KVM_EXIT_IO, 'io'],
  [c.KVM_EXIT_DEBUG, 'debug'],
  [c.KVM_EXIT_MMIO, 'mmio'],
  [c.KVM_EXIT_HYPERCALL, 'hypercall'],
  [c.KVM_EXIT_TPR_ACCESS, 'tpr_access'],
  [c.KVM_EXIT_INTERNAL_ERROR, 'internal'],
  [c.KVM_EXIT_SYSTEM_EVENT, 'system_event'],
  [c.KVM_EXIT_IOAPIC_EOI, 'eoi'],
  [c.KVM_EXIT_HYPERV, 'hyperv'],
  [c.KVM_EXIT_X86_RDMSR, 'msr'],
  [c.KVM_EXIT_X86_WRMSR, 'msr'],
  [c.KVM_EXIT_XEN, 'xen'],
  [c.KVM_EXIT_NOTIFY, 'notify'],
  [c.KVM_EXIT_MEMORY_FAULT, 'memory_fault'],
])

/** The start of the mapping of a vCPU; `offsetOf('io.port')` and the like find their way through the unnamed union. */
export const kvm_run = struct('kvm_run', {
  request_interrupt_window: u8,
  immediate_exit: u8,
  padding1: bytes(6),
  exit_reason: u32,
  ready_for_interrupt_injection: u8,
  if_flag: u8,
  flags: u16,
  cr8: u64,
  apic_base: u64,
  exit: union(exits, ({ exit_reason }) => memberOfExit.get(exit_reason) ?? 'padding', { anonymous: true }),
  kvm_valid_regs: u64,
  kvm_dirty_regs: u64,
  s: union({ regs: kvm_sync_regs, padding: bytes(2048) }, () => 'padding'),
})
export type KvmRun = Infer<typeof kvm_run>
