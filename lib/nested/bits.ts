/** Words of named bits: what is set, by name. */

/** A name of the manual for each bit number. */
export type BitTable = Readonly<Record<string, number>>

/** True where the bit of that name is set. */
export function hasBit(table: BitTable, value: bigint, name: string): boolean {
  return ((value >> BigInt(table[name]!)) & 1n) !== 0n
}

/**
 * The names of the bits that are set, in ascending order; `bit 12` for one without a name.
 * @param ignored bits that say nothing, such as those that must always be 1
 */
export function bitNames(table: BitTable, value: bigint, ignored = 0n): string[] {
  const names = new Map(Object.entries(table).map(([name, bit]) => [bit, name]))
  const set: string[] = []
  for (let bit = 0, rest = value & ~ignored; rest > 0n; bit++, rest >>= 1n) {
    if (rest & 1n) set.push(names.get(bit) ?? `bit ${bit}`)
  }
  return set
}

/** A mask of some bits. */
export function mask(...bits: readonly number[]): bigint {
  return bits.reduce((sum, bit) => sum | (1n << BigInt(bit)), 0n)
}
