import { InvalidArgumentError } from 'commander'
import type { NetOptions, PortForward } from '../index.js'

const TAP_WORDS = ['ifname', 'bridge', 'mac'] as const

/** `tap[,ifname=NAME][,bridge=NAME][,mac=MAC]` or `user[,tcp=HOST:GUEST][,udp=HOST:GUEST][,mac=MAC]`. */
export function parseNet(value: string): NetOptions {
  const [type, ...words] = value.split(',')
  if (type !== 'tap' && type !== 'user') throw new InvalidArgumentError('It begins with tap or user.')
  const forward: PortForward[] = []
  const net: Record<string, unknown> = { type }
  for (const word of words) {
    const [key = '', text = ''] = word.split(/=(.*)/s)
    if (key === 'mac' || (type === 'tap' && TAP_WORDS.some(known => known === key))) net[key] = text
    else if (type === 'user' && (key === 'tcp' || key === 'udp')) forward.push({ protocol: key, ...parsePorts(text) })
    else {
      const known = type === 'tap' ? 'ifname=NAME, bridge=NAME, mac=MAC' : 'tcp=HOST:GUEST, udp=HOST:GUEST, mac=MAC'
      throw new InvalidArgumentError(`${JSON.stringify(word)} is none of ${known}.`)
    }
  }
  // What it says is checked with all the rest.
  return { ...net, ...(forward.length > 0 && { forward }) } as unknown as NetOptions
}

/** `2222:22`, or `22` for the same port at both ends. */
function parsePorts(text: string): { host: number; guest: number } {
  const parsed = /^(\d{1,5})(?::(\d{1,5}))?$/.exec(text)
  if (!parsed) throw new InvalidArgumentError(`${JSON.stringify(text)} is no pair of ports as in 2222:22.`)
  return { host: Number(parsed[1]), guest: Number(parsed[2] ?? parsed[1]) }
}
