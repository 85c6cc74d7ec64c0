import { execFileSync } from 'node:child_process'
import { onTestFinished } from 'vitest'
import { loadModules } from './load-modules.js'

export const ip = (words: string) => execFileSync('ip', words.split(' '))
/** The bridge, and the host's and the guest's addresses on it. */
export const BRIDGE = 'nkbr0'
export const [HOST, GUEST] = ['10.199.7.1', '10.199.7.2']

/** Makes the bridge, until the test's end. */
export async function makeBridge(): Promise<void> {
  await loadModules(['tun', 'bridge'])
  ip(`link add ${BRIDGE} type bridge`)
  onTestFinished(() => void ip(`link del ${BRIDGE}`))
  ip(`addr add ${HOST}/24 dev ${BRIDGE}`)
  ip(`link set ${BRIDGE} up`)
}
