import { check, type Examined, type HostCheck } from './checks/check.js'
import { cpu, firmware } from './checks/cpu.js'
import { device } from './checks/device.js'
import { outer } from './checks/hypervisor.js'
import { kernel } from './checks/kernel.js'
import { confinement, hugePages, limits } from './checks/limits.js'
import { nested, users, vendor } from './checks/modules.js'
import { nestedState, offer } from './checks/offer.js'
import { paging, speed } from './checks/parameters.js'
import type { DeepDiagnosis } from './deep/probe.js'
import { diagnose, type HostDiagnosis } from './diagnose.js'
import { type OuterHypervisor, outerHypervisor } from './hypervisor.js'
import { type KvmParameter, readParameters } from './parameters.js'
import type { HostSystem } from './system.js'
import { type KvmUser, kvmUsers } from './users.js'

/** The number of the report's form. Fields may be added under one number; none changes its meaning or goes. */
export const HOST_REPORT_SCHEMA = 1

/** All that the doctor finds, as `nested-kvm doctor --json` prints it. */
export interface HostReport extends HostDiagnosis {
  readonly schema: typeof HOST_REPORT_SCHEMA
  readonly checks: HostCheck[]
  /** What this host itself runs under; null on bare metal. */
  readonly hypervisor: OuterHypervisor | null
  /** The processes that have KVM open. */
  readonly users: KvmUser[]
  readonly parameters: KvmParameter[]
  /** What the deep diagnosis found; null where it was not asked for. `ok` is false then if it failed. */
  readonly deep: DeepDiagnosis | null
}

const checkers = [
  cpu,
  firmware,
  outer,
  kernel,
  device,
  vendor,
  nested,
  offer,
  nestedState,
  paging,
  speed,
  users,
  hugePages,
  limits,
  confinement,
]

/** Examines a host. Looks only, changes nothing, never throws. */
export function examine(system: HostSystem): HostReport {
  const diagnosis = diagnose(system)
  const { facts } = diagnosis
  const hypervisor = outerHypervisor(system, facts.virtual)
  const parameters = readParameters(system, facts.modules.vendor)
  const users = kvmUsers(system)
  const examined: Examined = { system, facts, parameters, users, hypervisor }
  const checks = checkers.map(checker => checker(examined))
  return { schema: HOST_REPORT_SCHEMA, ...diagnosis, checks, hypervisor, users, parameters, deep: null }
}

/** The report with what the deep diagnosis found. */
export function withDeep(report: HostReport, deep: DeepDiagnosis): HostReport {
  const { failed } = deep
  const paged = deep.nestedPaging ? 'with nested paging' : 'without nested paging'
  const found = failed
    ? check('deep', 'an L2, tried', 'fail', `${failed.step}: ${failed.problem}`)
    : check(
        'deep',
        'an L2, tried',
        'pass',
        `entered, saved (${deep.nestedStateBytes} bytes), gone on in another VM; ${paged}`,
      )
  return { ...report, ok: report.ok && deep.ok, checks: [...report.checks, found], deep }
}
