import { VMX_FEATURE_NAMES } from '../../nested/vmx-features.js'
import { CPU_FLAGS } from './cpu-flags.js'

/**
 * QEMU's names (target/i386/cpu.c, feature_word_info) of flags that /proc/cpuinfo calls otherwise, beyond `-` and `.` for `_`; of svm's
 * also what kvm_amd's parameters and the manual call them.
 */
const QEMU_NAMES: ReadonlyMap<string, string> = new Map(
  [
    'sse3:pni pclmuldq:pclmulqdq ds:dts tsc_deadline:tsc_deadline_timer xd:nx i64:lm ffxsr:fxsr_opt cr8legacy:cr8_legacy',
    'avx512_vbmi:avx512vbmi avx512vbmi2:avx512_vbmi2 avx512vnni:avx512_vnni avx512bitalg:avx512_bitalg',
    'spec_ctrl:ibrs amd_ssbd:ssbd amd_stibp:stibp amd_no_ssb:amd_ssb_no core_capability:core_capabilities',
    'nrips:nrip_save vls:v_vmsave_vmload vmsave_vmload:v_vmsave_vmload virtual_vmsave_vmload:v_vmsave_vmload',
    'vmsave_vmload_virtualization:v_vmsave_vmload v_gif:vgif v_nmi:vnmi tsc_rate:tsc_scale tsc_ratio:tsc_scale',
    'decode_assists:decodeassists flush_by_asid:flushbyasid pause_filter_threshold:pfthreshold lbr_virtualization:lbrv',
    'pause_filter:pausefilter auto_ibrs:autoibrs tsx_ldtrk:tsxldtrk invtsc:constant_tsc',
  ]
    .join(' ')
    .split(' ')
    .map(pair => pair.split(':') as [string, string]),
)

/** The flag of `CPU_FLAGS` that is meant: by its own name, or by QEMU's (`sse4.1`, `nrip-save`, `sse3`). */
export function flagNamed(text: string): string | undefined {
  if (CPU_FLAGS.has(text)) return text
  const plain = text.replace(/[-.]/g, '_')
  const candidates = [plain, QEMU_NAMES.get(plain), text.replace(/_/g, '-')]
  return candidates.find(name => name !== undefined && CPU_FLAGS.has(name))
}

/** Where QEMU has one name for two bits, the second bit's. */
const QEMU_VMX_NAMES: ReadonlyMap<string, string> = new Map([
  ['vmx-invept-single-context-noglobals', 'vmx-invvpid-single-context-noglobals'],
])

/** What a CPU specification may switch: a flag as `flagNamed` has it, or a VMX capability, by QEMU's name (`vmx-ept`, `vmx_ept`). */
export function featureNamed(text: string): string | undefined {
  const flag = flagNamed(text)
  if (flag) return flag
  const name = text.replace(/_/g, '-')
  return VMX_FEATURE_NAMES.has(name) ? name : QEMU_VMX_NAMES.get(name)
}

/** All names of what a specification may switch. */
export const FEATURE_NAMES: readonly string[] = [...CPU_FLAGS.keys(), ...VMX_FEATURE_NAMES]

/** The name that was probably meant, unless none is near: one that differs in little, or else the only one that begins so. */
export function nearestName(text: string, iterable: Iterable<string>): string | undefined {
  const names = [...iterable]
  const lower = text.toLowerCase()
  let nearest: { readonly name: string; readonly distance: number } | undefined
  for (const name of names) {
    const distance = editDistance(lower, name.toLowerCase())
    if (!nearest || distance < nearest.distance) nearest = { name, distance }
  }
  if (nearest && nearest.distance <= Math.max(1, text.length / 3)) return nearest.name
  const longer = lower.length < 3 ? [] : names.filter(name => name.toLowerCase().startsWith(lower))
  return longer.length === 1 ? longer[0] : undefined
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
