/** A control block (VMCS12, VMCB12) as a table of its fields, so that reading and writing it are each other's inverse. */

/** Both control blocks take a page. */
export const BLOCK_SIZE = 4096

export interface Field<Name extends string = string> {
  readonly name: Name
  /** What the vendor's manual calls it. */
  readonly label: string
  /** In bytes, from the start of the block. */
  readonly offset: number
  /** In bytes; its bytes are little-endian. */
  readonly width: number
}

/** The value of each field, and the bytes that belong to none. */
export interface Block<Name extends string = string> {
  readonly fields: Readonly<Record<Name, bigint>>
  /** The whole block with the bytes of its fields zeroed: what newer kernels keep there comes back unchanged. */
  readonly rest: Uint8Array
}

/** @throws {RangeError} there are not as many bytes as the block has */
export function decodeBlock<Name extends string>(
  what: string,
  table: readonly Field<Name>[],
  bytes: Uint8Array,
): Block<Name> {
  if (bytes.length !== BLOCK_SIZE) throw new RangeError(`${what}: ${bytes.length} bytes, not ${BLOCK_SIZE}`)
  const rest = bytes.slice()
  const fields = {} as Record<Name, bigint>
  for (const field of table) {
    fields[field.name] = readField(field, bytes)
    rest.fill(0, field.offset, field.offset + field.width)
  }
  return { fields, rest }
}

/**
 * @throws {RangeError} a value does not fit into its field, or `rest` is not as long as the block
 */
export function encodeBlock<Name extends string>(
  what: string,
  table: readonly Field<Name>[],
  { fields, rest }: Block<Name>,
): Uint8Array {
  if (rest.length !== BLOCK_SIZE) throw new RangeError(`${what}: rest: ${rest.length} bytes, not ${BLOCK_SIZE}`)
  const bytes = rest.slice()
  for (const { name, offset, width } of table) {
    let value = fields[name]
    if (value < 0n || value >> BigInt(width * 8) !== 0n) {
      throw new RangeError(`${what}: ${name}: ${value} does not fit into ${width} bytes`)
    }
    for (let i = 0; i < width; i++, value >>= 8n) bytes[offset + i] = Number(value & 0xffn)
  }
  return bytes
}

/** The value of one field; bytes beyond the end of `bytes` count as 0. */
export function readField({ offset, width }: Field, bytes: Uint8Array): bigint {
  let value = 0n
  for (let i = width - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[offset + i] ?? 0)
  return value
}

/** A block that starts at `at` of a nested state's data; what a shorter state leaves out counts as zeroes, as it does in KVM. */
export function blockAt(data: Uint8Array, at: number): Uint8Array {
  const bytes = new Uint8Array(BLOCK_SIZE)
  bytes.set(data.subarray(at, at + BLOCK_SIZE))
  return bytes
}
