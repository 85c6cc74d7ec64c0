import type { CpuidEntry, Msr } from '../../kvm/structs.js'
import { flagsOf } from './cpuid.js'

/** First version, by flags only; the VMX and SVM capabilities follow. */
export function missingFeatures(
  saved: { readonly cpuid: readonly CpuidEntry[]; readonly msrs: readonly Msr[] },
  host: { readonly cpuid: readonly CpuidEntry[]; readonly featureMsrs: readonly Msr[] },
): string[] {
  const offered = new Set([...flagsOf(host.cpuid), 'hypervisor', 'tsc_deadline_timer', 'ht', 'osxsave', 'ospke'])
  return flagsOf(saved.cpuid).filter(flag => !offered.has(flag))
}
