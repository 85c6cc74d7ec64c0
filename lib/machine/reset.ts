import { ARCH_CAPABILITIES } from '../arch/x86_64/arch-capabilities.js'
import { flagsOf } from '../arch/x86_64/cpuid.js'
import { initialMsrs } from '../arch/x86_64/msrs.js'
import { saveVcpu } from '../arch/x86_64/vcpu-state.js'
import { saveVm } from '../arch/x86_64/vm-state.js'
import { checkContents, type MachineConfig } from '../config/machine-config.js'
import { GuestError } from '../errors.js'
import { Kvm } from '../kvm/kvm.js'
import type { CpuidEntry } from '../kvm/structs.js'
import { decodeCpuid } from '../kvm/tables.js'
import type { Vcpu } from '../kvm/vcpu.js'
import { bootMachine } from './boot.js'
import { createVm, type Parts } from './builder.js'
import { applyProcessors, type Processors, planOf } from './state.js'

const powerOns = new WeakMap<Parts, Processors>()

/**
 * Makes ready to reset a machine that does not run, its devices quiet, and returns what does it, in place: what the guest, or a snapshot, made of the
 * machine is gone then, and it is about to boot as at its creation. Descriptors, memslots, notifiers, the console and whoever
 * listens to it stay. Where that throws, the machine is in no defined state; before, nothing has been done to it.
 * @throws {GuestError} there is nothing to boot it from
 * @throws {ConfigError} a file that it boots from is gone
 * @throws {KvmError} the kernel cannot give, or take, a part of the state; the message names which
 */
export function prepareReset(parts: Parts, config: MachineConfig): () => void {
  if (config.lost.length > 0) {
    const lost = config.lost.join(', ')
    throw new GuestError(`${lost} was given as bytes, which the snapshot that it was restored from does not have`)
  }
  checkContents(config)
  const processors = powerOnProcessors(parts)
  return () => {
    for (const device of Object.values(parts.stateful)) device.reset()
    parts.ram.reset(() => {
      // The interrupt controllers after the lines into them; the registers that boot sets after those of a reset.
      applyProcessors(parts, processors, { clock: 'stopped', rollback: true })
      bootMachine(parts, config)
    })
  }
}

/**
 * What a VM and its vCPUs are like before they first run: taken from a VM made for it, with the vCPUs' CPUID, since this one may
 * have been restored, and most never need it. The vCPUs keep the VMX capabilities that they have (`rollback`).
 */
function powerOnProcessors(parts: Parts): Processors {
  const known = powerOns.get(parts)
  if (known) return known
  using kvm = Kvm.open()
  using vm = createVm(kvm)
  const vcpus = parts.vcpus.map(own => {
    const vcpu = vm.createVcpu(own.id)
    const table = own.configuredCpuid.slice()
    vcpu.setRawCpuid(table)
    const cpuid = decodeCpuid(table)
    vcpu.setMsrs(initialMsrs({ indices: parts.msrIndices, cpuid, archCapabilities: ownCapabilities(own, cpuid) }))
    return saveVcpu(vcpu, planOf(own, parts))
  })
  const processors = { vm: saveVm(vm), vcpus }
  powerOns.set(parts, processors)
  return processors
}

/** IA32_ARCH_CAPABILITIES, which a guest cannot change. */
function ownCapabilities(vcpu: Vcpu, cpuid: readonly CpuidEntry[]): bigint | undefined {
  if (!flagsOf(cpuid).includes('arch_capabilities')) return undefined
  return vcpu.getMsrs([ARCH_CAPABILITIES])[0]?.value
}
