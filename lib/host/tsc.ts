import { Kvm } from '../kvm/kvm.js'

/** The frequency of this host's TSC in kHz, as KVM knows it (KVM_GET_TSC_KHZ). Undefined where there is no KVM. */
export function hostTscKhz(): number | undefined {
  try {
    using kvm = Kvm.open()
    using vm = kvm.createVm()
    return vm.createVcpu(0).getTscKhz()
  } catch {
    return undefined
  }
}
