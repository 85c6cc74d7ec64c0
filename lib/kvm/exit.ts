/**
 * Why KVM_RUN came back: `struct kvm_run` read as one discriminated union (KVM API, section 5).
 *
 * Data of I/O and MMIO exits are views over the vCPU's mapping: what a device writes into them is what the guest reads.
 * An exit is valid until the vCPU runs again.
 */
import * as c from './constants.js'
import { KVM_PIO_PAGE_OFFSET } from './constants.js'
import { kvm_run } from './structs.js'

/** Port I/O. `data` has `size * count` bytes: `count` transfers of `size` bytes (1, 2 or 4), string I/O having many. */
export interface IoExit {
  reason: 'io-in' | 'io-out'
  port: number
  size: number
  count: number
  /** For 'io-in' the answer goes in here, before the vCPU runs again. */
  data: Uint8Array
}

/** An access to guest-physical memory that no memslot takes. */
export interface MmioExit {
  reason: 'mmio-read' | 'mmio-write'
  address: number
  /** 1 to 8 bytes. For 'mmio-read' the answer goes in here, before the vCPU runs again. */
  data: Uint8Array
}

/** A hypercall that user space was asked to handle (KVM_CAP_EXIT_HYPERCALL). Set `result` before the vCPU runs again. */
export interface HypercallExit {
  reason: 'hypercall'
  number: bigint
  args: bigint[]
  /** Whether the guest was in 64-bit mode. */
  longMode: boolean
  result: bigint
}

/** An MSR access that user space was asked to handle (KVM_CAP_X86_USER_SPACE_MSR). */
export interface MsrExit {
  reason: 'x86-rdmsr' | 'x86-wrmsr'
  index: number
  /** KVM_MSR_EXIT_REASON_*: why it came here. */
  why: number
  /** What the guest writes; for a read, set it. */
  value: bigint
  /** Set to true to give the guest a #GP instead. */
  error: boolean
}

/** KVM could not go on. `data` are `ndata` words whose meaning depends on `suberror` (KVM_INTERNAL_ERROR_*). */
export interface InternalErrorExit {
  reason: 'internal-error'
  suberror: number
  data: bigint[]
  /** The instruction that could not be emulated, where KVM tells it. */
  instruction?: Uint8Array
}

export type VcpuExit =
  | IoExit
  | MmioExit
  | HypercallExit
  | MsrExit
  | InternalErrorExit
  /** The guest executed HLT, and the interrupt controller is not in the kernel. */
  | { reason: 'hlt' }
  /** A triple fault, or another shutdown event of the processor. */
  | { reason: 'shutdown' }
  /** A signal, or `immediateExit`. */
  | { reason: 'intr' }
  /** The processor refused to enter the guest; `hardwareReason` is its own code. */
  | { reason: 'fail-entry'; hardwareReason: bigint; cpu: number }
  | { reason: 'exception'; exception: number; errorCode: number }
  /** A breakpoint or step asked for with `setGuestDebug`. */
  | { reason: 'debug'; exception: number; pc: bigint; dr6: bigint; dr7: bigint }
  /** The guest can take an interrupt now (`requestInterruptWindow`). */
  | { reason: 'irq-window-open' }
  | { reason: 'set-tpr' }
  | { reason: 'tpr-access'; rip: bigint; isWrite: boolean }
  | { reason: 'nmi' }
  /** `type` is KVM_SYSTEM_EVENT_*. */
  | { reason: 'system-event'; type: number; data: bigint[] }
  | { reason: 'ioapic-eoi'; vector: number }
  /** `type` is KVM_EXIT_HYPERV_*; `detail` the member of the union that it selects. */
  | { reason: 'hyperv'; type: number; detail: object }
  | { reason: 'dirty-ring-full' }
  | { reason: 'ap-reset-hold' }
  | { reason: 'x86-bus-lock' }
  | { reason: 'xen'; type: number; detail: object }
  /** The guest ran for longer than the notify window allows; with `contextInvalid` it cannot go on. */
  | { reason: 'notify'; contextInvalid: boolean }
  /** The access could not be resolved; the fault would come again. */
  | { reason: 'memory-fault'; flags: bigint; address: bigint; size: bigint }
  /** A reason that this version does not know; `hardwareReason` is the processor's own code where `code` is 0. */
  | { reason: 'unknown'; code: number; hardwareReason: bigint }

const at = kvm_run.offsetOf
const EXIT_REASON = at('exit_reason') / 4
const IO_DIRECTION = at('io.direction')
const IO_SIZE = at('io.size')
const IO_PORT = at('io.port') / 2
const IO_COUNT = at('io.count') / 4
const MMIO_ADDRESS_LOW = at('mmio.phys_addr') / 4
const MMIO_DATA = at('mmio.data')
const MMIO_LENGTH = at('mmio.len') / 4
const MMIO_IS_WRITE = at('mmio.is_write')
const PAGE = 4096

/**
 * Reads the exits of one vCPU from its mapping. The objects of I/O and MMIO exits, the frequent ones, are made once and
 * filled again.
 */
export class ExitReader {
  readonly #bytes: Uint8Array
  readonly #u16: Uint16Array
  readonly #u32: Uint32Array
  readonly #view: DataView
  readonly #io: IoExit
  readonly #mmio: MmioExit
  /** Views of the port I/O page by length, and of the MMIO data. */
  readonly #ioData: Uint8Array[] = []
  readonly #mmioData: readonly Uint8Array[]

  constructor(run: ArrayBuffer) {
    this.#bytes = new Uint8Array(run)
    this.#u16 = new Uint16Array(run)
    this.#u32 = new Uint32Array(run)
    this.#view = new DataView(run)
    this.#mmioData = Array.from({ length: 9 }, (_, length) => new Uint8Array(run, MMIO_DATA, length))
    this.#io = { reason: 'io-out', port: 0, size: 1, count: 1, data: this.#mmioData[0]! }
    this.#mmio = { reason: 'mmio-write', address: 0, data: this.#mmioData[0]! }
  }

  /** The exit that is in the mapping. */
  read(): VcpuExit {
    const code = this.#u32[EXIT_REASON]!
    if (code === c.KVM_EXIT_IO) return this.#readIo()
    if (code === c.KVM_EXIT_MMIO) return this.#readMmio()
    return this.#readOther(code)
  }

  #readIo(): IoExit {
    const io = this.#io
    const size = this.#bytes[IO_SIZE]!
    const count = this.#u32[IO_COUNT]!
    io.reason = this.#bytes[IO_DIRECTION] === c.KVM_EXIT_IO_IN ? 'io-in' : 'io-out'
    io.port = this.#u16[IO_PORT]!
    io.size = size
    io.count = count
    const length = size * count
    // On x86 `data_offset` is always the port I/O page.
    io.data = this.#ioData[length] ??= new Uint8Array(this.#bytes.buffer, KVM_PIO_PAGE_OFFSET * PAGE, length)
    return io
  }

  #readMmio(): MmioExit {
    const mmio = this.#mmio
    mmio.reason = this.#bytes[MMIO_IS_WRITE] ? 'mmio-write' : 'mmio-read'
    mmio.address = this.#u32[MMIO_ADDRESS_LOW]! + this.#u32[MMIO_ADDRESS_LOW + 1]! * 2 ** 32
    mmio.data = this.#mmioData[this.#u32[MMIO_LENGTH]!]!
    return mmio
  }

  #readOther(code: number): VcpuExit {
    switch (code) {
      case c.KVM_EXIT_HLT:
        return { reason: 'hlt' }
      case c.KVM_EXIT_SHUTDOWN:
        return { reason: 'shutdown' }
      case c.KVM_EXIT_INTR:
        return { reason: 'intr' }
      case c.KVM_EXIT_IRQ_WINDOW_OPEN:
        return { reason: 'irq-window-open' }
      case c.KVM_EXIT_SET_TPR:
        return { reason: 'set-tpr' }
      case c.KVM_EXIT_NMI:
        return { reason: 'nmi' }
      case c.KVM_EXIT_DIRTY_RING_FULL:
        return { reason: 'dirty-ring-full' }
      case c.KVM_EXIT_AP_RESET_HOLD:
        return { reason: 'ap-reset-hold' }
      case c.KVM_EXIT_X86_BUS_LOCK:
        return { reason: 'x86-bus-lock' }
      case c.KVM_EXIT_EXCEPTION:
        return { reason: 'exception', exception: this.#get32('ex.exception'), errorCode: this.#get32('ex.error_code') }
      case c.KVM_EXIT_FAIL_ENTRY:
        return {
          reason: 'fail-entry',
          hardwareReason: this.#get64('fail_entry.hardware_entry_failure_reason'),
          cpu: this.#get32('fail_entry.cpu'),
        }
      case c.KVM_EXIT_DEBUG:
        return {
          reason: 'debug',
          exception: this.#get32('debug.arch.exception'),
          pc: this.#get64('debug.arch.pc'),
          dr6: this.#get64('debug.arch.dr6'),
          dr7: this.#get64('debug.arch.dr7'),
        }
      case c.KVM_EXIT_TPR_ACCESS:
        return {
          reason: 'tpr-access',
          rip: this.#get64('tpr_access.rip'),
          isWrite: this.#get32('tpr_access.is_write') !== 0,
        }
      case c.KVM_EXIT_SYSTEM_EVENT:
        return {
          reason: 'system-event',
          type: this.#get32('system_event.type'),
          data: this.#words('system_event.data', this.#get32('system_event.ndata')),
        }
      case c.KVM_EXIT_IOAPIC_EOI:
        return { reason: 'ioapic-eoi', vector: this.#bytes[at('eoi.vector')]! }
      case c.KVM_EXIT_NOTIFY:
        return {
          reason: 'notify',
          contextInvalid: (this.#get32('notify.flags') & c.KVM_NOTIFY_CONTEXT_INVALID) !== 0,
        }
      case c.KVM_EXIT_MEMORY_FAULT:
        return {
          reason: 'memory-fault',
          flags: this.#get64('memory_fault.flags'),
          address: this.#get64('memory_fault.gpa'),
          size: this.#get64('memory_fault.size'),
        }
      case c.KVM_EXIT_HYPERV:
        return { reason: 'hyperv', type: this.#get32('hyperv.type'), detail: kvm_run.decode(this.#bytes).exit }
      case c.KVM_EXIT_XEN:
        return { reason: 'xen', type: this.#get32('xen.type'), detail: kvm_run.decode(this.#bytes).exit }
      case c.KVM_EXIT_INTERNAL_ERROR:
        return this.#readInternalError()
      case c.KVM_EXIT_HYPERCALL:
        return this.#readHypercall()
      case c.KVM_EXIT_X86_RDMSR:
        return this.#readMsr('x86-rdmsr')
      case c.KVM_EXIT_X86_WRMSR:
        return this.#readMsr('x86-wrmsr')
      default:
        return { reason: 'unknown', code, hardwareReason: this.#get64('hw.hardware_exit_reason') }
    }
  }

  #readInternalError(): InternalErrorExit {
    const suberror = this.#get32('internal.suberror')
    const ndata = this.#get32('internal.ndata')
    const exit: InternalErrorExit = { reason: 'internal-error', suberror, data: this.#words('internal.data', ndata) }
    const size = this.#bytes[at('emulation_failure.insn_size')]!
    const told = this.#get64('emulation_failure.flags') & BigInt(c.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
    if (suberror === c.KVM_INTERNAL_ERROR_EMULATION && ndata > 0 && told && size <= 15) {
      const start = at('emulation_failure.insn_bytes')
      exit.instruction = this.#bytes.slice(start, start + size)
    }
    return exit
  }

  #readHypercall(): HypercallExit {
    const view = this.#view
    return {
      reason: 'hypercall',
      number: this.#get64('hypercall.nr'),
      args: this.#words('hypercall.args', 6),
      longMode: this.#get32('hypercall.longmode') !== 0,
      get result() {
        return view.getBigUint64(at('hypercall.ret'), true)
      },
      set result(value: bigint) {
        view.setBigUint64(at('hypercall.ret'), value, true)
      },
    }
  }

  #readMsr(reason: MsrExit['reason']): MsrExit {
    const view = this.#view
    return {
      reason,
      index: this.#get32('msr.index'),
      why: this.#get32('msr.reason'),
      get value() {
        return view.getBigUint64(at('msr.data'), true)
      },
      set value(value: bigint) {
        view.setBigUint64(at('msr.data'), value, true)
      },
      get error() {
        return view.getUint8(at('msr.error')) !== 0
      },
      set error(value: boolean) {
        view.setUint8(at('msr.error'), value ? 1 : 0)
      },
    }
  }

  #get32(path: string): number {
    return this.#view.getUint32(at(path), true)
  }

  #get64(path: string): bigint {
    return this.#view.getBigUint64(at(path), true)
  }

  /** At most 16, as the arrays in `struct kvm_run` are long. */
  #words(path: string, count: number): bigint[] {
    const start = at(path)
    return Array.from({ length: Math.min(count, 16) }, (_, i) => this.#view.getBigUint64(start + i * 8, true))
  }
}
