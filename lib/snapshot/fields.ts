import { SnapshotError } from '../errors.js'
import type { Json } from './format.js'

export const DAMAGED = 'the snapshot is damaged or was changed by hand: use another copy of it'

/** A member of a manifest that is not believed yet. Every way to read it throws `SnapshotError` naming it. */
export class Field {
  readonly #path: string
  readonly #name: string
  readonly #value: unknown

  constructor(path: string, value: unknown, name = '') {
    this.#path = path
    this.#name = name
    this.#value = value
  }

  bad(problem: string, remedy = DAMAGED): never {
    throw new SnapshotError(this.#path, `${this.#name || 'top level'}: ${describe(this.#value)}: ${problem}`, remedy)
  }

  has(key: string): boolean {
    return Object.hasOwn(this.#object(), key)
  }

  at(key: string): Field {
    const object = this.#object()
    const name = this.#name ? `${this.#name}.${key}` : key
    return new Field(this.#path, Object.hasOwn(object, key) ? object[key] : undefined, name)
  }

  entries(max: number): [string, Field][] {
    const keys = Object.keys(this.#object())
    if (keys.length > max) this.bad(`it has ${keys.length} members, more than ${max}`)
    return keys.map(key => [key, this.at(key)])
  }

  list(max: number): Field[] {
    const value = this.#value
    if (!Array.isArray(value)) return this.bad('it must be a list')
    if (value.length > max) this.bad(`it has ${value.length} elements, more than ${max}`)
    return value.map((element, i) => new Field(this.#path, element, `${this.#name}[${i}]`))
  }

  integer(min: number, max: number, multipleOf = 1): number {
    const value = this.#value
    if (typeof value !== 'number' || !Number.isSafeInteger(value)) return this.bad('it must be an integer')
    if (value < min || value > max) this.bad(`it must lie between ${min} and ${max}`)
    if (value % multipleOf !== 0) this.bad(`it must be a multiple of ${multipleOf}`)
    return value
  }

  text(pattern: RegExp, meaning: string): string {
    const value = this.#value
    if (typeof value !== 'string' || !pattern.test(value)) return this.bad(`it must be ${meaning}`)
    return value
  }

  /** Anything that JSON can say. */
  json(): Json {
    if (this.#value === undefined) this.bad('it is missing')
    return this.#value as Json
  }

  #object(): Record<string, unknown> {
    const value = this.#value
    if (typeof value !== 'object' || value === null || Array.isArray(value)) this.bad('it must be an object')
    return value as Record<string, unknown>
  }
}

function describe(value: unknown): string {
  if (value === undefined) return 'missing'
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'a list' : 'an object'
  if (typeof value === 'string') return JSON.stringify(value.length > 100 ? `${value.slice(0, 100)}...` : value)
  return String(value)
}
