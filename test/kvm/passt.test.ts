import { randomInt } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { ChainBatch } from '../../lib/devices/virtio/chain-batch.js'
import { installPackages } from '../../lib/lab/apt.js'
import { findProgram } from '../../lib/lab/command.js'
import { GuestMemory } from '../../lib/memory/guest-memory.js'
import { Passt } from '../../lib/net/passt.js'

const GUEST_MAC = Buffer.from('020000000007', 'hex')
const HEADER = 12
const PORT = randomInt(20000, 30000)

/** A batch of chains, each of `size` bytes of `memory`, which is cut into parts of at most `pieces` bytes. */
function batchOver(memory: Buffer, flags: number, size: number, pieces = size): ChainBatch {
  const batch = new ChainBatch(new GuestMemory([{ guestAddress: 0, size: memory.length, chunks: [memory] }]))
  for (let start = 0; start < memory.length; start += size) {
    const descriptors: number[] = []
    for (let at = 0; at < size; at += pieces) {
      const next = at + pieces < size ? 1 : 0
      descriptors.push(start + at, 0, Math.min(pieces, size - at), flags | next | ((descriptors.length / 4 + 1) << 16))
    }
    batch.add(Uint32Array.from(descriptors), 0, false)
  }
  return batch
}

const WRITE = 2

/** A guest that has no more than a cable. */
class Guest {
  readonly passt: Passt
  gone = 0
  #readable: () => void = () => {}

  constructor(passt: Passt) {
    this.passt = passt
    passt.start({ readable: () => this.#readable(), writable: () => {}, gone: () => void this.gone++ })
  }

  send(frame: Buffer, pieces?: number): void {
    const memory = Buffer.concat([Buffer.alloc(HEADER, 0xff), frame])
    expect(this.passt.send(batchOver(memory, 0, memory.length, pieces))).toBe(1)
  }

  /** The next frame of which `wanted` says so, without its header, received in buffers of `size` bytes. */
  async receive(wanted: (frame: Buffer) => boolean, size = 100): Promise<Buffer> {
    for (;;) {
      const memory = Buffer.alloc(1000 * size, 0xff)
      const { lengths, more } = this.passt.receive(batchOver(memory, WRITE, size, 7), true)
      expect(more).toBe(false)
      let buffer = 0
      for (const length of Array.from(lengths)) {
        const used = Math.ceil(length / size)
        const frame = memory.subarray(buffer * size).subarray(0, length)
        buffer += used
        expect(frame.subarray(0, HEADER)).toEqual(Buffer.alloc(HEADER))
        if (wanted(frame.subarray(HEADER))) return frame.subarray(HEADER)
      }
      await new Promise<void>(resolve => {
        this.#readable = resolve
      })
    }
  }
}

function checksum(bytes: Buffer): number {
  let sum = 0
  for (let i = 0; i < bytes.length; i += 2) sum += bytes.readUInt16BE(i)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
  return 0xffff - sum
}

/** A DHCPDISCOVER in UDP, IPv4 and Ethernet (RFC 2131). */
function dhcpDiscover(): Buffer {
  const dhcp = Buffer.alloc(300)
  dhcp.set([1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78])
  dhcp.set(GUEST_MAC, 28)
  dhcp.set([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255], 236)
  const udp = Buffer.from([0, 68, 0, 67, 0, 0, 0, 0])
  udp.writeUInt16BE(8 + dhcp.length, 4)
  const ip = Buffer.from('4500000000000000401100000000000000000000', 'hex')
  ip.fill(0xff, 16, 20)
  ip.writeUInt16BE(28 + dhcp.length, 2)
  ip.writeUInt16BE(checksum(ip), 10)
  return Buffer.concat([Buffer.alloc(6, 0xff), GUEST_MAC, Buffer.from([8, 0]), ip, udp, dhcp])
}

const isIpv4 = (frame: Buffer, protocol: number) => frame.readUInt16BE(12) === 0x800 && frame[23] === protocol

describe('user networking', () => {
  let guest: Guest

  beforeAll(async () => {
    if ((await findProgram('passt')) === undefined) await installPackages(['passt'], 'passt', () => {})
    guest = new Guest(await Passt.open([{ protocol: 'tcp', host: PORT, guest: 22 }], 'nets[0]'))
  }, 300_000)

  afterAll(async () => {
    await guest.passt.close()
  })

  it('gives the guest an address, over frames in pieces of any size', async () => {
    guest.send(dhcpDiscover(), 5)
    const offer = await guest.receive(frame => isIpv4(frame, 17) && frame.readUInt16BE(36) === 68)
    // BOOTREPLY with our transaction and address, and an IPv4 address for us.
    expect([offer[42], offer.readUInt32BE(46)]).toEqual([2, 0x12345678])
    expect(offer.subarray(70, 76)).toEqual(GUEST_MAC)
    expect(offer.readUInt32BE(58)).toBeGreaterThan(0)
  })

  it('brings connections from a port of the host', async () => {
    const client = connect(PORT, '127.0.0.1')
    client.on('error', () => {})
    // A SYN to port 22.
    const syn = await guest.receive(frame => isIpv4(frame, 6) && (frame[47]! & 2) === 2)
    expect(syn.readUInt16BE(36)).toBe(22)
    client.destroy()
  })

  it('sends nothing of what has no runs, and takes it all the same', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-test-'))
    onTestFinished(() => rm(directory, { recursive: true, force: true }))
    // Another program of that name, which keeps what it is given, in a file that is there before it says that it is ready.
    const said = join(directory, 'said')
    const script = `#!/bin/sh\nexec >${said}\necho 'Template interface' >&2\nexec cat <&3\n`
    await writeFile(join(directory, 'passt'), script, { mode: 0o755 })
    const { PATH } = process.env
    process.env.PATH = `${directory}:${PATH}`
    const passt = await Passt.open([], 'nets[0]').finally(() => {
      process.env.PATH = PATH
    })
    passt.start({ readable() {}, writable() {}, gone() {} })
    const frames = batchOver(Buffer.concat([Buffer.alloc(72, 1), Buffer.alloc(72, 2)]), 0, 72)
    frames.blank(0)
    expect(passt.send(frames)).toBe(2)
    const expected = Buffer.concat([Buffer.from([0, 0, 0, 60]), Buffer.alloc(60, 2)])
    for (let tries = 0; tries < 500 && (await readFile(said)).length < expected.length; tries++) await sleep(10)
    await passt.close()
    expect(await readFile(said)).toEqual(expected)
  })

  it('that cannot have a port says which', async () => {
    const port = PORT
    await expect(Passt.open([{ protocol: 'tcp', host: port, guest: 22 }], 'nets[3]')).rejects.toThrow(
      `nets[3].forward[0].host: ${port}: another program has this port; give another one`,
    )
    const socket = createSocket('udp4').bind(0)
    await once(socket, 'listening')
    const forward = { protocol: 'udp' as const, host: socket.address().port, guest: 53 }
    await expect(Passt.open([forward], 'nets[3]')).rejects.toThrow('another program has this port')
    socket.close()
  })

  it('that is not installed says how to get it', async () => {
    const path = process.env.PATH
    process.env.PATH = '/nonexistent'
    try {
      const message = 'user networking needs the program passt, which is not there; install it: apt-get install passt'
      await expect(Passt.open([], 'nets[0]')).rejects.toThrow(message)
    } finally {
      process.env.PATH = path
    }
  })

  it('that ends is told as gone', async () => {
    const other = new Guest(await Passt.open([], 'nets[0]'))
    await other.passt.close()
    expect(other.gone).toBe(0)
    const third = new Guest(await Passt.open([], 'nets[0]'))
    third.passt.kill()
    for (let i = 0; i < 100 && third.gone === 0; i++) await new Promise(resolve => setTimeout(resolve, 20))
    expect(third.gone).toBe(1)
    await third.passt.close()
  })
})
