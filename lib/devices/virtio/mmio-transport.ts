import type { GuestMemory } from '../../memory/guest-memory.js'
import { type Json, type StatefulDevice, savedIntegers, savedList, savedMember } from '../device.js'
import type { VirtioDevice, VirtioLink } from './device.js'
import { QUEUE_SIZE_MAX, Queue } from './queue.js'
import { QueueError } from './queue-error.js'
import { FEATURE, INTERRUPT, MAGIC, REGISTER, STATUS, VENDOR, VERSION } from './registers.js'

/** What the transport has of the machine. */
export interface VirtioWires {
  /** Raises the device's interrupt, an edge. */
  readonly interrupt: { signal(): void }
  /** For each queue what the driver's writes of its index to QueueNotify signal. Without them, such a write is an exit as any other. */
  readonly doorbells?: readonly Doorbell[]
  /** InterruptStatus, one word. Who answers the driver's accesses to it and to InterruptACK elsewhere, while vCPUs run, has it from there. */
  readonly interruptStatus?: Uint32Array
  /** Told each time that this thread was woken for the device: how much there was to do, in chains that wait or frames that came. */
  woken?(found: number): void
}

export interface Doorbell {
  watch(onRing: () => void): void
  unwatch(): void
}

/** What the driver told of a queue. */
interface QueueSetup {
  size: number
  ready: boolean
  descriptors: number
  driver: number
  device: number
}

const TRANSPORT_FEATURES = FEATURE.VERSION_1 | FEATURE.INDIRECT_DESC | FEATURE.EVENT_IDX
const UINT32 = 0xffff_ffff

const SAVED_LIMITS = {
  status: 0xff,
  deviceFeaturesSel: UINT32,
  driverFeaturesSel: UINT32,
  driverFeaturesLow: UINT32,
  driverFeaturesHigh: UINT32,
  queueSel: UINT32,
  interruptStatus: 3,
  configGeneration: UINT32,
}
const SAVED_QUEUE_LIMITS = {
  size: QUEUE_SIZE_MAX,
  ready: 1,
  descriptors: Number.MAX_SAFE_INTEGER,
  driver: Number.MAX_SAFE_INTEGER,
  device: Number.MAX_SAFE_INTEGER,
  nextAvailable: 0xffff,
  nextUsed: 0xffff,
}

/**
 * Virtio over MMIO, version 2 (virtio 1.2, section 4.2): the registers through which a driver finds a device, agrees with it on features
 * and tells it of its queues. It is quiet until `resume`.
 */
export class MmioTransport implements StatefulDevice {
  readonly device: VirtioDevice
  readonly #memory: GuestMemory
  readonly #wires: VirtioWires
  readonly #offered: bigint
  #status = 0
  #deviceFeaturesSel = 0
  #driverFeaturesSel = 0
  #driverFeatures = 0n
  #queueSel = 0
  readonly #interruptStatus: Uint32Array
  #configGeneration = 0
  #setups: QueueSetup[]
  /** While the driver has the device started. */
  #queues: readonly (Queue | undefined)[] | undefined
  #quiet = true
  /** A reset that waits for what the device works on. */
  #resetting: Promise<void> | undefined

  constructor(memory: GuestMemory, device: VirtioDevice, wires: VirtioWires) {
    this.device = device
    this.#memory = memory
    this.#wires = wires
    this.#interruptStatus = wires.interruptStatus ?? new Uint32Array(1)
    this.#offered = device.features | TRANSPORT_FEATURES
    this.#setups = this.#freshSetups()
  }

  read(offset: number, data: Uint8Array): void {
    data.fill(0)
    if (offset >= REGISTER.Config) {
      const { config } = this.device
      const at = offset - REGISTER.Config
      if (at < config.length) data.set(config.subarray(at, at + data.length))
    } else if (data.length === 4 && offset % 4 === 0) {
      new DataView(data.buffer, data.byteOffset, 4).setUint32(0, this.#register(offset), true)
    }
  }

  write(offset: number, data: Uint8Array): void | Promise<void> {
    if (offset >= REGISTER.Config) {
      // Nothing of it is written before the features are agreed on (2.5.1).
      if (this.#status & STATUS.FEATURES_OK) this.device.writeConfig?.(offset - REGISTER.Config, data)
      return
    }
    if (data.length !== 4 || offset % 4 !== 0) return
    const value = new DataView(data.buffer, data.byteOffset, 4).getUint32(0, true)
    switch (offset) {
      case REGISTER.DeviceFeaturesSel:
        this.#deviceFeaturesSel = value
        break
      case REGISTER.DriverFeatures:
        this.#setDriverFeatures(value)
        break
      case REGISTER.DriverFeaturesSel:
        this.#driverFeaturesSel = value
        break
      case REGISTER.QueueSel:
        this.#queueSel = value
        break
      case REGISTER.QueueNotify:
        this.#notify(value)
        break
      case REGISTER.InterruptACK:
        Atomics.and(this.#interruptStatus, 0, ~value)
        break
      case REGISTER.Status:
        return this.#setStatus(value & 0xff)
      default:
        this.#setUpQueue(offset, value)
    }
  }

  /** Takes no further chain and resolves once the device works on none; guest memory is not touched until `resume`. */
  async pause(): Promise<void> {
    if (this.#quiet) return
    this.#quiet = true
    for (const doorbell of this.#wires.doorbells ?? []) doorbell.unwatch()
    await this.#resetting
    await this.device.quiesce()
  }

  /** Begins, or goes on after `pause`. */
  resume(): void {
    if (!this.#quiet) return
    this.#quiet = false
    this.device.resume()
    for (const [index, doorbell] of (this.#wires.doorbells ?? []).entries()) {
      doorbell.watch(() => {
        const waiting = this.#queues?.[index]?.waiting ?? 0
        this.#notify(index)
        this.#wires.woken?.(waiting)
      })
    }
    // What the driver rang for meanwhile, or before it was saved, was heard by nobody.
    for (let index = 0; index < this.#setups.length; index++) this.#notify(index)
    if (Atomics.load(this.#interruptStatus, 0) !== 0) this.#wires.interrupt.signal()
  }

  /** As the driver's reset, when the machine is switched on anew. */
  reset(): void {
    this.#forget()
  }

  saveState(): Json {
    return {
      status: this.#status,
      deviceFeaturesSel: this.#deviceFeaturesSel,
      driverFeaturesSel: this.#driverFeaturesSel,
      driverFeaturesLow: Number(this.#driverFeatures & 0xffff_ffffn),
      driverFeaturesHigh: Number(this.#driverFeatures >> 32n),
      queueSel: this.#queueSel,
      interruptStatus: Atomics.load(this.#interruptStatus, 0),
      configGeneration: this.#configGeneration,
      queues: this.#setups.map(({ ready, ...setup }, i) => ({
        ...setup,
        ready: ready ? 1 : 0,
        ...(this.#queues?.[i]?.state ?? { nextAvailable: 0, nextUsed: 0 }),
      })),
      device: this.device.saveState(),
    }
  }

  loadState(state: Json): void {
    const saved = savedIntegers(state, SAVED_LIMITS)
    const queues = savedList(state, 'queues', this.#setups.length).map(queue =>
      savedIntegers(queue, SAVED_QUEUE_LIMITS),
    )
    if (queues.length !== this.#setups.length) {
      throw new TypeError(`saved device state: it has ${queues.length} queues, not ${this.#setups.length}`)
    }
    this.#forget()
    this.device.loadState(savedMember(state, 'device'))
    this.#status = saved.status
    this.#deviceFeaturesSel = saved.deviceFeaturesSel
    this.#driverFeaturesSel = saved.driverFeaturesSel
    this.#driverFeatures = (BigInt(saved.driverFeaturesHigh) << 32n) | BigInt(saved.driverFeaturesLow)
    this.#queueSel = saved.queueSel
    Atomics.store(this.#interruptStatus, 0, saved.interruptStatus)
    this.#configGeneration = saved.configGeneration
    this.#setups = queues.map(({ size, ready, descriptors, driver, device }) => {
      return { size, ready: ready === 1, descriptors, driver, device }
    })
    if (!this.#started) return
    for (const [i, queue] of this.#start().entries()) if (queue) queue.state = queues[i]!
  }

  get #started(): boolean {
    return (this.#status & (STATUS.DRIVER_OK | STATUS.DEVICE_NEEDS_RESET)) === STATUS.DRIVER_OK
  }

  #register(offset: number): number {
    switch (offset) {
      case REGISTER.MagicValue:
        return MAGIC
      case REGISTER.Version:
        return VERSION
      case REGISTER.DeviceID:
        return this.device.type
      case REGISTER.VendorID:
        return VENDOR
      case REGISTER.DeviceFeatures:
        return word(this.#offered, this.#deviceFeaturesSel)
      case REGISTER.QueueNumMax:
        return this.device.queueSizes[this.#queueSel] ?? 0
      case REGISTER.QueueReady:
        return this.#setups[this.#queueSel]?.ready ? 1 : 0
      case REGISTER.InterruptStatus:
        return Atomics.load(this.#interruptStatus, 0)
      case REGISTER.Status:
        return this.#status
      // There is no shared memory region: a length of all ones says so (4.2.2.1).
      case REGISTER.SHMLenLow:
      case REGISTER.SHMLenHigh:
      case REGISTER.SHMBaseLow:
      case REGISTER.SHMBaseHigh:
        return UINT32
      case REGISTER.ConfigGeneration:
        return this.#configGeneration
      default:
        return 0
    }
  }

  #setDriverFeatures(value: number): void {
    // They stand once the device has agreed to them (3.1.1).
    if (this.#driverFeaturesSel > 1 || this.#status & STATUS.FEATURES_OK) return
    const shift = BigInt(32 * this.#driverFeaturesSel)
    this.#driverFeatures = (this.#driverFeatures & ~(0xffff_ffffn << shift)) | (BigInt(value) << shift)
  }

  #setUpQueue(offset: number, value: number): void {
    const setup = this.#setups[this.#queueSel]
    if (!setup || this.#status & STATUS.DRIVER_OK) return
    if (offset === REGISTER.QueueReady) setup.ready = (value & 1) === 1
    // The driver must not change a queue that is ready (4.2.2.2).
    else if (!setup.ready) describeQueue(setup, offset, value, this.device.queueSizes[this.#queueSel]!)
  }

  #setStatus(value: number): void | Promise<void> {
    if (value === 0) return this.#reset()
    // A driver that starts anew while a reset still waits, by another vCPU, waits as well.
    if (this.#resetting) return this.#resetting.then(() => this.#setStatus(value))
    const before = this.#status
    // Status bits are only added (2.1.1).
    let status = before | (value & ~STATUS.DEVICE_NEEDS_RESET)
    if (status & ~before & STATUS.FEATURES_OK && !this.#agrees()) status &= ~STATUS.FEATURES_OK
    if (!(status & STATUS.FEATURES_OK)) status &= ~STATUS.DRIVER_OK
    this.#status = status
    if (status & ~before & STATUS.DRIVER_OK && this.#started) this.#startForDriver()
  }

  #agrees(): boolean {
    const wanted = this.#driverFeatures
    return (wanted & ~this.#offered) === 0n && (wanted & FEATURE.VERSION_1) !== 0n
  }

  #startForDriver(): void {
    try {
      this.#start()
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      this.#fail()
    }
  }

  #start(): readonly (Queue | undefined)[] {
    const features = this.#driverFeatures
    const queueFeatures = {
      eventIndex: (features & FEATURE.EVENT_IDX) !== 0n,
      indirect: (features & FEATURE.INDIRECT_DESC) !== 0n,
    }
    const queues = this.#setups.map(({ ready, ...layout }) => {
      return ready ? new Queue(this.#memory, layout, queueFeatures) : undefined
    })
    this.#queues = queues
    // Who was reset since has this link no more.
    const current = () => this.#queues === queues
    const link: VirtioLink = {
      queues,
      features,
      used: queue => {
        if (current() && queue.needsInterrupt()) this.#interrupt(INTERRUPT.USED_BUFFER)
      },
      notify: index => {
        if (current()) this.#notify(index)
      },
      woken: found => this.#wires.woken?.(found),
      configChanged: () => {
        if (current()) this.#configChanged()
      },
      fail: () => {
        if (current()) this.#fail()
      },
    }
    this.device.start(link)
    return queues
  }

  #notify(index: number): void {
    if (this.#quiet || !this.#started || !this.#queues?.[index]) return
    try {
      this.device.notify(index)
    } catch (error) {
      if (!(error instanceof QueueError)) throw error
      this.#fail()
    }
  }

  #interrupt(cause: number): void {
    // Before the interrupt, whose handler looks at it.
    Atomics.or(this.#interruptStatus, 0, cause)
    this.#wires.interrupt.signal()
  }

  #configChanged(): void {
    this.#configGeneration = (this.#configGeneration + 1) >>> 0
    this.#interrupt(INTERRUPT.CONFIGURATION_CHANGE)
  }

  /** "A device MUST send a configuration change notification if it has been started" (2.1.2). */
  #fail(): void {
    if (this.#status & STATUS.DEVICE_NEEDS_RESET) return
    this.#status |= STATUS.DEVICE_NEEDS_RESET
    this.#configChanged()
  }

  /** The driver may use its memory for something else from the moment on in which its write of 0 is done. */
  #reset(): void | Promise<void> {
    if (this.#resetting) return this.#resetting
    this.#status = 0
    if (!this.#queues) {
      this.#forget()
      return
    }
    this.#resetting = this.device.quiesce().then(() => {
      this.#resetting = undefined
      this.#forget()
      if (!this.#quiet) this.device.resume()
    })
    return this.#resetting
  }

  #forget(): void {
    if (this.#queues) this.device.reset()
    this.#queues = undefined
    this.#status = 0
    this.#deviceFeaturesSel = this.#driverFeaturesSel = this.#queueSel = 0
    this.#driverFeatures = 0n
    Atomics.store(this.#interruptStatus, 0, 0)
    this.#setups = this.#freshSetups()
  }

  #freshSetups(): QueueSetup[] {
    return this.device.queueSizes.map(size => ({ size, ready: false, descriptors: 0, driver: 0, device: 0 }))
  }
}

function describeQueue(setup: QueueSetup, offset: number, value: number, sizeMax: number): void {
  if (offset === REGISTER.QueueNum) {
    if (value <= sizeMax) setup.size = value
    return
  }
  const half = ADDRESS_HALVES.get(offset)
  if (half) setup[half.area] = half.join(setup[half.area], value)
}

const WORD = 2 ** 32
/** Addresses stay exact numbers: beyond this there is no memory in any case. */
const HIGH_MAX = 2 ** 21 - 1

function withLow(address: number, low: number): number {
  return Math.floor(address / WORD) * WORD + low
}

function withHigh(address: number, high: number): number {
  return Math.min(high, HIGH_MAX) * WORD + (address % WORD)
}

/** The registers that have one half of an area's address each. */
const ADDRESS_HALVES = new Map(
  (
    [
      ['descriptors', REGISTER.QueueDescLow, REGISTER.QueueDescHigh],
      ['driver', REGISTER.QueueDriverLow, REGISTER.QueueDriverHigh],
      ['device', REGISTER.QueueDeviceLow, REGISTER.QueueDeviceHigh],
    ] as const
  ).flatMap(([area, low, high]): [number, { area: typeof area; join: typeof withLow }][] => [
    [low, { area, join: withLow }],
    [high, { area, join: withHigh }],
  ]),
)

function word(bits: bigint, index: number): number {
  return index > 1 ? 0 : Number((bits >> BigInt(32 * index)) & 0xffff_ffffn)
}
