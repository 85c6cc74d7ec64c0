import { cpuidOf, msrsOf, type VcpuState } from '../arch/x86_64/vcpu-state.js'
import type { Json } from '../devices/device.js'
import { VMX_MSRS } from '../nested/vmx-capabilities.js'

const vmxNames = new Map<number, string>(Object.entries(VMX_MSRS).map(([name, index]) => [index, name]))

/** What a person wants to know of a saved vCPU and its raw state does not show: its CPUID, and what vmx it has. */
export function aboutVcpu({ state }: VcpuState): Json {
  const cpuid = cpuidOf(state).map(({ function: leaf, index, flags, eax, ebx, ecx, edx }) => {
    const registers = [eax, ebx, ecx, edx].map(value => value.toString(16).padStart(8, '0')).join(' ')
    return `${leaf.toString(16).padStart(8, '0')}${flags & 1 ? `.${index.toString(16)}` : ''}: ${registers}`
  })
  const vmx = msrsOf(state).flatMap(({ index, value }) => {
    const name = vmxNames.get(index)
    return name ? [[name, `0x${value.toString(16)}`] as const] : []
  })
  return { cpuid, ...(vmx.length > 0 && { vmx: Object.fromEntries(vmx) }) }
}
