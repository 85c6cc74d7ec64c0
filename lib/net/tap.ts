import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { basename } from 'node:path'
import type { NetConfig } from '../config/nets.js'
import type { ChainBatch } from '../devices/virtio/chain-batch.js'
import type { NetBackend, NetEvents, NetOffloads, Received } from '../devices/virtio/net-backend.js'
import { ConfigError, KvmError } from '../errors.js'
import { addon, type NativeTap, TAP_EMPTY } from '../kvm/binding.js'
import { throwLater } from '../kvm/throw-later.js'

type TapConfig = Extract<NetConfig, { type: 'tap' }>

/** TUN_F_* (linux/if_tun.h) */
const TUN_F_CSUM = 1
const TUN_F_TSO4 = 2
const TUN_F_TSO6 = 4

const EPOLLIN = 1
const EPOLLOUT = 4
const EPOLLERR = 8

/** A tap interface of the host. Frames are copied by the kernel, straight from and to guest memory. */
export class Tap implements NetBackend {
  /** What every tap can do, in the kernel where no hardware does. */
  static readonly OFFLOADS: NetOffloads = { checksum: true, tso4: true, tso6: true }
  readonly offloads = Tap.OFFLOADS
  /** The interface's name. */
  readonly ifname: string
  readonly #native: NativeTap
  #events: NetEvents | undefined
  /** What it calls back for. */
  #armed = 0
  /** Everything was read since it last called back. */
  #emptied = false
  /** Not everything was taken since it last called back. */
  #blocked = false
  /** The views that runs are in. */
  #views: readonly Uint8Array[] = []
  #lengths = new Uint32Array(512)

  /**
   * Opens a tap: an existing one by its name, or a new one that goes on a bridge and is gone with `close()`.
   * @param field names it in errors, as in `nets[0]`
   * @throws {ConfigError} it cannot be had: says what is missing, and how to give it
   */
  constructor(options: Pick<TapConfig, 'ifname' | 'bridge' | 'mac'>, field: string) {
    this.#native = openTap(options, field)
    this.ifname = this.#native.name()
  }

  leaveToGuest({ checksum, tso4, tso6 }: NetOffloads): void {
    const flags = (checksum ? TUN_F_CSUM : 0) | (tso4 ? TUN_F_TSO4 : 0) | (tso6 ? TUN_F_TSO6 : 0)
    this.#whileThere(() => this.#native.setOffload(flags))
  }

  start(events: NetEvents): void {
    this.#events = events
    this.#native.watch(happened => {
      try {
        this.#happened(happened)
      } catch (error) {
        throwLater(error)
      }
    })
  }

  send(frames: ChainBatch): number {
    this.#useViewsOf(frames)
    const taken = this.#whileThere(() => this.#native.write(frames.runs, frames.counts, frames.count))
    // Nobody is there to take them.
    if (taken === undefined) return frames.count
    if (taken < frames.count) {
      this.#blocked = true
      this.#arm(this.#armed | EPOLLOUT)
    }
    return taken
  }

  receive(buffers: ChainBatch, merge: boolean): Received {
    this.#useViewsOf(buffers)
    if (this.#lengths.length <= buffers.count) this.#lengths = new Uint32Array(2 * buffers.count)
    const lengths = this.#lengths
    const count = this.#whileThere(() => this.#native.read(buffers.runs, buffers.counts, buffers.count, merge, lengths))
    if (count === undefined) return { lengths: [], more: false }
    const more = lengths[count] !== TAP_EMPTY
    if (!more) {
      this.#emptied = true
      this.#arm(this.#armed | EPOLLIN)
    }
    return { lengths: lengths.subarray(0, count), more }
  }

  drop(): void {
    this.#native.drop()
  }

  close(): void {
    this.#events = undefined
    this.#native.close()
  }

  #happened(happened: number): void {
    if (happened & EPOLLERR) {
      this.#gone()
      return
    }
    // It calls back again and again for what is not taken: where that is left for later, it must not.
    if (happened & EPOLLIN) {
      this.#emptied = false
      this.#events?.readable()
      if (!this.#emptied) this.#arm(this.#armed & ~EPOLLIN)
    }
    if (happened & EPOLLOUT) {
      this.#blocked = false
      this.#events?.writable()
      if (!this.#blocked) this.#arm(this.#armed & ~EPOLLOUT)
    }
  }

  #arm(events: number): void {
    if (events === this.#armed) return
    this.#armed = events
    this.#whileThere(() => this.#native.arm(events))
  }

  /** Undefined, and the network gone, where the interface was deleted. */
  #whileThere<T>(act: () => T): T | undefined {
    try {
      return act()
    } catch (error) {
      if (!(error instanceof KvmError)) throw error
      this.#gone()
      return undefined
    }
  }

  #gone(): void {
    const events = this.#events
    this.#events = undefined
    this.#native.close()
    events?.gone()
  }

  #useViewsOf({ memory: { views } }: ChainBatch): void {
    if (views === this.#views) return
    this.#views = views
    // Memory that was closed has no bytes any more.
    this.#native.useViews(views.map(view => (view.length > 0 ? view : new Uint8Array(1))))
  }
}

const CAPABILITY = 'run with CAP_NET_ADMIN'

function openTap({ ifname, bridge, mac }: Pick<TapConfig, 'ifname' | 'bridge' | 'mac'>, field: string): NativeTap {
  if (ifname !== null && bridge === null && !addon.hasInterface(ifname)) {
    const remedy = `make it (ip tuntap add dev ${ifname} mode tap user $(id -un); ip link set ${ifname} up), or name a bridge to have it made`
    throw new ConfigError(`${field}.ifname`, ifname, 'there is no such interface', remedy)
  }
  if (bridge !== null && !addon.hasInterface(bridge)) {
    const remedy = `make it: ip link add ${bridge} type bridge; ip link set ${bridge} up`
    throw new ConfigError(`${field}.bridge`, bridge, 'there is no such interface', remedy)
  }
  const native = openInterface(ifname, field)
  try {
    const name = native.name()
    if (bridge !== null && bridgeOf(name) !== bridge) joinBridge(native, { name, bridge, mac, field })
    if (!native.isUp()) bringUp(native, name, field)
    return native
  } catch (error) {
    native.close()
    throw error
  }
}

function openInterface(ifname: string | null, field: string): NativeTap {
  try {
    return new addon.Tap(ifname ?? 'tap%d')
  } catch (error) {
    if (!(error instanceof KvmError)) throw error
    const { ioctl, code } = error
    const fail = (problem: string, remedy: string) =>
      ifname === null
        ? new ConfigError(`${field}.type`, 'tap', problem, remedy)
        : new ConfigError(`${field}.ifname`, ifname, problem, remedy)
    if (ioctl === 'open /dev/net/tun') {
      if (code === 'EACCES' || code === 'EPERM')
        throw fail('this user may not open /dev/net/tun', 'give access to it, or run as root')
      throw fail(
        `/dev/net/tun cannot be opened (${code})`,
        'load the module tun (modprobe tun), or make the device: mknod /dev/net/tun c 10 200',
      )
    }
    if (code === 'EPERM') {
      const name = ifname ?? 'tap0'
      throw fail(
        ifname !== null && addon.hasInterface(ifname)
          ? 'this tap belongs to another user'
          : 'this user may not make a tap, which needs CAP_NET_ADMIN',
        `${CAPABILITY}, or have root make one for this user: ip tuntap add dev ${name} mode tap user $(id -un)`,
      )
    }
    if (code === 'EBUSY') throw fail('another program has this tap open', 'use another one, or end that program')
    if (code === 'EINVAL')
      throw fail('it is no tap of a single queue', 'give one made by: ip tuntap add dev ... mode tap')
    throw fail(`it cannot be opened as a tap (${ioctl}: ${code})`, 'use another one')
  }
}

interface Port {
  readonly name: string
  readonly bridge: string
  readonly mac: string
  readonly field: string
}

function joinBridge(native: NativeTap, port: Port): void {
  const { name, bridge, mac, field } = port
  // A bridge has the lowest address of its ports: it must neither be a new one each time, which those behind it would have to find out,
  // nor ever be ours where there is a real card (libvirt does the same).
  const address = `fe${mac.slice(2)}`
  try {
    native.setAddress(Uint8Array.from(address.split(':'), byte => Number.parseInt(byte, 16)))
    refuseTwin(port, address)
    native.joinBridge(bridge)
    // Another one may have come at the same time.
    refuseTwin(port, address)
  } catch (error) {
    if (!(error instanceof KvmError)) throw error
    const fail = (problem: string, remedy: string) => new ConfigError(`${field}.bridge`, bridge, problem, remedy)
    if (error.code === 'EPERM') {
      const remedy = `${CAPABILITY}, or have root do it: ip tuntap add dev ${name} mode tap user $(id -un); ip link set ${name} master ${bridge} up`
      throw fail('this user may not put a tap on a bridge, which needs CAP_NET_ADMIN', remedy)
    }
    if (error.code === 'EBUSY') {
      const other = bridgeOf(name) ?? 'another bridge'
      throw fail(`${name} is on ${other} already`, `take it off: ip link set ${name} nomaster`)
    }
    if (error.code === 'ENOTSUP' || error.code === 'EINVAL')
      throw fail('it is no bridge', `make one: ip link add br0 type bridge`)
    throw fail(`${name} cannot be put on it (${error.code})`, 'use another bridge')
  }
}

/** Two cards with one address on a bridge get each other's frames, or none, and neither guest can tell why. */
function refuseTwin({ name, bridge, mac, field }: Port, address: string): void {
  const twin = portsOf(bridge).find(other => other !== name && addressOf(other) === address)
  if (twin === undefined) return
  const problem = `${twin}, which is on ${bridge} as well, is of a card with this address, or one that differs in the first byte only`
  throw new ConfigError(
    `${field}.mac`,
    mac,
    problem,
    'give each card a mac of its own, or each machine a name of its own',
  )
}

function bringUp(native: NativeTap, name: string, field: string): void {
  try {
    native.up()
  } catch (error) {
    if (!(error instanceof KvmError)) throw error
    const problem = `it is down, and this user may not bring it up (${error.code})`
    throw new ConfigError(`${field}.ifname`, name, problem, `have root do it: ip link set ${name} up`)
  }
}

/** The bridge that an interface is on, as far as sysfs is that of our network namespace. */
function bridgeOf(name: string): string | undefined {
  try {
    return basename(readlinkSync(`/sys/class/net/${name}/master`))
  } catch {
    return undefined
  }
}

/** The interfaces on a bridge, as far as sysfs is that of our network namespace. */
function portsOf(bridge: string): string[] {
  try {
    return readdirSync(`/sys/class/net/${bridge}/brif`)
  } catch {
    return []
  }
}

function addressOf(name: string): string | undefined {
  try {
    return readFileSync(`/sys/class/net/${name}/address`, 'latin1').trim()
  } catch {
    return undefined
  }
}
