import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, it } from 'vitest'

/** In a namespace of its own, where any user may make taps and bridges, as far as /dev/net/tun lets it. Runs the compiled package. */
const fixture = fileURLToPath(new URL('./fixtures/taps.mjs', import.meta.url))
const NAMESPACE = ['--map-root-user', '--net', '--mount', 'sh', '-c', 'mount -t sysfs sysfs /sys && exec "$@"', 'sh']

// biome-ignore lint/suspicious/noExplicitAny: what the fixture prints
let results: Record<string, any>

beforeAll(() => {
  const options = { encoding: 'utf8', timeout: 30_000, maxBuffer: 1 << 22 } as const
  results = JSON.parse(execFileSync('unshare', [...NAMESPACE, process.execPath, fixture], options))
})

describe('two taps on a bridge', () => {
  it('are made, by the names they were to have, and put on it', () => {
    expect(results.names).toEqual(['tap0', 'mytap', '../br0', '../br0'])
    // The same each time, and higher than that of any real card, so that it does not become the bridge's.
    expect(results.addresses).toEqual(['fe:54:00:00:00:01', 'fe:54:00:00:00:01'])
  })

  it('are refused where another one there is of a card with the same address', () => {
    expect(results.twins).toEqual([
      expect.stringMatching(
        /^ConfigError: nets\[0\]\.mac: "52:54:00:00:00:01": tap0, which is on br0 as well, is of a card with this address.*; give each card a mac/,
      ),
      'opened',
      'opened',
    ])
  })

  it('carry a frame from many pieces of memory into many others', () => {
    expect(results.scattered).toEqual({ sent: 1, lengths: [526], more: false, same: 0 })
  })

  it('give several frames in one call, each beginning with a buffer of its own', () => {
    const start = [2, 0, 0, 0, 0, 0xb].join()
    expect(results.severalAtOnce).toEqual({ lengths: [86, 326, 86], more: false, starts: [start, start, start] })
  })

  it('have the kernel cut into segments, checksums made, what the receiver does not take over', () => {
    expect(results.cut).toEqual({ sent: 1, lengths: new Array(30).fill(1066), flags: '0,0' })
  })

  it('leave the segments uncut and the checksum to the receiver that takes that over', () => {
    // NEEDS_CSUM, TCPV4, 54 bytes of headers, segments of 1000, checksum from 34 on at 16.
    expect(results.whole).toEqual({ lengths: [30066], header: '01013600e80322001000' })
  })

  it('keep a frame for which there are not enough buffers until there are', () => {
    const none = { lengths: [], more: true }
    const after = { lengths: [], more: false }
    const enough = { lengths: [30066], more: false }
    expect(results.tooLarge).toEqual({ first: none, again: none, enough, same: 0, after })
  })

  it('drop it on demand, and by themselves where frames go in single buffers', () => {
    expect(results.dropped).toEqual({
      after: { lengths: [], more: false },
      unmerged: { lengths: [86], more: false },
    })
  })

  it('lose a frame that the kernel refuses', () => {
    expect(results.wrongHeader).toEqual({ sent: 3, received: { lengths: [], more: false } })
  })

  it('tell once that there are frames, and again after these were received', () => {
    expect(results.events).toEqual({ once: 1, lengths: [86, 86, 86], twice: 2, rest: [86] })
  })

  it('touch nothing outside the memory they were given', () => {
    const { outside, tooFew, noRoom, detached, shared, closed } = results.outside
    expect(outside).toHaveLength(24)
    for (const outcome of [...outside, ...detached])
      expect(outcome).toMatch(/^RangeError: .*: a run lies outside its view$/)
    for (const outcome of tooFew) expect(outcome).toMatch(/^RangeError: .*: there are fewer runs than counted$/)
    expect(noRoom).toMatch(/^RangeError: .*: takes room for more lengths than buffers$/)
    expect(shared).toEqual(['TypeError', 'TypeError', 'RangeError'])
    for (const outcome of closed) expect(outcome).toMatch(/^KvmError: .*EBADF/)
  })

  it('tell when they are deleted', () => {
    expect(results.gone).toEqual({ received: { lengths: [], more: false }, sent: 1, gone: 1 })
  })

  it('are gone once they are closed', () => {
    expect(results.closed).not.toBe(0)
  })
})

describe('a tap that cannot be had', () => {
  it('is refused with what to do', () => {
    expect(results.refusals).toEqual([
      expect.stringMatching(
        /^ConfigError: nets\[0\]\.ifname: "nosuch": there is no such interface; make it \(ip tuntap add/,
      ),
      expect.stringMatching(
        /^ConfigError: nets\[0\]\.bridge: "nosuch": there is no such interface; make it: ip link add nosuch type bridge/,
      ),
      expect.stringMatching(/^ConfigError: nets\[0\]\.bridge: "lo": it is no bridge; make one/),
      expect.stringMatching(/^ConfigError: nets\[0\]\.ifname: "mytap": another program has this tap open/),
      expect.stringMatching(/^ConfigError: nets\[0\]\.ifname: "mytap": another program has this tap open/),
      expect.stringMatching(/^ConfigError: nets\[0\]\.ifname: "br1": it is no tap/),
    ])
  })

  it('by a user without CAP_NET_ADMIN names that, and how root can make one', () => {
    expect(results.otherUser).toEqual([
      expect.stringMatching(
        /^ConfigError: nets\[0\]\.type: "tap": .* CAP_NET_ADMIN; .* ip tuntap add dev tap0 mode tap user/,
      ),
      'opened',
      expect.stringMatching(/^ConfigError: nets\[0\]\.bridge: "br0": .* ip link set anyones master br0 up/),
    ])
  })
})
