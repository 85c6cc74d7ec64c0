import { Kvm } from '../kvm/kvm.js'
import { type DeepOptions, diagnoseDeeply } from './deep/probe.js'
import { diagnose, type HostDiagnosis } from './diagnose.js'
import { examine, type HostReport, withDeep } from './report.js'
import { type HostSystem, thisHost } from './system.js'

/**
 * Finds out whether this machine can nest, and if not, what would make it: see {@link HostDiagnosis}. Looks only, changes
 * nothing, and never throws.
 */
export function diagnoseHost(): HostDiagnosis {
  return diagnose(here())
}

/**
 * As `diagnoseHost`, with a check for each thing that nesting depends on, its remedy, and every parameter of the KVM modules: what
 * `nested-kvm doctor` prints. Looks only, changes nothing, and never throws.
 */
export function examineHost(): HostReport {
  return examine(here())
}

/**
 * As `examineHost`, and tries it: a tiny L1 enters an L2, which is saved and goes on in another VM. Takes a moment; each time that a guest runs is
 * limited by `timeout`.
 */
export async function examineHostDeeply(options: DeepOptions = {}): Promise<HostReport> {
  return withDeep(examineHost(), await diagnoseDeeply(options))
}

export function here(): HostSystem {
  return thisHost(path => Kvm.open(path))
}
