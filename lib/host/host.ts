import { Kvm } from '../kvm/kvm.js'
import { diagnose, type HostDiagnosis } from './diagnose.js'
import { thisHost } from './system.js'

/**
 * Finds out whether this machine can nest, and if not, what would make it: see {@link HostDiagnosis}. Looks only, changes
 * nothing, and never throws.
 */
export function diagnoseHost(): HostDiagnosis {
  return diagnose(thisHost(path => Kvm.open(path)))
}
