/**
 * An encoder for as much of AML as static tables need (ACPI 6.5, section 20.2). Every function returns the bytes of one term;
 * terms nest as they do in ASL.
 */
export type Aml = readonly number[]

const ZERO_OP = 0x00
const ONE_OP = 0x01
const NAME_OP = 0x08
const BYTE_PREFIX = 0x0a
const WORD_PREFIX = 0x0b
const DWORD_PREFIX = 0x0c
const STRING_PREFIX = 0x0d
const QWORD_PREFIX = 0x0e
const SCOPE_OP = 0x10
const BUFFER_OP = 0x11
const PACKAGE_OP = 0x12
const DUAL_NAME_PREFIX = 0x2e
const MULTI_NAME_PREFIX = 0x2f
const EXT_OP = 0x5b
const ROOT_CHAR = 0x5c
const DEVICE_OP = 0x82

/** An integer in its shortest encoding (section 20.2.3). At most 64 bits. */
export function integer(value: number | bigint): Aml {
  const n = BigInt(value)
  if (n < 0n || n >= 1n << 64n) throw new RangeError(`AML integer ${n} is out of range`)
  if (n === 0n) return [ZERO_OP]
  if (n === 1n) return [ONE_OP]
  if (n < 1n << 8n) return [BYTE_PREFIX, ...little(n, 1)]
  if (n < 1n << 16n) return [WORD_PREFIX, ...little(n, 2)]
  if (n < 1n << 32n) return [DWORD_PREFIX, ...little(n, 4)]
  return [QWORD_PREFIX, ...little(n, 8)]
}

/** `"text"`: ASCII only. */
export function string(text: string): Aml {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the AML grammar allows exactly 0x01-0x7f
  if (!/^[\x01-\x7f]*$/.test(text)) throw new RangeError(`AML string ${JSON.stringify(text)} is not ASCII`)
  return [STRING_PREFIX, ...Buffer.from(text), 0]
}

/** `Name (path, object)` */
export function name(path: string, object: Aml): Aml {
  return [NAME_OP, ...nameString(path), ...object]
}

/** `Package () {elements}`: at most 255 of them. */
export function packageOf(...elements: Aml[]): Aml {
  if (elements.length > 0xff) throw new RangeError('an AML package has at most 255 elements')
  return [PACKAGE_OP, ...withLength([elements.length, ...elements.flat()])]
}

/** `Scope (path) {terms}` */
export function scope(path: string, ...terms: Aml[]): Aml {
  return [SCOPE_OP, ...withLength([...nameString(path), ...terms.flat()])]
}

/** `Device (path) {terms}` */
export function device(path: string, ...terms: Aml[]): Aml {
  return [EXT_OP, DEVICE_OP, ...withLength([...nameString(path), ...terms.flat()])]
}

/** `Buffer () {bytes}` */
export function buffer(bytes: Aml): Aml {
  return [BUFFER_OP, ...withLength([...integer(bytes.length), ...bytes])]
}

/** `EISAID (id)`: three letters and four hexadecimal digits in 32 bits, as `PNP0501` (section 19.3.4). */
export function eisaId(id: string): Aml {
  if (!/^[A-Z]{3}[0-9A-F]{4}$/.test(id)) throw new RangeError(`${JSON.stringify(id)} is no EISA id`)
  const [a, b, c] = [...id.slice(0, 3)].map(letter => letter.charCodeAt(0) - 0x40) as [number, number, number]
  const maker = (a << 10) | (b << 5) | c
  const product = Number.parseInt(id.slice(3), 16)
  return [DWORD_PREFIX, maker >> 8, maker & 0xff, product >> 8, product & 0xff]
}

/** `ResourceTemplate () {descriptors}`, with its end tag. A checksum of 0 counts as right (section 6.4.2.9). */
export function resourceTemplate(...descriptors: Aml[]): Aml {
  return buffer([...descriptors.flat(), 0x79, 0])
}

/** `IO (Decode16, port, port, 1, length)` (section 6.4.2.5). */
export function ioPort(port: number, length: number): Aml {
  return [0x47, 1, ...little(port, 2), ...little(port, 2), 1, length]
}

/** `IRQNoFlags () {irq}`: one of the 16 ISA interrupts, edge-triggered and active high (section 6.4.2.1). */
export function isaIrq(irq: number): Aml {
  return [0x22, ...little(1 << irq, 2)]
}

/** `Memory32Fixed (ReadWrite, address, length)` (section 6.4.3.4). */
export function memory32Fixed(address: number, length: number): Aml {
  return [0x86, ...little(9, 2), 1, ...little(address, 4), ...little(length, 4)]
}

/** `Interrupt (ResourceConsumer, Edge, ActiveHigh, Shared) {gsi}` (section 6.4.3.6). */
export function edgeInterrupt(gsi: number): Aml {
  const [CONSUMER, EDGE, SHARED] = [1 << 0, 1 << 1, 1 << 3]
  return [0x89, ...little(6, 2), CONSUMER | EDGE | SHARED, 1, ...little(gsi, 4)]
}

/** A path: segments of up to four characters with dots between them, `\` before the first for the root (section 20.2.2). */
function nameString(path: string): Aml {
  const absolute = path.startsWith('\\')
  const segments = path.slice(absolute ? 1 : 0).split('.')
  const bytes = segments.flatMap(segment => {
    if (!/^[A-Z_][A-Z0-9_]{0,3}$/.test(segment)) throw new RangeError(`${JSON.stringify(path)} is no AML path`)
    return [...Buffer.from(segment.padEnd(4, '_'))]
  })
  const prefix =
    segments.length === 1 ? [] : segments.length === 2 ? [DUAL_NAME_PREFIX] : [MULTI_NAME_PREFIX, segments.length]
  return [...(absolute ? [ROOT_CHAR] : []), ...prefix, ...bytes]
}

/** PkgLength, which counts itself, in front of `body` (section 20.2.4). */
function withLength(body: Aml): Aml {
  if (body.length + 1 < 0x40) return [body.length + 1, ...body]
  for (let extra = 1; extra <= 3; extra++) {
    const length = body.length + 1 + extra
    if (length >= 2 ** (4 + 8 * extra)) continue
    return [(extra << 6) | (length & 0xf), ...little(length >>> 4, extra), ...body]
  }
  throw new RangeError(`an AML package of ${body.length} bytes is too long`)
}

function little(value: number | bigint, size: number): number[] {
  const n = BigInt(value)
  return Array.from({ length: size }, (_, i) => Number((n >> BigInt(8 * i)) & 0xffn))
}
