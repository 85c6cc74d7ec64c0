import { ConfigError } from '../../errors.js'
import { CPU_FLAGS } from './cpu-flags.js'

/** Which CPU the guest is to have: the host's, with flags demanded and flags withheld. */
export interface CpuSpec {
  /** As the user wrote it, for messages. */
  readonly text: string
  readonly demanded: readonly string[]
  readonly withheld: readonly string[]
}

/**
 * Reads a CPU specification: `host`, or `host,+vmx,-avx512f`. The flags have the names of Linux's /proc/cpuinfo. `+` demands a flag: it is an
 * error if the host cannot give it; `-` withholds it, with all that depends on it.
 *
 * @throws {ConfigError} `cpu`: another model than `host`, no sign, an unknown flag, or both demanded and withheld
 */
export function parseCpuSpec(text: string): CpuSpec {
  const [model, ...flags] = text.split(',').map(part => part.trim())
  if (model !== 'host') {
    throw new ConfigError('cpu', text, 'the one CPU model is host', "write it as in 'host' or 'host,-vmx,-svm'")
  }
  const demanded = new Set<string>()
  const withheld = new Set<string>()
  for (const flag of flags) {
    const name = flag.slice(1)
    if (!/^[+-]/.test(flag)) {
      throw new ConfigError('cpu', text, `${JSON.stringify(flag)} has no sign`, `write +${flag} or -${flag}`)
    }
    if (!CPU_FLAGS.has(name)) {
      throw new ConfigError('cpu', text, `there is no CPU flag ${JSON.stringify(name)}`, suggestion(name))
    }
    ;(flag.startsWith('+') ? demanded : withheld).add(name)
    if (demanded.has(name) && withheld.has(name)) {
      throw new ConfigError('cpu', text, `${name} is both demanded and withheld`, 'leave one of the two out')
    }
  }
  return { text, demanded: [...demanded], withheld: [...withheld] }
}

function suggestion(name: string): string {
  const [nearest] = [...CPU_FLAGS.keys()]
    .map(flag => ({ flag, distance: editDistance(name, flag) }))
    .sort((a, b) => a.distance - b.distance)
  const known = 'the flags have the names that /proc/cpuinfo shows'
  return nearest && nearest.distance <= Math.max(1, name.length / 3) ? `did you mean ${nearest.flag}? ${known}` : known
}

/**
 * How many single letters were left out, put in, replaced, or swapped with their neighbour (optimal string alignment). Names are cut at 64
 * characters: no flag is that long.
 */
function editDistance(from: string, to: string): number {
  const a = from.slice(0, 64)
  const rows = [Array.from({ length: to.length + 1 }, (_, i) => i)]
  for (let i = 1; i <= a.length; i++) {
    const above = rows[i - 1]!
    const row = [i]
    for (let j = 1; j <= to.length; j++) {
      const replaced = above[j - 1]! + (a[i - 1] === to[j - 1] ? 0 : 1)
      const isSwap = i > 1 && j > 1 && a[i - 1] === to[j - 2] && a[i - 2] === to[j - 1]
      const swapped = isSwap ? rows[i - 2]![j - 2]! + 1 : replaced
      row.push(Math.min(replaced, swapped, above[j]! + 1, row[j - 1]! + 1))
    }
    rows.push(row)
  }
  return rows[a.length]![to.length]!
}
