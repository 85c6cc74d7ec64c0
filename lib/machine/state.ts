import { restoreVcpu, saveVcpu, type VcpuPlan, type VcpuState, vcpuPlan } from '../arch/x86_64/vcpu-state.js'
import { type ClockMode, restoreClock, restoreVm, saveVm } from '../arch/x86_64/vm-state.js'
import type { Json } from '../devices/device.js'
import type { Vcpu } from '../kvm/vcpu.js'
import type { Parts } from './builder.js'

/** What the kernel has of a machine: its vCPUs, interrupt controllers, timer and clock. */
export interface Processors {
  readonly vm: Readonly<Record<string, Uint8Array>>
  readonly vcpus: readonly VcpuState[]
}

/** A machine at one moment, but for its memory. */
export interface Moment extends Processors {
  readonly devices: Readonly<Record<string, Json>>
}

const plans = new WeakMap<Vcpu, VcpuPlan>()

/** How the state of a vCPU is taken. Its CPUID does not change any more once it has run. */
export function planOf(vcpu: Vcpu, { msrIndices }: Parts): VcpuPlan {
  const known = plans.get(vcpu)
  if (known) return known
  const plan = vcpuPlan(vcpu, msrIndices)
  plans.set(vcpu, plan)
  return plan
}

/**
 * Takes the state of a paused machine.
 * @throws {KvmError} this kernel cannot give a part of it; the message names which
 */
export function takeMoment(parts: Parts): Moment {
  const { vm, vcpus, stateful } = parts
  const states = vcpus.map(vcpu => saveVcpu(vcpu, planOf(vcpu, parts)))
  const devices = Object.fromEntries(
    Object.entries(stateful).map(([name, device]) => [name, freeze(device.saveState())]),
  )
  return { vm: saveVm(vm), vcpus: states, devices }
}

function freeze(state: Json): Json {
  if (typeof state === 'object' && state !== null) for (const part of Object.values(Object.freeze(state))) freeze(part)
  return state
}

export interface ApplyOptions {
  readonly clock: ClockMode
  /** The state is the machine's own, of an earlier moment. */
  readonly rollback?: boolean
}

/**
 * Gives a machine that does not run the state of `moment`. Its memory has its content already.
 * @throws {KvmError} the kernel refuses a part of it; the message names which
 * @throws {TypeError} a device's state is none
 */
export function applyMoment(parts: Parts, moment: Moment, options: ApplyOptions): void {
  // The devices first, which set their interrupt lines: what that delivers is overwritten by what follows.
  for (const [name, device] of Object.entries(parts.stateful)) {
    const state = moment.devices[name]
    if (state === undefined) throw new TypeError(`the saved state has no device ${name}`)
    device.loadState(state)
  }
  applyProcessors(parts, moment, options)
}

/**
 * As `applyMoment`, after the devices.
 * @throws {KvmError} the kernel refuses a part of it; the message names which
 */
export function applyProcessors(parts: Parts, saved: Processors, { clock, rollback = false }: ApplyOptions): void {
  const { vm, vcpus, pm } = parts
  restoreVm(vm, saved.vm, { rollback })
  // As late as can be: what passes from here on, the guest's clocks do not make up for.
  const shift = restoreClock(vm, saved.vm, clock)
  pm.advance(shift.elapsed)
  for (const [i, vcpu] of vcpus.entries()) {
    const state = saved.vcpus[i]!
    restoreVcpu(vcpu, state, { tscShift: shift.tscShift(state), rollback })
  }
}
