import {
  decodeHeader,
  encodeHeader,
  HEADER_SIZE,
  HOST_CID,
  OP,
  TYPE_STREAM,
  type VsockHeader,
} from '../../../../lib/devices/virtio/vsock/packet.js'
import { VirtioVsock, type VsockHost } from '../../../../lib/devices/virtio/vsock/vsock.js'
import { WRITE } from './driver.js'
import { settle, startDevice } from './queues.js'

export const CID = 3
const [RECEIVE, TRANSMIT, EVENT] = [0, 1, 2]
/** Where packets lie: what is sent, then 16 buffers to receive into. */
const SEND = 0x8000
const ROOM = 0xc000
const ROOM_SIZE = 0x400

export interface Packet extends VsockHeader {
  readonly payload: string
}

/** A guest's driver of the device, by hand: what it sends and what it has received. */
export class VsockGuest {
  readonly device: VirtioVsock
  readonly parts: ReturnType<typeof startDevice>
  bufAlloc = 0x1000
  fwdCnt = 0
  readonly #backlog: Packet[] = []
  #offered = 0
  #nextRoom = 0

  constructor(host: VsockHost) {
    this.device = new VirtioVsock(CID, host)
    this.parts = startDevice(this.device)
  }

  /** Offers the device `count` buffers for packets. */
  async offerRoom(count = 1, queue = RECEIVE): Promise<void> {
    const driver = this.parts.drivers[queue]!
    for (let i = 0; i < count; i++) {
      driver.describe(i, ROOM + i * ROOM_SIZE, ROOM_SIZE, WRITE)
      driver.offer(i)
    }
    this.parts.notify(queue)
    await settle()
  }

  offerEvents(): Promise<void> {
    return this.offerRoom(1, EVENT)
  }

  events(): number[] {
    return this.parts.drivers[EVENT]!.collect().map(({ length }) => length)
  }

  /** The packets that came since the last time. */
  received(): Packet[] {
    return this.parts.drivers[RECEIVE]!.collect().map(({ id, length }) => {
      const bytes = this.parts.memory.read(ROOM + id * ROOM_SIZE, length)
      return { ...decodeHeader(bytes), payload: Buffer.from(bytes.subarray(HEADER_SIZE)).toString() }
    })
  }

  /** Gives room, a buffer after the other, until a packet with `op` comes; the others are dropped. */
  async until(op: number): Promise<Packet> {
    for (let waited = 0; waited < 500; waited++) {
      for (let next = this.#backlog.shift(); next; next = this.#backlog.shift()) if (next.op === op) return next
      const driver = this.parts.drivers[RECEIVE]!
      for (; this.#offered < 8; this.#offered++) {
        const id = this.#nextRoom++ % 16
        driver.describe(id, ROOM + id * ROOM_SIZE, ROOM_SIZE, WRITE)
        driver.offer(id)
      }
      this.parts.notify(RECEIVE)
      await new Promise(resolve => setTimeout(resolve, 2))
      const packets = this.received()
      this.#offered -= packets.length
      this.#backlog.push(...packets)
    }
    throw new Error(`no ${nameOf(op)} came`)
  }

  /** Room for what comes, then all of it. */
  async answers(count = 8): Promise<Packet[]> {
    await this.offerRoom(count)
    return this.received()
  }

  async send(
    op: number,
    ports: { guestPort: number; hostPort: number },
    more: Partial<VsockHeader> & { payload?: string } = {},
  ) {
    const { payload = '', ...fields } = more
    const header = encodeHeader({
      ...{ srcCid: BigInt(CID), dstCid: HOST_CID, srcPort: ports.guestPort, dstPort: ports.hostPort },
      ...{ length: payload.length, type: TYPE_STREAM, op, flags: 0, bufAlloc: this.bufAlloc, fwdCnt: this.fwdCnt },
      ...fields,
    })
    this.parts.memory.write(SEND, Buffer.concat([header, Buffer.from(payload)]))
    const driver = this.parts.drivers[TRANSMIT]!
    driver.describe(0, SEND, HEADER_SIZE + payload.length, 0)
    driver.offer(0)
    this.parts.notify(TRANSMIT)
    await settle()
  }

  /** How many of its packets were taken since the last time. */
  taken(): number {
    return this.parts.drivers[TRANSMIT]!.collect().length
  }
}

export const nameOf = (op: number): string => Object.entries(OP).find(([, value]) => value === op)?.[0] ?? String(op)
export const ops = (packets: readonly Packet[]): string[] => packets.map(({ op }) => nameOf(op))
