import { KvmError } from '../errors.js'
import { cap } from '../kvm/capabilities.js'
import { type Extension, enableCommands, isOn, type KvmModules, moduleOf, readModules } from './modules.js'
import { offeredExtensions } from './offer.js'
import { permissionCommands } from './permissions.js'
import type { HostSystem } from './system.js'

/** What was found, before any conclusion. `null` is "could not be asked". */
export interface HostFacts {
  /** The running kernel's release. */
  readonly kernel: string | null
  readonly device: {
    readonly path: string
    readonly present: boolean
    /** True when it could be opened for reading and writing. */
    readonly permitted: boolean
    /** Why it could not be used. */
    readonly problem: string | null
  }
  readonly apiVersion: number | null
  readonly modules: KvmModules
  /** KVM_CHECK_EXTENSION(KVM_CAP_NESTED_STATE): the largest nested state in bytes, 0 for none. */
  readonly nestedStateBytes: number | null
  /** The extensions that KVM_GET_SUPPORTED_CPUID offers to guests. */
  readonly offered: Extension[] | null
  /** The extensions that this machine's own CPU shows in /proc/cpuinfo. */
  readonly cpu: Extension[]
  /** This host is itself a virtual machine (CPUID's hypervisor bit). */
  readonly virtual: boolean
}

/**
 * Which of the three ways leads to nested virtualization: it works on this host, it can be switched on here, or it
 * takes the lab.
 */
export type Way = 'nested-here' | 'enable' | 'lab'

export interface HostDiagnosis {
  /** True when a guest of this host can run guests of its own, now. */
  readonly ok: boolean
  readonly way: Way
  /** The extension that guests get (`nested-here`) or would get (`enable`). */
  readonly extension: Extension | null
  /** Why this way, in a sentence or two. */
  readonly reason: string
  /** What to type, in order, as root. */
  readonly commands: string[]
  readonly facts: HostFacts
}

type Verdict = Omit<HostDiagnosis, 'ok' | 'facts'>

const devicePath = '/dev/kvm'

/**
 * Finds out whether this host can nest, and if not, what would. Looks only, changes nothing, and never throws: what
 * could not be asked is `null` in the facts.
 *
 * The verdict rests on what KVM offers to guests (KVM API: KVM_GET_SUPPORTED_CPUID) and what the CPU has, never on the
 * name of a module.
 */
export function diagnose(system: HostSystem): HostDiagnosis {
  const facts = gather(system)
  const verdict = conclude(facts, system)
  return { ok: verdict.way === 'nested-here', ...verdict, facts }
}

function gather(system: HostSystem): HostFacts {
  const flags = cpuFlags(system)
  const owner = system.owner(devicePath)
  let problem: string | null = null
  let present = owner !== undefined
  let permitted = false
  let apiVersion: number | null = null
  let nestedStateBytes: number | null = null
  let offered: Extension[] | null = null
  try {
    const kvm = system.openKvm(devicePath)
    present = permitted = true
    try {
      apiVersion = kvm.apiVersion
      nestedStateBytes = kvm.checkExtension(cap.NESTED_STATE)
      offered = offeredExtensions(kvm.supportedCpuid())
    } finally {
      kvm.close()
    }
  } catch (error) {
    problem = error instanceof Error ? error.message : String(error)
    // Anything but a refusal means that the device let us in and its answer was wrong.
    if (present && !permitted)
      permitted = !(error instanceof KvmError && (error.code === 'EACCES' || error.code === 'EPERM'))
  }
  return {
    kernel: system.read('/proc/sys/kernel/osrelease')?.trim() ?? null,
    device: { path: devicePath, present, permitted, problem },
    apiVersion,
    modules: readModules(system),
    nestedStateBytes,
    offered,
    cpu: (['vmx', 'svm'] as const).filter(flag => flags.has(flag)),
    virtual: flags.has('hypervisor'),
  }
}

function cpuFlags(system: HostSystem): Set<string> {
  const line = /^flags\s*:\s*(.*)$/m.exec(system.read('/proc/cpuinfo') ?? '')
  return new Set(line?.[1]?.split(/\s+/) ?? [])
}

function conclude(facts: HostFacts, system: HostSystem): Verdict {
  const { device, offered, cpu, modules } = facts
  const offer = offered?.[0]
  if (offer) {
    const state = facts.nestedStateBytes
      ? ''
      : '; this kernel cannot save nested state (KVM_CAP_NESTED_STATE is 0), so no snapshots while an L2 runs'
    return { way: 'nested-here', extension: offer, reason: `KVM offers ${offer} to guests${state}`, commands: [] }
  }
  const extension = cpu[0]
  if (!extension) return { way: 'lab', extension: null, reason: whyLab(facts), commands: [] }

  const on = isOn(modules.nested[moduleOf[extension]])
  const setModule = on ? [] : enableCommands(extension, system)
  const enable = (reason: string, commands: string[]): Verdict => ({ way: 'enable', extension, reason, commands })

  if (!device.present) {
    // /proc/misc lists the kernel's KVM even where this process, in a container, was not given the device.
    const inKernel = /^\s*\d+\s+kvm$/m.test(system.read('/proc/misc') ?? '')
    if (inKernel && on) {
      return enable('the kernel has KVM but there is no /dev/kvm here: a container needs it handed in', [
        'start the container with: --device /dev/kvm',
      ])
    }
    const commands = inKernel ? [...setModule, 'and start the container with: --device /dev/kvm'] : setModule
    if (commands.length > 0) return enable(`the CPU has ${extension} but there is no /dev/kvm`, commands)
    return {
      way: 'lab',
      extension: null,
      reason: `the CPU has ${extension} and ${moduleOf[extension]} is loaded, but the kernel made no /dev/kvm: see dmesg | grep -i kvm`,
      commands: [],
    }
  }
  if (!device.permitted) {
    return enable(`this user may not open /dev/kvm${on ? '' : `, and ${moduleOf[extension]} does not nest`}`, [
      ...permissionCommands(system),
      ...setModule,
    ])
  }
  if (offered === null) {
    return {
      way: 'lab',
      extension: null,
      reason: `/dev/kvm does not answer as it should: ${device.problem}`,
      commands: [],
    }
  }
  if (setModule.length > 0) {
    return enable(
      `the CPU has ${extension} but KVM does not offer it to guests; stop every virtual machine first`,
      setModule,
    )
  }
  return {
    way: 'lab',
    extension: null,
    reason: `${moduleOf[extension]} says nested=${modules.nested[moduleOf[extension]]}, yet KVM offers no ${extension} to guests`,
    commands: [],
  }
}

function whyLab({ device, offered, virtual }: HostFacts): string {
  if (offered && virtual) {
    return (
      'this host is itself a virtual machine: its /dev/kvm runs guests but offers them neither vmx nor svm, ' +
      'and nothing inside this machine can change that'
    )
  }
  if (offered) return 'KVM runs guests here but offers them neither vmx nor svm, and the CPU shows neither'
  if (virtual) {
    return (
      'this host is itself a virtual machine whose hypervisor gives it neither vmx nor svm; ' +
      'only its operator can switch nested virtualization on for it'
    )
  }
  if (device.present && !device.permitted)
    return 'this user may not open /dev/kvm, and the CPU shows neither vmx nor svm'
  return 'the CPU shows neither vmx nor svm: if it has virtualization, the firmware setup switches it on (VT-x, AMD-V, SVM)'
}
