import type { HostFacts } from '../diagnose.js'
import type { OuterHypervisor } from '../hypervisor.js'
import type { KvmParameter } from '../parameters.js'
import type { HostSystem } from '../system.js'
import type { KvmUser } from '../users.js'

/** `unknown` is what could not be asked; `info` is neither good nor bad. */
export type CheckStatus = 'pass' | 'warn' | 'fail' | 'info' | 'unknown'

/** One line of the diagnosis. */
export interface HostCheck {
  /** Which check it is; stays the same from version to version. */
  readonly id: string
  readonly title: string
  readonly status: CheckStatus
  /** What was found, in one line. */
  readonly detail: string
  /** What to do or type about it, in order; empty where nothing is amiss. */
  readonly remedy: string[]
}

/** What the checks go by. */
export interface Examined {
  readonly system: HostSystem
  readonly facts: HostFacts
  readonly parameters: readonly KvmParameter[]
  readonly users: readonly KvmUser[]
  readonly hypervisor: OuterHypervisor | null
}

export type Checker = (host: Examined) => HostCheck

export function check(
  id: string,
  title: string,
  status: CheckStatus,
  detail: string,
  remedy: readonly string[] = [],
): HostCheck {
  return { id, title, status, detail, remedy: [...remedy] }
}
