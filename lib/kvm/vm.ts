import type { NativeVm } from './binding.js'
import type { EventFd } from './event-fd.js'
import { GuestRegion, type GuestRegionOptions } from './guest-region.js'
import {
  KVM_IOEVENTFD_FLAG_DATAMATCH,
  KVM_IOEVENTFD_FLAG_DEASSIGN,
  KVM_IOEVENTFD_FLAG_PIO,
  KVM_IRQFD_FLAG_DEASSIGN,
  KVM_MSI_VALID_DEVID,
  KVM_PIT_SPEAKER_DUMMY,
  type KvmClockData,
  type KvmIrqchip,
  type KvmIrqRoutingEntry,
  type KvmPitState2,
  kvm_clock_data,
  kvm_coalesced_mmio_zone,
  kvm_ioeventfd,
  kvm_irq_level,
  kvm_irq_routing,
  kvm_irqchip,
  kvm_msi,
  kvm_pit_config,
  kvm_pit_state2,
} from './structs.js'
import { encodeEnableCap } from './tables.js'
import { Vcpu } from './vcpu.js'

/** A range of addresses whose guest writes go to an `EventFd`. */
export interface IoeventfdOptions {
  /** Guest-physical address, or port number with `pio`. */
  address: number
  /** Bytes of the access: 1, 2, 4 or 8; 0 for any length. */
  length: number
  /** Only a write of this value. */
  datamatch?: bigint
  /** A port, not an address. */
  pio?: boolean
}

/** A message-signalled interrupt (Intel SDM vol. 3, "Message Signalled Interrupts"). */
export interface Msi {
  address: bigint
  data: number
  deviceId?: number
}

export interface CoalescedZone {
  /** Guest-physical address, or port number with `pio`. */
  address: number
  /** Bytes. */
  size: number
  pio?: boolean
}

/** A virtual machine (KVM API, "VM ioctls"). Close it, or declare it with `using`. */
export class Vm {
  /** @internal */
  readonly native: NativeVm
  readonly #regions = new Map<number, GuestRegion>()
  readonly #vcpus = new Set<Vcpu>()
  readonly #enabledCaps: Uint8Array[] = []
  #routing: readonly KvmIrqRoutingEntry[] | undefined
  #hasIrqchip = false
  #hasPit = false

  /** @internal */
  constructor(native: NativeVm) {
    this.native = native
  }

  /** The memslots with memory behind them. */
  get regions(): readonly GuestRegion[] {
    return [...this.#regions.values()]
  }

  /** What `enableCap` has enabled: each a `struct kvm_enable_cap`. KVM does not tell. */
  get enabledCaps(): readonly Uint8Array[] {
    return this.#enabledCaps
  }

  /** The table that `setGsiRouting` has set, undefined where it is still KVM's own. KVM does not tell. */
  get routing(): readonly KvmIrqRoutingEntry[] | undefined {
    return this.#routing
  }

  /** Whether the VM has interrupt controllers in the kernel. */
  get hasIrqchip(): boolean {
    return this.#hasIrqchip
  }

  /** Whether the VM has a timer (i8254) in the kernel. */
  get hasPit(): boolean {
    return this.#hasPit
  }

  /** KVM_CHECK_EXTENSION on the VM (KVM API 4.4, KVM_CAP_CHECK_EXTENSION_VM). */
  checkExtension(capability: number): number {
    return this.native.checkExtension(capability)
  }

  /**
   * KVM_ENABLE_CAP on the VM (KVM API 4.37, KVM_CAP_ENABLE_CAP_VM).
   * @throws {KvmError} the capability cannot be enabled, or takes a pointer or descriptor (EOPNOTSUPP)
   */
  enableCap(capability: number, ...args: bigint[]): void {
    const struct = encodeEnableCap(capability, args)
    this.native.enableCap(struct)
    this.#enabledCaps.push(struct)
  }

  /**
   * Maps new memory, zeroed, into the guest: KVM_SET_USER_MEMORY_REGION (KVM API 4.35, KVM_CAP_USER_MEMORY).
   * @throws {KvmError} address or size are not multiples of 4096 (EINVAL), or it overlaps another region (EEXIST)
   */
  addMemory(options: GuestRegionOptions): GuestRegion {
    let slot = options.slot ?? 0
    if (options.slot === undefined) while (this.#regions.has(slot)) slot++
    else if (this.#regions.has(slot)) throw new RangeError(`memslot ${slot} is in use: remove() it first`)
    const region = new GuestRegion(this.native, { ...options, slot }, () => this.#regions.delete(slot))
    this.#regions.set(slot, region)
    return region
  }

  /** KVM_SET_TSS_ADDR (KVM API 4.35): three pages below 4 GiB that Intel hosts need, outside guest memory. */
  setTssAddress(address: number): void {
    this.native.setTssAddr(address)
  }

  /** KVM_SET_IDENTITY_MAP_ADDR (KVM API 4.66): one page below 4 GiB that Intel hosts need; before any vCPU. */
  setIdentityMapAddress(address: number): void {
    const bytes = new Uint8Array(8)
    new DataView(bytes.buffer).setBigUint64(0, BigInt(address), true)
    this.native.setIdentityMapAddr(bytes)
  }

  /** KVM_CREATE_IRQCHIP (KVM API 4.24, KVM_CAP_IRQCHIP): PIC, IOAPIC and local APICs in the kernel; before any vCPU. */
  createIrqchip(): void {
    this.native.createIrqchip()
    this.#hasIrqchip = true
  }

  /** KVM_GET_IRQCHIP (KVM API 4.26): `chip` is KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC. */
  getIrqchip(chip: number): KvmIrqchip {
    const bytes = new Uint8Array(kvm_irqchip.size)
    new DataView(bytes.buffer).setUint32(0, chip, true)
    this.native.getIrqchip(bytes)
    return kvm_irqchip.decode(bytes)
  }

  /** KVM_SET_IRQCHIP (KVM API 4.27). */
  setIrqchip(state: KvmIrqchip): void {
    this.native.setIrqchip(kvm_irqchip.encode(state))
  }

  /** KVM_CREATE_PIT2 (KVM API 4.71, KVM_CAP_PIT2): an i8254; `speakerDummy` also takes port 0x61. */
  createPit2({ speakerDummy = true }: { speakerDummy?: boolean } = {}): void {
    const flags = speakerDummy ? KVM_PIT_SPEAKER_DUMMY : 0
    this.native.createPit2(kvm_pit_config.encode({ flags, pad: new Array<number>(15).fill(0) }))
    this.#hasPit = true
  }

  /** KVM_GET_PIT2 (KVM API 4.72, KVM_CAP_PIT_STATE2). */
  getPit2(): KvmPitState2 {
    const bytes = new Uint8Array(kvm_pit_state2.size)
    this.native.getPit2(bytes)
    return kvm_pit_state2.decode(bytes)
  }

  /** KVM_SET_PIT2 (KVM API 4.73, KVM_CAP_PIT_STATE2). */
  setPit2(state: KvmPitState2): void {
    this.native.setPit2(kvm_pit_state2.encode(state))
  }

  /** KVM_IRQ_LINE (KVM API 4.25, KVM_CAP_IRQCHIP): the level of a GSI's line. */
  setIrqLine(gsi: number, level: boolean): void {
    this.native.irqLine(kvm_irq_level.encode({ irq: gsi, level: level ? 1 : 0 }))
  }

  /** KVM_SET_GSI_ROUTING (KVM API 4.52, KVM_CAP_IRQ_ROUTING): replaces the whole table. */
  setGsiRouting(entries: readonly KvmIrqRoutingEntry[]): void {
    this.native.setGsiRouting(kvm_irq_routing.encode({ nr: entries.length, flags: 0, entries: [...entries] }))
    this.#routing = [...entries]
  }

  /** KVM_SIGNAL_MSI (KVM API 4.70, KVM_CAP_SIGNAL_MSI). Returns whether the guest took it (false: it was blocked). */
  signalMsi({ address, data, deviceId }: Msi): boolean {
    const bytes = kvm_msi.encode({
      address_lo: Number(address & 0xffffffffn),
      address_hi: Number(address >> 32n),
      data,
      flags: deviceId === undefined ? 0 : KVM_MSI_VALID_DEVID,
      devid: deviceId ?? 0,
      pad: new Uint8Array(12),
    })
    return this.native.signalMsi(bytes) > 0
  }

  /**
   * KVM_IRQFD (KVM API 4.75, KVM_CAP_IRQFD): signalling `eventFd` raises `gsi`. With `resample` the interrupt is
   * level-triggered, and the guest's end of interrupt signals that one (KVM_CAP_IRQFD_RESAMPLE).
   */
  irqfd(eventFd: EventFd, gsi: number, { resample }: { resample?: EventFd } = {}): void {
    this.native.irqfd(eventFd.native, gsi, 0, resample?.native ?? null)
  }

  /** Undoes `irqfd`. */
  removeIrqfd(eventFd: EventFd, gsi: number): void {
    this.native.irqfd(eventFd.native, gsi, KVM_IRQFD_FLAG_DEASSIGN, null)
  }

  /** KVM_IOEVENTFD (KVM API 4.59, KVM_CAP_IOEVENTFD): the guest's writes signal `eventFd` and cause no exit. */
  ioeventfd(eventFd: EventFd, options: IoeventfdOptions): void {
    this.native.ioeventfd(eventFd.native, encodeIoeventfd(options, 0))
  }

  /** Undoes `ioeventfd` with the same options. */
  removeIoeventfd(eventFd: EventFd, options: IoeventfdOptions): void {
    this.native.ioeventfd(eventFd.native, encodeIoeventfd(options, KVM_IOEVENTFD_FLAG_DEASSIGN))
  }

  /**
   * KVM_REGISTER_COALESCED_MMIO (KVM API 4.116, KVM_CAP_COALESCED_MMIO, KVM_CAP_COALESCED_PIO): guest writes there are
   * queued in the ring (`vcpu.coalescedWrites()`) and seen at the next other exit.
   */
  registerCoalescedMmio(zone: CoalescedZone): void {
    this.native.registerCoalescedMmio(encodeZone(zone))
  }

  /** KVM_UNREGISTER_COALESCED_MMIO. */
  unregisterCoalescedMmio(zone: CoalescedZone): void {
    this.native.unregisterCoalescedMmio(encodeZone(zone))
  }

  /**
   * KVM_GET_DIRTY_LOG (KVM API 4.8): a bit for each page of the slot written since the last call, page 0 in bit 0 of
   * byte 0. Clears the log, but not under KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
   */
  getDirtyLog(slot: number): Uint8Array {
    const region = this.#regions.get(slot)
    if (!region) throw new RangeError(`memslot ${slot} has no memory`)
    const bitmap = new Uint8Array(bitmapBytes(region.size / 4096))
    this.native.getDirtyLog(slot, bitmap)
    return bitmap
  }

  /**
   * KVM_CLEAR_DIRTY_LOG (KVM API 4.117, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2): clears the pages whose bits are set.
   * `firstPage` is a multiple of 64, and so is `pages` but at the slot's end.
   */
  clearDirtyLog(slot: number, firstPage: number, pages: number, bitmap: Uint8Array): void {
    this.native.clearDirtyLog(slot, firstPage, pages, bitmap)
  }

  /** KVM_GET_CLOCK (KVM API 4.29, KVM_CAP_ADJUST_CLOCK): nanoseconds, with the host's TSC and real time where known. */
  getClock(): KvmClockData {
    const bytes = new Uint8Array(kvm_clock_data.size)
    this.native.getClock(bytes)
    return kvm_clock_data.decode(bytes)
  }

  /** KVM_SET_CLOCK (KVM API 4.30, KVM_CAP_ADJUST_CLOCK). */
  setClock(clock: KvmClockData): void {
    this.native.setClock(kvm_clock_data.encode(clock))
  }

  /**
   * KVM_CREATE_VCPU (KVM API 4.7). `id` is the vCPU's APIC id.
   * @throws {KvmError} the id is taken (EEXIST) or beyond KVM_CAP_MAX_VCPU_ID (EINVAL)
   */
  createVcpu(id: number): Vcpu {
    const vcpu = new Vcpu(this.native.createVcpu(id), id, this, () => this.#vcpus.delete(vcpu))
    this.#vcpus.add(vcpu)
    return vcpu
  }

  /** Stops and closes the vCPUs, then the VM; its memory is unmapped and every view of it detached. */
  close(): void {
    for (const vcpu of [...this.#vcpus]) vcpu.close()
    this.native.close()
    for (const region of this.regions) region.release()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

/** Bytes of a dirty bitmap: a bit a page, in whole 64-bit words. */
function bitmapBytes(pages: number): number {
  return Math.ceil(pages / 64) * 8
}

function encodeIoeventfd({ address, length, datamatch, pio }: IoeventfdOptions, flags: number): Uint8Array {
  if (datamatch !== undefined) flags |= KVM_IOEVENTFD_FLAG_DATAMATCH
  if (pio) flags |= KVM_IOEVENTFD_FLAG_PIO
  return kvm_ioeventfd.encode({
    datamatch: datamatch ?? 0n,
    addr: BigInt(address),
    len: length,
    fd: -1,
    flags,
    pad: new Uint8Array(36),
  })
}

function encodeZone({ address, size, pio }: CoalescedZone): Uint8Array {
  return kvm_coalesced_mmio_zone.encode({ addr: BigInt(address), size, pio: pio ? 1 : 0 })
}
