import { describe, expect, it, vi } from 'vitest'
import { parseNet } from '../../../lib/cli/net-option.js'
import { parseNets } from '../../../lib/config/nets.js'
import { ConfigError } from '../../../lib/errors.js'

const MAC = '02:00:00:00:00:01'

describe('network cards', () => {
  it('have defaults, and are the same when they are read again', () => {
    const nets = parseNets([
      { type: 'tap', ifname: 'tap0', mac: '0A:00:00:00:00:FF' },
      { type: 'tap', bridge: 'br0', mac: MAC },
      { type: 'user', mac: '02:00:00:00:00:02' },
    ])
    expect(nets).toEqual([
      { type: 'tap', ifname: 'tap0', bridge: null, mac: '0a:00:00:00:00:ff' },
      { type: 'tap', ifname: null, bridge: 'br0', mac: MAC },
      { type: 'user', forward: [], mac: '02:00:00:00:00:02' },
    ])
    expect(parseNets(JSON.parse(JSON.stringify(nets)))).toEqual(nets)
    expect(parseNets(undefined)).toEqual([])
  })

  it('have addresses of our own making: one that stays for a tap of a name, else one of their own', () => {
    const macs = (...nets: unknown[]) => parseNets(nets).map(({ mac }) => mac)
    const named = macs({ type: 'tap', ifname: 'tap0' }, { type: 'tap', ifname: 'tap1' })
    expect(named).toEqual(macs({ type: 'tap', ifname: 'tap0', bridge: 'br0' }, { type: 'tap', ifname: 'tap1' }))
    const others = Array.from({ length: 50 }, () => macs({ type: 'tap', bridge: 'br0' }, { type: 'user' })).flat()
    expect(new Set([...named, ...others]).size).toBe(102)
    // Locally administered, and of one card.
    for (const mac of [...named, ...others]) expect(mac).toMatch(/^[\da-f][26ae](:[\da-f]{2}){5}$/)
  })

  it("have addresses that follow from the machine's name and their places, where nothing else tells them", () => {
    const macs = (name: string | undefined, ...nets: unknown[]) => parseNets(nets, name).map(({ mac }) => mac)
    const cards = [{ type: 'tap', bridge: 'br0' }, { type: 'user' }]
    const first = macs('vm1', ...cards)
    expect(macs('vm1', ...cards)).toEqual(first)
    expect(new Set([...first, ...macs('vm2', ...cards), ...macs('vm1\0', ...cards)]).size).toBe(6)
    for (const mac of first) expect(mac).toMatch(/^[\da-f][26ae](:[\da-f]{2}){5}$/)
    const named = [{ type: 'tap', ifname: 'tap0', bridge: 'br0' }]
    expect(macs('vm1', ...named)).toEqual(macs(undefined, ...named))
    expect(macs('vm1', { type: 'user', mac: MAC })).toEqual([MAC])
    // Another user may have a machine of that name on the same bridge.
    const uid = vi.spyOn(process, 'getuid').mockReturnValue(process.getuid!() + 1)
    expect(macs('vm1', ...cards)).not.toEqual(first)
    uid.mockRestore()
  })

  it.each<[unknown, string, RegExp]>([
    [{}, 'nets', /no list/],
    [new Array(9).fill({ type: 'user' }), 'nets', /at most 8/],
    [[7], 'nets[0].type', /give tap or user/],
    [[{ type: 'user' }, { type: 'bridge' }], 'nets[1].type', /give tap or user/],
    [[{ type: 'tap' }], 'nets[0]', /name an existing tap \(ifname\), or a bridge/],
    [[{ type: 'tap', ifname: 'tap0', forward: [] }], 'nets[0].forward', /fields are type, ifname, bridge, mac/],
    [[{ type: 'user', ifname: 'tap0' }], 'nets[0].ifname', /fields are type, forward, mac/],
    ...['', 'a'.repeat(16), 'a/b', 'tap%d', 'a b', '..', 7].map(
      ifname => [[{ type: 'tap', ifname }], 'nets[0].ifname', /no name of an interface/] as [unknown, string, RegExp],
    ),
    [[{ type: 'tap', bridge: 'br:0' }], 'nets[0].bridge', /no name of an interface/],
    [[{ type: 'user', mac: '01:00:00:00:00:01' }], 'nets[0].mac', /multicast.*as in 02:00:00:00:00:01/],
    [[{ type: 'user', mac: '00:00:00:00:00:00' }], 'nets[0].mac', /stands for no address/],
    [[{ type: 'user', mac: '02-00-00-00-00-01' }], 'nets[0].mac', /no MAC address/],
    [[{ type: 'user', mac: null }], 'nets[0].mac', /no MAC address/],
    [
      [
        { type: 'user', mac: MAC },
        { type: 'tap', ifname: 'a', mac: MAC },
      ],
      'nets[1].mac',
      /another card has it/,
    ],
    [[{ type: 'user', forward: 22 }], 'nets[0].forward', /no list/],
    [
      [{ type: 'user', forward: [{ protocol: 'icmp', host: 1, guest: 1 }] }],
      'nets[0].forward[0].protocol',
      /tcp or udp/,
    ],
    [[{ type: 'user', forward: [{ protocol: 'tcp', host: 0, guest: 1 }] }], 'nets[0].forward[0].host', /1 to 65535/],
    [[{ type: 'user', forward: [{ protocol: 'udp', host: 1 }] }], 'nets[0].forward[0].guest', /1 to 65535/],
    [[{ type: 'user', forward: [{ protocol: 'udp', port: 1 }] }], 'nets[0].forward[0].port', /protocol, host, guest/],
  ])('%j: refused, naming %s', (value, field, message) => {
    const parse = () => parseNets(value)
    expect(parse).toThrow(ConfigError)
    expect(parse).toThrow(message)
    expect(parse).toThrow(new RegExp(`^${field.replace(/[[\]]/g, '\\$&')}: `))
  })
})

describe('--net', () => {
  it.each([
    ['tap,bridge=br0', { type: 'tap', bridge: 'br0' }],
    ['tap,ifname=tap0,mac=02:00:00:00:00:01', { type: 'tap', ifname: 'tap0', mac: MAC }],
    ['user', { type: 'user' }],
    [
      'user,tcp=2222:22,udp=53',
      {
        type: 'user',
        forward: [
          { protocol: 'tcp', host: 2222, guest: 22 },
          { protocol: 'udp', host: 53, guest: 53 },
        ],
      },
    ],
  ])('%s', (text, net) => {
    expect(parseNet(text)).toEqual(net)
  })

  it.each([
    '',
    'tun',
    'tap,tcp=1:1',
    'user,ifname=tap0',
    'user,tcp=a',
    'user,tcp=1:2:3',
    'tap,type=user',
    'user,forward=1',
  ])('%s: refused', text => {
    expect(() => parseNet(text)).toThrow()
  })
})
