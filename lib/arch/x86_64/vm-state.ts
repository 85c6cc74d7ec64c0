/** The state of a VM beside its memory and its vCPUs: capabilities, interrupt routing and controllers, timer, clock. */
import { constants } from 'node:os'
import { KvmError } from '../../errors.js'
import { cap } from '../../kvm/capabilities.js'
import {
  KVM_CLOCK_HOST_TSC,
  KVM_CLOCK_REALTIME,
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQCHIP_PIC_MASTER,
  KVM_IRQCHIP_PIC_SLAVE,
  kvm_clock_data,
  kvm_enable_cap,
  kvm_irq_routing,
  kvm_irqchip,
  kvm_pit_state2,
} from '../../kvm/structs.js'
import type { Vm } from '../../kvm/vm.js'
import { type Blobs, filled, tscKhzOf, type VcpuState, view } from './vcpu-state.js'

const IRQCHIPS = {
  'KVM_GET_IRQCHIP/PIC_MASTER': KVM_IRQCHIP_PIC_MASTER,
  'KVM_GET_IRQCHIP/PIC_SLAVE': KVM_IRQCHIP_PIC_SLAVE,
  'KVM_GET_IRQCHIP/IOAPIC': KVM_IRQCHIP_IOAPIC,
} as const
const IRQCHIP_NAMES = Object.keys(IRQCHIPS)

const [CLOCK, FLAGS, HOST_TSC] = [
  kvm_clock_data.offsetOf('clock'),
  kvm_clock_data.offsetOf('flags'),
  kvm_clock_data.offsetOf('host_tsc'),
]

/**
 * Takes the state of a VM none of whose vCPUs runs.
 * @throws {KvmError} this kernel cannot give a part of it; the message names which
 */
export function saveVm(vm: Vm): Blobs {
  const state: Record<string, Uint8Array> = {}
  need(vm, 'ADJUST_CLOCK')
  state.KVM_GET_CLOCK = filled(kvm_clock_data.size, bytes => vm.native.getClock(bytes))
  state.KVM_ENABLE_CAP = concat(vm.enabledCaps)
  if (vm.routing) state.KVM_SET_GSI_ROUTING = kvm_irq_routing.encode(routing(vm.routing))
  if (vm.hasIrqchip) {
    for (const [name, chip] of Object.entries(IRQCHIPS)) {
      state[name] = filled(kvm_irqchip.size, bytes => {
        view(bytes).setUint32(0, chip, true)
        vm.native.getIrqchip(bytes)
      })
    }
  }
  if (vm.hasPit) {
    need(vm, 'PIT_STATE2')
    state.KVM_GET_PIT2 = filled(kvm_pit_state2.size, bytes => vm.native.getPit2(bytes))
  }
  return state
}

export interface RestoreVmOptions {
  /** The state is the VM's own, of an earlier moment: what was enabled then, still is. */
  readonly rollback?: boolean
}

/**
 * Gives a VM the state that `saveVm` took, before its vCPUs get theirs: what an interrupt controller delivers on the way
 * is overwritten with the local APICs' state. The lines of the devices have their levels already: KVM keeps those apart,
 * and a line that rises after this would be an interrupt that the guest has had before.
 * @throws {KvmError} the kernel refuses a part of it; the message names which
 */
export function restoreVm(vm: Vm, state: Blobs, { rollback = false }: RestoreVmOptions = {}): void {
  // How the vCPUs' events are to be read follows from these.
  for (const wanted of rollback ? [] : enabledCaps(state)) {
    if (vm.enabledCaps.some(have => Buffer.compare(have, wanted) === 0)) continue
    const { cap: number, args } = kvm_enable_cap.decode(wanted)
    vm.enableCap(number, ...args)
  }
  restoreRouting(vm, state.KVM_SET_GSI_ROUTING)
  for (const name of IRQCHIP_NAMES) {
    const chip = state[name]
    if (chip) vm.native.setIrqchip(chip)
  }
  if (state.KVM_GET_PIT2) vm.native.setPit2(state.KVM_GET_PIT2)
}

/**
 * What becomes of the time that has passed since a state was taken: the guest's clocks make up for it, as after a pause of a
 * migration, or go on from where they stood, as if there had been none.
 */
export type ClockMode = 'realtime' | 'stopped'

/** How the guest's TSC is brought in step with its clock. */
export interface ClockShift {
  /** By how much the guest's clock was set forward, in nanoseconds. */
  readonly elapsed: bigint
  /**
   * What is added to the TSC offset of a saved vCPU, in ticks of its TSC. Undefined where KVM does not relate its clock to the
   * host's TSC.
   */
  tscShift(vcpu: VcpuState): bigint | undefined
}

/** Sets the VM's clock from a saved state (KVM API, devices/vcpu.rst, section 4.1, steps 4 to 6). Before the vCPUs. */
export function restoreClock(vm: Vm, state: Blobs, mode: ClockMode): ClockShift {
  const clock = state.KVM_GET_CLOCK
  if (clock?.length !== kvm_clock_data.size) throw new RangeError('the saved state has no KVM_GET_CLOCK of its length')
  const saved = view(clock)
  const bytes = clock.slice()
  view(bytes).setUint32(FLAGS, mode === 'realtime' ? saved.getUint32(FLAGS, true) & KVM_CLOCK_REALTIME : 0, true)
  vm.native.setClock(bytes)
  vm.native.getClock(bytes)
  const now = view(bytes)
  const known = (saved.getUint32(FLAGS, true) & now.getUint32(FLAGS, true) & KVM_CLOCK_HOST_TSC) !== 0
  const elapsed = now.getBigUint64(CLOCK, true) - saved.getBigUint64(CLOCK, true)
  const hostTsc = saved.getBigUint64(HOST_TSC, true) - now.getBigUint64(HOST_TSC, true)
  return {
    elapsed,
    tscShift({ state }) {
      if (!known) return undefined
      return (elapsed * BigInt(tscKhzOf(state))) / 1_000_000n + hostTsc
    },
  }
}

/** The same routing again would only cost time: KVM waits until no vCPU uses the one before. */
function restoreRouting(vm: Vm, wanted: Uint8Array | undefined): void {
  if (!wanted) return
  if (vm.routing && Buffer.compare(kvm_irq_routing.encode(routing(vm.routing)), wanted) === 0) return
  vm.setGsiRouting(kvm_irq_routing.decode(wanted).entries)
}

function enabledCaps(state: Blobs): Uint8Array[] {
  const bytes = state.KVM_ENABLE_CAP ?? new Uint8Array()
  const size = kvm_enable_cap.size
  return Array.from({ length: Math.floor(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size))
}

function routing(entries: NonNullable<Vm['routing']>) {
  return { nr: entries.length, flags: 0, entries: [...entries] }
}

function need(vm: Vm, name: 'ADJUST_CLOCK' | 'PIT_STATE2'): void {
  if (vm.checkExtension(cap[name]) > 0) return
  throw new KvmError(
    `KVM_CAP_${name}`,
    constants.errno.EOPNOTSUPP,
    "without it a VM's state is not whole: run a newer kernel",
  )
}

function concat(pieces: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(pieces))
}
