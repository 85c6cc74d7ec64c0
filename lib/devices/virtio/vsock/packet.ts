/** Bytes of `struct virtio_vsock_hdr` (virtio 1.2, 5.10.6). */
export const HEADER_SIZE = 44
/** The well-known context of the host (5.10.4). */
export const HOST_CID = 2n
/** VIRTIO_VSOCK_TYPE_STREAM */
export const TYPE_STREAM = 1

export const OP = {
  REQUEST: 1,
  RESPONSE: 2,
  RST: 3,
  SHUTDOWN: 4,
  RW: 5,
  CREDIT_UPDATE: 6,
  CREDIT_REQUEST: 7,
} as const

/** Flags of OP.SHUTDOWN: its sender will not do that any more. */
export const SHUTDOWN = { RECEIVE: 1, SEND: 2, BOTH: 3 } as const

export interface VsockHeader {
  readonly srcCid: bigint
  readonly dstCid: bigint
  readonly srcPort: number
  readonly dstPort: number
  /** Bytes of payload. */
  readonly length: number
  readonly type: number
  readonly op: number
  readonly flags: number
  /** Bytes of buffer that the sender has for this stream. */
  readonly bufAlloc: number
  /** Bytes that it has taken out of there so far, modulo 2^32. */
  readonly fwdCnt: number
}

/** The header of a packet, whose first `HEADER_SIZE` bytes are given. */
export function decodeHeader(bytes: Uint8Array): VsockHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEADER_SIZE)
  return {
    srcCid: view.getBigUint64(0, true),
    dstCid: view.getBigUint64(8, true),
    srcPort: view.getUint32(16, true),
    dstPort: view.getUint32(20, true),
    length: view.getUint32(24, true),
    type: view.getUint16(28, true),
    op: view.getUint16(30, true),
    flags: view.getUint32(32, true),
    bufAlloc: view.getUint32(36, true),
    fwdCnt: view.getUint32(40, true),
  }
}

export function encodeHeader(header: VsockHeader): Uint8Array {
  const view = new DataView(new ArrayBuffer(HEADER_SIZE))
  view.setBigUint64(0, header.srcCid, true)
  view.setBigUint64(8, header.dstCid, true)
  view.setUint32(16, header.srcPort, true)
  view.setUint32(20, header.dstPort, true)
  view.setUint32(24, header.length, true)
  view.setUint16(28, header.type, true)
  view.setUint16(30, header.op, true)
  view.setUint32(32, header.flags, true)
  view.setUint32(36, header.bufAlloc, true)
  view.setUint32(40, header.fwdCnt, true)
  return new Uint8Array(view.buffer)
}
