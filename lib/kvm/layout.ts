/**
 * A small language for the layout of C structs, so that each kernel struct is written down once and its size,
 * its offsets and the TypeScript type of its value all follow from that.
 *
 * Layout follows the System V AMD64 ABI (section 3.1.2): a member is aligned to its own alignment, a struct to that of
 * its widest member, and its size is a multiple of its alignment. All numbers are little-endian.
 */

/** A type with a fixed layout in memory, whose values are `T`. */
export interface Type<T> {
  readonly size: number
  readonly align: number
  /** Members to descend into when a path is looked up; scalars have none. */
  readonly members?: Members
  readonly element?: Type<unknown>
  readonly count?: number
  read(view: DataView, at: number, parent: Record<string, unknown>): T
  /** Throws `BadValue`, which the types around it tell where it is. */
  write(view: DataView, at: number, value: T, parent: Record<string, unknown>): void
}

export interface Member {
  readonly name: string
  readonly type: Type<unknown>
  readonly offset: number
  readonly size: number
  /** True for an unnamed union of the C struct: its members are named as if they stood in the struct itself. */
  readonly anonymous: boolean
}

export type Members = readonly Member[]

type Definition = Readonly<Record<string, Type<unknown>>>

/** The value that a type decodes to and encodes from. */
export type Infer<S> = S extends Type<infer T> ? T : never

/** The value of a struct: one property for each member. */
export type StructValue<F extends Definition> = { -readonly [K in keyof F]: Infer<F[K]> }

/** The value of a union: the one member that its discriminator selects. */
export type UnionValue<F extends Definition> = { [K in keyof F]: { -readonly [P in K]: Infer<F[P]> } }[keyof F]

export interface Struct<F extends Definition> extends Type<StructValue<F>> {
  readonly name: string
  readonly members: Members
  readonly fields: { readonly [K in keyof F]: Member }
  /**
   * Offset in bytes of a member, written as in C's `offsetof`: `cs.base`, `xcrs[1].value`, `io.port`.
   * @throws {TypeError} there is no such member
   */
  offsetOf(path: string): number
  /**
   * Reads a value out of `bytes`, copying everything.
   * @throws {RangeError} `bytes` ends before the struct (or its flexible tail) does
   */
  decode(bytes: Uint8Array, at?: number): StructValue<F>
  /**
   * Writes `value`, into `into` at `at` or into new bytes just large enough, and returns the bytes.
   * @throws {TypeError} a member is missing, of the wrong type or out of its range; the message names it
   * @throws {RangeError} `into` is too short
   */
  encode(value: StructValue<F>, into?: Uint8Array, at?: number): Uint8Array
}

function number(size: 1 | 2 | 4, signed: boolean): Type<number> {
  const min = signed ? -(2 ** (size * 8 - 1)) : 0
  const max = 2 ** (size * 8 - (signed ? 1 : 0)) - 1
  return {
    size,
    align: size,
    read(view, at) {
      if (size === 1) return view.getUint8(at)
      if (size === 2) return view.getUint16(at, true)
      return signed ? view.getInt32(at, true) : view.getUint32(at, true)
    },
    write(view, at, value) {
      if (!Number.isInteger(value) || value < min || value > max) fail(value, `an integer in ${min}..${max}`)
      if (size === 1) view.setUint8(at, value)
      else if (size === 2) view.setUint16(at, value, true)
      else view.setUint32(at, value, true)
    },
  }
}

function bigint(signed: boolean): Type<bigint> {
  const min = signed ? -(2n ** 63n) : 0n
  const max = signed ? 2n ** 63n - 1n : 2n ** 64n - 1n
  return {
    size: 8,
    align: 8,
    read: (view, at) => (signed ? view.getBigInt64(at, true) : view.getBigUint64(at, true)),
    write(view, at, value) {
      if (typeof value !== 'bigint' || value < min || value > max) fail(value, `a bigint in ${min}..${max}`)
      if (signed) view.setBigInt64(at, value, true)
      else view.setBigUint64(at, value, true)
    },
  }
}

export const u8 = number(1, false)
export const u16 = number(2, false)
export const u32 = number(4, false)
export const s32 = number(4, true)
export const u64 = bigint(false)
export const s64 = bigint(true)

/** `count` bytes, as a `Uint8Array`. */
export function bytes(count: number): Type<Uint8Array> {
  return {
    size: count,
    align: 1,
    element: u8,
    count,
    read: (view, at) => new Uint8Array(view.buffer, view.byteOffset + at, count).slice(),
    write(view, at, value) {
      if (!(value instanceof Uint8Array) || value.length !== count) fail(value, `a Uint8Array of ${count} bytes`)
      new Uint8Array(view.buffer, view.byteOffset + at, count).set(value)
    },
  }
}

/** `count` elements of one type, as an array. */
export function array<T>(element: Type<T>, count: number): Type<T[]> {
  return {
    size: element.size * count,
    align: element.align,
    element,
    count,
    read: (view, at, parent) => readElements(element, view, at, count, parent),
    write(view, at, value, parent) {
      if (!Array.isArray(value) || value.length !== count) fail(value, `an array of ${count}`)
      writeElements(element, view, at, value, parent)
    },
  }
}

interface Flexible<T> extends Type<T[]> {
  readonly countedBy: string
  readonly element: Type<T>
}

/** The flexible array member that ends a struct; the member `countedBy` has its length. It adds nothing to `size`. */
export function flexible<T>(element: Type<T>, countedBy: string): Type<T[]> {
  const type: Flexible<T> = {
    size: 0,
    align: element.align,
    element,
    countedBy,
    read(view, at, parent) {
      const count = Number(parent[countedBy])
      // Checked before anything is allocated: the count may come from a file.
      if (at + count * element.size > view.byteLength) {
        throw new RangeError(`${countedBy} is ${count}, but only ${view.byteLength - at} bytes follow`)
      }
      return readElements(element, view, at, count, parent)
    },
    write(view, at, value, parent) {
      if (!Array.isArray(value) || value.length !== parent[countedBy]) {
        fail(value, `an array as long as ${countedBy} says (${String(parent[countedBy])})`)
      }
      writeElements(element, view, at, value, parent)
    },
  }
  return type
}

interface Union<F extends Definition> extends Type<UnionValue<F>> {
  readonly anonymous: boolean
}

/**
 * Members that share one place. `select` tells from the members of the enclosing struct that precede the union which one
 * is meant; the value has that member only. Encoding zeroes what the selected member does not cover.
 */
export function union<F extends Definition>(
  definition: F,
  select: (parent: Record<string, unknown>) => keyof F & string,
  options: { anonymous?: boolean } = {},
): Type<UnionValue<F>> {
  const entries = Object.entries(definition)
  const align = Math.max(...entries.map(([, type]) => type.align))
  const size = roundUp(Math.max(...entries.map(([, type]) => type.size)), align)
  const type: Union<F> = {
    size,
    align,
    anonymous: options.anonymous ?? false,
    members: entries.map(([name, member]) => ({ name, type: member, offset: 0, size: member.size, anonymous: false })),
    read(view, at, parent) {
      const name = select(parent)
      return { [name]: definition[name]!.read(view, at, parent) } as UnionValue<F>
    },
    write(view, at, value, parent) {
      const name = select(parent)
      const member = (value as Partial<Record<string, unknown>> | null | undefined)?.[name]
      new Uint8Array(view.buffer, view.byteOffset + at, size).fill(0)
      try {
        if (member === undefined) fail(member, 'a value')
        definition[name]!.write(view, at, member, parent)
      } catch (error) {
        throw located(error, `.${name}`)
      }
    },
  }
  return type
}

/** A C struct with the given members, in order. */
export function struct<const F extends Definition>(name: string, definition: F): Struct<F> {
  let end = 0
  let align = 1
  const members: Member[] = []
  for (const [member, type] of Object.entries(definition)) {
    const offset = roundUp(end, type.align)
    const anonymous = 'anonymous' in type && type.anonymous === true
    members.push({ name: member, type, offset, size: type.size, anonymous })
    end = offset + type.size
    align = Math.max(align, type.align)
  }
  const size = roundUp(end, align)
  const tail = members.at(-1)
  const flexibleTail = tail && 'countedBy' in tail.type ? tail : undefined

  const read = (view: DataView, at: number): StructValue<F> => {
    const value: Record<string, unknown> = {}
    for (const { name, type, offset } of members) value[name] = type.read(view, at + offset, value)
    return value as StructValue<F>
  }
  const write = (view: DataView, at: number, value: StructValue<F>): void => {
    if (typeof value !== 'object' || value === null) fail(value, 'an object')
    const given = value as Record<string, unknown>
    let writing = ''
    try {
      for (const { name, type, offset } of members) {
        writing = name
        type.write(view, at + offset, given[name], given)
      }
    } catch (error) {
      throw located(error, `.${writing}`)
    }
  }

  return {
    name,
    size,
    align,
    members,
    fields: Object.fromEntries(members.map(member => [member.name, member])) as { [K in keyof F]: Member },
    read,
    write,
    offsetOf: path => offsetOf(name, members, path),
    decode(source, at = 0) {
      return read(viewOf(name, source, at, size), at)
    },
    encode(value, into, at = 0) {
      const items = flexibleTail && (value as Record<string, unknown> | null)?.[flexibleTail.name]
      const extra = Array.isArray(items) ? items.length * flexibleTail!.type.element!.size : 0
      const target = into ?? new Uint8Array(at + size + extra)
      const view = viewOf(name, target, at, size + extra)
      try {
        write(view, at, value)
      } catch (error) {
        throw error instanceof BadValue ? new TypeError(`${name}${error.path}: ${error.problem}`) : error
      }
      return target
    },
  }
}

function offsetOf(name: string, members: Members, path: string): number {
  let offset = 0
  let within: Members | undefined = members
  for (const step of path.split('.')) {
    const [, field, indices] = /^(\w+)((?:\[\d+\])*)$/.exec(step) ?? []
    const found: { member: Member; base: number } | undefined = within && field ? find(within, field) : undefined
    if (!found) throw new TypeError(`${name} has no member ${path}`)
    offset += found.base + found.member.offset
    let type: Type<unknown> = found.member.type
    for (const [, index] of (indices ?? '').matchAll(/\[(\d+)\]/g)) {
      if (!type.element || Number(index) >= (type.count ?? Number.POSITIVE_INFINITY)) {
        throw new TypeError(`${name} has no member ${path}`)
      }
      type = type.element
      offset += Number(index) * type.size
    }
    within = type.members
  }
  return offset
}

function find(members: Members, name: string, base = 0): { member: Member; base: number } | undefined {
  for (const member of members) {
    if (member.name === name && !member.anonymous) return { member, base }
    const inner = member.anonymous && find(member.type.members ?? [], name, base + member.offset)
    if (inner) return inner
  }
  return undefined
}

function viewOf(name: string, source: Uint8Array, at: number, size: number): DataView {
  if (!Number.isInteger(at) || at < 0 || at + size > source.byteLength) {
    throw new RangeError(`${name}: ${size} bytes at ${at} do not lie within ${source.byteLength} bytes`)
  }
  return new DataView(source.buffer, source.byteOffset, source.byteLength)
}

function roundUp(value: number, align: number): number {
  return Math.ceil(value / align) * align
}

function readElements<T>(
  element: Type<T>,
  view: DataView,
  at: number,
  count: number,
  parent: Record<string, unknown>,
): T[] {
  const values = new Array<T>(count)
  for (let i = 0; i < count; i++) values[i] = element.read(view, at + i * element.size, parent)
  return values
}

function writeElements<T>(
  element: Type<T>,
  view: DataView,
  at: number,
  values: readonly T[],
  parent: Record<string, unknown>,
): void {
  let i = 0
  try {
    for (; i < values.length; i++) element.write(view, at + i * element.size, values[i]!, parent)
  } catch (error) {
    throw located(error, `[${i}]`)
  }
}

/** A value that its type does not take. Its path is put together on the way out, so that writing good ones costs none. */
class BadValue extends Error {
  path = ''
  readonly problem: string

  constructor(problem: string) {
    super(problem)
    this.problem = problem
  }
}

function located(error: unknown, step: string): unknown {
  if (error instanceof BadValue) error.path = step + error.path
  return error
}

function fail(value: unknown, expected: string): never {
  const shown = typeof value === 'bigint' ? `${value}n` : typeof value === 'object' ? describe(value) : String(value)
  throw new BadValue(`${shown} is not ${expected}`)
}

function describe(value: object | null): string {
  if (value === null) return 'null'
  return 'length' in value ? `${value.constructor?.name ?? 'object'}(${String(value.length)})` : 'object'
}
