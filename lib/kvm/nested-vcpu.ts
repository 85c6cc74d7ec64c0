import type { NestedVcpu } from '../nested/rules.js'
import { VMX_MSRS } from '../nested/vmx-capabilities.js'
import { cap } from './capabilities.js'
import type { CpuidEntry } from './structs.js'
import type { Vcpu } from './vcpu.js'

const VMX = 1 << 5
const SVM = 1 << 2
const LA57 = 1 << 16

/** What the rules of a nested state (`checkNestedState`) ask about the vCPU that is to take it. */
export function nestedVcpu(vcpu: Vcpu, cpuid: readonly CpuidEntry[]): NestedVcpu {
  const leaf = (number: number) => cpuid.find(entry => entry.function === number && entry.index === 0)
  const sregs = vcpu.getSregs2()
  const isVmx = ((leaf(1)?.ecx ?? 0) & VMX) !== 0
  const isSvm = ((leaf(0x80000001)?.ecx ?? 0) & SVM) !== 0
  return {
    format: isVmx ? 'vmx' : isSvm ? 'svm' : undefined,
    efer: sregs.efer,
    cr4: sregs.cr4,
    smm: vcpu.getVcpuEvents().smi.smm !== 0,
    maxSize: vcpu.vm.checkExtension(cap.NESTED_STATE),
    // This addon does not enable it: it takes a pointer.
    enlightenedVmcs: false,
    maxPhyAddr: (leaf(0x80000008)?.eax ?? 36) & 0xff,
    la57: ((leaf(7)?.ecx ?? 0) & LA57) !== 0,
    ...(isVmx && { vmxMsrs: vmxMsrs(vcpu) }),
  }
}

function vmxMsrs(vcpu: Vcpu): ReadonlyMap<number, bigint> {
  const msrs = vcpu.getMsrs(Object.values(VMX_MSRS).filter(index => index !== VMX_MSRS.IA32_VMX_VMCS_ENUM))
  return new Map(msrs.map(({ index, value }) => [index, value]))
}
