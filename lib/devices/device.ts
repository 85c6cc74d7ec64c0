/** A value that JSON holds without loss. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json }

/**
 * A device behind one or several ranges of a bus.
 *
 * `offset` counts from the start of the range; `data` has the bytes of the access (1, 2, 4 or 8), little-endian, and
 * never reaches beyond the range. `read` answers in place. What the guest asks for is hostile: neither method throws. Where `write`
 * gives a promise, the guest's instruction ends when that is fulfilled.
 */
export interface Device {
  read(offset: number, data: Uint8Array): void
  write(offset: number, data: Uint8Array): void | Promise<void>
}

/** A device with state that belongs into a snapshot. */
export interface StatefulDevice extends Device {
  /** Makes it what it is when the machine is switched on, its interrupt line low. It works on nothing at the time. */
  reset(): void
  /** The whole state, as plain JSON. */
  saveState(): Json
  /** Takes over what `saveState` gave. Throws `TypeError` where `state` is nothing that it gives. */
  loadState(state: Json): void
}

/** An interrupt line into the interrupt controller. */
export interface InterruptLine {
  set(level: boolean): void
}

/** Reads a register block of one-byte registers: each byte of an access is an access of its own. */
export function eachByte(offset: number, data: Uint8Array, access: (register: number, value: number) => number): void {
  for (let i = 0; i < data.length; i++) data[i] = access(offset + i, data[i]!)
}

/** Frozen parts of saved states, with the limits that they were found to keep: what cannot change is checked once. */
const checked = new WeakMap<object, unknown>()

/** The named members of a saved state: integers from 0 up to `limits[name]`. Throws `TypeError` for anything else. */
export function savedIntegers<K extends string>(state: Json, limits: Readonly<Record<K, number>>): Record<K, number> {
  if (isObject(state) && checked.get(state) === limits) return state as Record<K, number>
  const result = {} as Record<K, number>
  for (const name of Object.keys(limits) as K[]) {
    const value = isObject(state) ? state[name] : undefined
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > limits[name]) {
      throw new TypeError(`saved device state: ${name} must be an integer from 0 to ${limits[name]}`)
    }
    result[name] = value
  }
  if (Object.isFrozen(state)) checked.set(state as object, limits)
  return result
}

/** A named list of bytes of a saved state, at most `max` long. Throws `TypeError` for anything else. */
export function savedBytes(state: Json, name: string, max: number): readonly number[] {
  const value = isObject(state) ? state[name] : undefined
  if (Array.isArray(value) && checked.get(value) === max) return value
  const isByte = (byte: unknown) => Number.isInteger(byte) && (byte as number) >= 0 && (byte as number) <= 0xff
  if (!Array.isArray(value) || value.length > max || !value.every(isByte)) {
    throw new TypeError(`saved device state: ${name} must be a list of at most ${max} bytes`)
  }
  if (Object.isFrozen(value)) checked.set(value, max)
  return value as number[]
}

/** A named list of a saved state, at most `max` long. Throws `TypeError` for anything else. */
export function savedList(state: Json, name: string, max: number): readonly Json[] {
  const value = isObject(state) ? state[name] : undefined
  if (!Array.isArray(value) || value.length > max) {
    throw new TypeError(`saved device state: ${name} must be a list of at most ${max}`)
  }
  return value
}

/** A named member of a saved state. Throws `TypeError` where there is none. */
export function savedMember(state: Json, name: string): Json {
  const value = isObject(state) ? state[name] : undefined
  if (value === undefined) throw new TypeError(`saved device state: ${name} is missing`)
  return value
}

function isObject(state: Json): state is { readonly [key: string]: Json } {
  return typeof state === 'object' && state !== null && !Array.isArray(state)
}
