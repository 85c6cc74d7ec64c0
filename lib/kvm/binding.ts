/**
 * The only file that loads the addon, and the whole of its surface. Every method that names an ioctl takes the ioctl's
 * struct as bytes, checks their length and throws `KvmError`; policy and layouts are on this side.
 */
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { KvmError } from '../errors.js'

type StructCall = (struct: Uint8Array) => number

export interface NativeKvm {
  getApiVersion(): number
  checkExtension(capability: number): number
  getVcpuMmapSize(): number
  getSupportedCpuid: StructCall
  getEmulatedCpuid: StructCall
  getMsrIndexList: StructCall
  getMsrFeatureIndexList: StructCall
  getMsrs: StructCall
  createVm(type: number): NativeVm
  close(): void
}

export interface NativeVm {
  checkExtension(capability: number): number
  setTssAddr(address: number): number
  setIdentityMapAddr: StructCall
  createIrqchip(): number
  getIrqchip: StructCall
  setIrqchip: StructCall
  createPit2: StructCall
  getPit2: StructCall
  setPit2: StructCall
  irqLine: StructCall
  setGsiRouting: StructCall
  signalMsi: StructCall
  registerCoalescedMmio: StructCall
  unregisterCoalescedMmio: StructCall
  getClock: StructCall
  setClock: StructCall
  createVcpu(id: number): NativeVcpu
  setUserMemoryRegion(
    slot: number,
    flags: number,
    guestAddress: number,
    size: number,
    memory?: NativeMemory,
    offset?: number,
  ): void
  getDirtyLog(slot: number, bitmap: Uint8Array): number
  clearDirtyLog(slot: number, firstPage: number, pages: number, bitmap: Uint8Array): number
  enableCap: StructCall
  irqfd(eventFd: NativeEventFd, gsi: number, flags: number, resample: NativeEventFd | null): number
  ioeventfd(eventFd: NativeEventFd, struct: Uint8Array): number
  /** Has vCPU threads answer accesses to a word of `memory` by themselves: reads, and writes that clear bits. */
  addStatusWord(memory: NativeMemory, offset: number, readAddress: number, clearAddress: number): void
  close(): void
}

export interface NativeVcpu {
  getRegs: StructCall
  setRegs: StructCall
  getSregs: StructCall
  setSregs: StructCall
  getSregs2: StructCall
  setSregs2: StructCall
  getFpu: StructCall
  setFpu: StructCall
  getXsave: StructCall
  getXsave2: StructCall
  setXsave: StructCall
  getXcrs: StructCall
  setXcrs: StructCall
  getCpuid2: StructCall
  setCpuid2: StructCall
  getMsrs: StructCall
  setMsrs: StructCall
  getLapic: StructCall
  setLapic: StructCall
  getMpState: StructCall
  setMpState: StructCall
  getVcpuEvents: StructCall
  setVcpuEvents: StructCall
  getDebugregs: StructCall
  setDebugregs: StructCall
  getNestedState: StructCall
  setNestedState: StructCall
  getTscKhz(): number
  setTscKhz(khz: number): number
  setGuestDebug: StructCall
  translate: StructCall
  nmi(): number
  interrupt: StructCall
  setSignalMask: StructCall
  kvmclockCtrl(): number
  getDeviceAttr(group: number, attribute: number, value: Uint8Array): void
  setDeviceAttr(group: number, attribute: number, value: Uint8Array): void
  hasDeviceAttr(group: number, attribute: number, value: Uint8Array): void
  enableCap: StructCall
  /** A function that makes KVM_RUN and leaves the exit reason in `kvm_run.exit_reason`. */
  runFunction(): () => void
  /** The vCPU's mapping: `struct kvm_run`, the port I/O page, the coalesced ring. A second call detaches the first. */
  runBuffer(): ArrayBuffer
  close(): void
}

/** What `NativeVcpuThread` reports; `value` is the exit reason or the errno. */
export const ThreadEvent = { exit: 0, paused: 1, stopped: 2, error: 3 } as const

export interface NativeVcpuThread {
  start(): void
  pause(): void
  resume(): void
  stop(): void
  /** Lets the vCPU go on after an event whose callback did not return true. */
  answer(): void
  /** Ends the thread, waiting until it is out of KVM_RUN. */
  close(): void
}

export interface NativeMemory {
  /** Views over the whole memory, 2 GiB each at most. A second call detaches the first ones. */
  buffers(): ArrayBuffer[]
  /** Gives `[offset, offset + length)` the content of `file` from `fileOffset` on, copied on write. */
  map(offset: number, length: number, file: NativeMemoryFile, fileOffset: number): void
  /** Gives all of it the content of `file`, which what is written from now on goes to. */
  share(file: NativeMemoryFile): void
  /** Offset and length of each range whose pages are there, ascending. What is never swapped out is all zero elsewhere (`mincore`). */
  residentRanges(): number[]
  close(): void
}

/** `runs`: memory offset, length and file offset of each, in bytes. */
export interface NativeMemoryFile {
  /** Offset and length of each range that is no hole, ascending. */
  dataRanges(offset: number, length: number): number[]
  /** From the file into the memory. */
  read(memory: NativeMemory, runs: Float64Array): void
  /** From the memory into the file. */
  write(memory: NativeMemory, runs: Float64Array): void
  close(): void
}

export interface NativeEventFd {
  signal(count: number): void
  read(): number
  watch(onEvent: (count: number) => void): void
  unwatch(): void
  close(): void
}

/** What `fs` has no name for on a disk image, a regular file or a block device. */
export interface NativeImageFile {
  /** Bytes. */
  size(): number
  /** A shared lock of the byte at `offset` (F_OFD_SETLK), until `close()`. False where another has it exclusively. */
  lock(offset: number): boolean
  /** Whether another open file description has a lock of the byte at `offset` (F_OFD_GETLK). */
  isLocked(offset: number): boolean
  /**
   * Reads what is in the host's memory (preadv2 with RWF_NOWAIT) and gives how many bytes that was; or a negated errno where it was none:
   * EAGAIN where it takes a wait, EOPNOTSUPP where the file system cannot tell. With `mayWait` it is read in any case.
   */
  readNow(buffers: readonly Uint8Array[], offset: number, mayWait: boolean): number
  /** Makes a range read as zeros and take no room (FALLOC_FL_PUNCH_HOLE). */
  punchHole(offset: number, length: number): void
  close(): void
}

/** In `NativeTap.read`: there is no frame. */
export const TAP_EMPTY = 0xffffffff

/**
 * A tap interface. Frames begin with a `virtio_net_hdr_v1`. `runs` has three numbers for each piece of memory: which view it is
 * in, its offset there, its length; `counts` how many pieces each buffer, or frame, has.
 */
export interface NativeTap {
  /** The name that it has. */
  name(): string
  /** TUNSETOFFLOAD: what may be left undone in frames that are read. */
  setOffload(flags: number): void
  isUp(): boolean
  up(): void
  /** SIOCSIFHWADDR: the hardware address of the host's end, 6 bytes. */
  setAddress(bytes: Uint8Array): void
  joinBridge(name: string): void
  /** The views that the runs of `read` and `write` are in from now on. */
  useViews(views: readonly Uint8Array[]): void
  /**
   * Fills buffers with frames and gives how many; `lengths` has the length of each, and behind them that of a frame which waits for more
   * buffers, 0 where the buffers are all used, or `TAP_EMPTY`.
   */
  read(runs: Float64Array, counts: Uint32Array, buffers: number, merge: boolean, lengths: Uint32Array): number
  /** Drops the frame that waits for more buffers. */
  drop(): void
  /** Gives how many frames were taken. */
  write(runs: Float64Array, counts: Uint32Array, frames: number): number
  /** Calls back with events of epoll(7) as long as they last: EPOLLERR, and those of the last `arm`. */
  watch(onEvent: (events: number) => void): void
  arm(events: number): void
  close(): void
}

interface Addon {
  setErrorClass(errorClass: typeof KvmError): void
  cpuid(leaf: number, index: number): [eax: number, ebx: number, ecx: number, edx: number]
  /** Whether this network namespace has an interface of that name. */
  hasInterface(name: string): boolean
  /** Whether this JS thread, when it wakes up, leaves a busy processor to who has it (SCHED_BATCH). Gives what holds now. */
  setBatch(on: boolean): boolean
  Kvm: new (path: string) => NativeKvm
  VcpuThread: new (vcpu: NativeVcpu, onEvent: (event: number, value: number) => boolean) => NativeVcpuThread
  Memory: new (size: number, file?: NativeMemoryFile) => NativeMemory
  /** New memory of a size, of huge pages: 0 no, 1 where they can be had, 2 in any case, 3 of the host's pool; or an existing file by its path, read-only. */
  MemoryFile: new (
    sizeOrPath: number | string,
    huge?: 0 | 1 | 2 | 3,
  ) => NativeMemoryFile
  EventFd: new () => NativeEventFd
  ImageFile: new (path: string, writable: boolean) => NativeImageFile
  /** A tap by its name, made where there is none; `%d` in it stands for the lowest free number. */
  Tap: new (
    name: string,
  ) => NativeTap
}

const nodeGypBuild = createRequire(import.meta.url)('node-gyp-build') as (root: string) => Addon

/** The package's root holds the addon, built (`build/`) or shipped (`prebuilds/`). */
export const addon = nodeGypBuild(fileURLToPath(new URL('../..', import.meta.url)))
addon.setErrorClass(KvmError)
