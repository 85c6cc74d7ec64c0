import { createHash, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { ConfigError } from '../errors.js'

/** A port of the host whose connections, or datagrams, go to a port of the guest. */
export type PortForward = { readonly protocol: 'tcp' | 'udp'; readonly host: number; readonly guest: number }

/** A network card at a tap interface of the host: an existing one, or one that is made and put on a bridge. */
export interface TapOptions {
  readonly type: 'tap'
  /** The tap. Without a bridge it must exist. Default: a new one, which is gone with the machine. */
  readonly ifname?: string | undefined
  /** The bridge that it is put on, which needs CAP_NET_ADMIN. */
  readonly bridge?: string | undefined
  /**
   * As in `02:00:00:00:00:01`. Default: one that follows from this host and `ifname`; without that from this host, its user, the machine's
   * `name` and the card's place; where there is no name either, a new one each time.
   */
  readonly mac?: string | undefined
}

/** A network card that reaches the network as a program of this user does, through passt(1). */
export interface UserNetOptions {
  readonly type: 'user'
  /** Ports of the host that lead to the guest. Default: none. */
  readonly forward?: readonly PortForward[] | undefined
  /** As in `02:00:00:00:00:01`. Default: as that of a tap without `ifname`. */
  readonly mac?: string | undefined
}

/** A network card of a machine, as a user gives it. */
export type NetOptions = TapOptions | UserNetOptions

/** A network card, complete and checked. */
export type NetConfig =
  | { readonly type: 'tap'; readonly ifname: string | null; readonly bridge: string | null; readonly mac: string }
  | { readonly type: 'user'; readonly forward: readonly PortForward[]; readonly mac: string }

const KEYS = { tap: ['type', 'ifname', 'bridge', 'mac'], user: ['type', 'forward', 'mac'] } as const
const FORWARD_KEYS = ['protocol', 'host', 'guest'] as const
const MOST = 8
/** IFNAMSIZ, with its final zero. */
const NAME_MAX = 15

/**
 * Checks the network cards of a machine and fills in the defaults. The host's interfaces are not looked at.
 * @param name the machine's
 * @throws {ConfigError} naming the field, its value and what to do
 */
export function parseNets(value: unknown = [], name?: string): NetConfig[] {
  if (!Array.isArray(value)) throw new ConfigError('nets', value, 'it is no list', 'give [{ type: "user" }]')
  if (value.length > MOST) {
    throw new ConfigError('nets', `${value.length} network cards`, 'they are too many', `give at most ${MOST}`)
  }
  const nets = value.map((net, index) =>
    parseNet(`nets[${index}]`, net, name === undefined ? null : `${userId()}\0${name}\0${index}`),
  )
  const twice = nets.findIndex(({ mac }, index) => nets.findIndex(other => other.mac === mac) < index)
  if (twice >= 0) {
    throw new ConfigError(`nets[${twice}].mac`, nets[twice]!.mac, 'another card has it', 'give each one of its own')
  }
  return nets
}

/** @param place tells the card from all others of this host; null where nothing does */
function parseNet(field: string, value: unknown, place: string | null): NetConfig {
  const { type } = Object(value) as Record<string, unknown>
  if (type !== 'tap' && type !== 'user') {
    throw new ConfigError(`${field}.type`, type, 'there is no such network', 'give tap or user')
  }
  const net = value as Record<string, unknown>
  refuseUnknown(field, net, KEYS[type])
  if (type === 'user') {
    return {
      type,
      forward: parseForwards(`${field}.forward`, net.forward),
      mac: parseMac(`${field}.mac`, net.mac, place),
    }
  }
  const ifname = parseName(`${field}.ifname`, net.ifname)
  const bridge = parseName(`${field}.bridge`, net.bridge)
  if (ifname === null && bridge === null) {
    throw new ConfigError(field, 'tap', 'it leads nowhere', 'name an existing tap (ifname), or a bridge')
  }
  return { type, ifname, bridge, mac: parseMac(`${field}.mac`, net.mac, ifname ?? place) }
}

function refuseUnknown(field: string, given: Record<string, unknown>, keys: readonly string[]): void {
  const unknown = Object.keys(given).find(key => !keys.includes(key))
  if (unknown === undefined) return
  const remedy = `the fields are ${keys.join(', ')}`
  throw new ConfigError(`${field}.${unknown}`, given[unknown], 'there is no such field', remedy)
}

/** What the kernel takes as an interface's name (net/core/dev.c, dev_valid_name); `%` would stand for a number. */
function parseName(field: string, value: unknown): string | null {
  if (value === undefined || value === null) return null
  const valid = typeof value === 'string' && value.length <= NAME_MAX && /^[\x21-\x7e]+$/.test(value)
  if (!valid || /[/:%]/.test(value) || value === '.' || value === '..') {
    throw new ConfigError(
      field,
      value,
      'it is no name of an interface',
      `give up to ${NAME_MAX} characters, as in tap0`,
    )
  }
  return value
}

/** @param place the tap, which no other machine of this host has at the same time, or what else tells which card this is */
function parseMac(field: string, value: unknown, place: string | null): string {
  if (value === undefined) return defaultMac(place)
  if (typeof value !== 'string' || !/^([\da-f]{2}:){5}[\da-f]{2}$/i.test(value)) {
    throw new ConfigError(field, value, 'it is no MAC address', 'write it as in 02:00:00:00:00:01')
  }
  const first = Number.parseInt(value, 16)
  if (first & 1) {
    const remedy = `the second digit has to be even, as in 02${value.slice(2)}`
    throw new ConfigError(field, value, 'it is a multicast address, which no card can have', remedy)
  }
  if (/^(00:){5}00$/.test(value)) {
    throw new ConfigError(field, value, 'it stands for no address', 'write one as in 02:00:00:00:00:01')
  }
  return value.toLowerCase()
}

/**
 * An address of our own making (IEEE 802: the bit 2 of the first byte). The same for the same place of the same host, so that a guest
 * finds its card and its lease again; where nothing tells which card it is, a random one, so that no two are the same.
 */
function defaultMac(place: string | null): string {
  const bytes =
    place === null ? randomBytes(6) : createHash('sha256').update(`${hostId()}\0${place}`).digest().subarray(0, 6)
  bytes[0] = (bytes[0]! & 0xfc) | 2
  return [...bytes].map(byte => byte.toString(16).padStart(2, '0')).join(':')
}

/** Each user of a host has names of its own. */
function userId(): number | undefined {
  return process.getuid?.()
}

function hostId(): string {
  try {
    return readFileSync('/etc/machine-id', 'utf8').trim() || hostname()
  } catch {
    return hostname()
  }
}

function parseForwards(field: string, value: unknown = []): PortForward[] {
  if (!Array.isArray(value)) {
    throw new ConfigError(field, value, 'it is no list', 'give [{ protocol: "tcp", host: 2222, guest: 22 }]')
  }
  return value.map((forward, index) => parseForward(`${field}[${index}]`, forward))
}

function parseForward(field: string, value: unknown): PortForward {
  const forward = Object(value) as Record<string, unknown>
  refuseUnknown(field, forward, FORWARD_KEYS)
  const { protocol } = forward
  if (protocol !== 'tcp' && protocol !== 'udp') {
    throw new ConfigError(`${field}.protocol`, protocol, 'there is no such protocol', 'give tcp or udp')
  }
  const [host, guest] = (['host', 'guest'] as const).map(end => {
    const port = forward[end]
    if (typeof port !== 'number' || !Number.isInteger(port) || port < 1 || port > 65535) {
      throw new ConfigError(`${field}.${end}`, port, 'it is no port', 'give one from 1 to 65535')
    }
    return port
  }) as [number, number]
  return { protocol, host, guest }
}
