import { type Checker, check, type Examined } from './check.js'

const FIRMWARE = [
  'in the firmware setup, switch on VT-x or Intel Virtualization Technology (AMD: SVM Mode), and cut the power once',
]

/** The CPU flag. */
export const cpu: Checker = ({ facts, hypervisor }) => {
  if (facts.cpu.length > 0) return check('cpu', 'CPU', 'pass', facts.cpu.join(', '))
  const detail = 'it shows neither vmx nor svm'
  return check('cpu', 'CPU', 'fail', detail, hypervisor ? [] : FIRMWARE)
}

// Intel SDM vol. 3, 24.7; AMD APM vol. 2, 15.30.1
const IA32_FEATURE_CONTROL = 0x3a
const LOCKED = 1n << 0n
const VMX_OUTSIDE_SMX = 1n << 2n
const VM_CR = 0xc001_0114
const SVMDIS = 1n << 4n

/**
 * Whether the firmware has switched virtualization off and locked that, by the MSRs. Since 5.6 the kernel takes vmx out of /proc/cpuinfo
 * then (arch/x86/kernel/cpu/feat_ctl.c), so what the CPU itself shows is not asked.
 */
export const firmware: Checker = host => {
  const title = 'firmware'
  const amd = isAmd(host)
  const name = amd ? 'VM_CR' : 'IA32_FEATURE_CONTROL'
  const values = readMsrs(host, amd ? VM_CR : IA32_FEATURE_CONTROL)
  if (values.length === 0) {
    // Guests that run are proof enough; a kernel that offers nothing may have been given nothing.
    if (host.facts.offered?.length)
      return check('firmware', title, 'pass', `not locked: KVM uses ${host.facts.offered}`)
    if (host.facts.virtual) return check('firmware', title, 'unknown', `${name} cannot be read; the hypervisor decides`)
    const readable = ['modprobe msr', 'nested-kvm doctor   (as root)']
    return check('firmware', title, 'unknown', `${name} cannot be read`, readable)
  }
  const bad = values.filter(value => (amd ? value & SVMDIS : (value & (LOCKED | VMX_OUTSIDE_SMX)) === LOCKED)).length
  const processors = `${values.length} processor${values.length > 1 ? 's' : ''}`
  if (bad === 0) return check('firmware', title, 'pass', `${name} allows it (${processors})`)
  return check('firmware', title, 'fail', `${name} forbids it (${bad} of ${processors})`, FIRMWARE)
}

function isAmd({ system }: Examined): boolean {
  return /^vendor_id\s*:\s*(AuthenticAMD|HygonGenuine)$/m.test(system.read('/proc/cpuinfo') ?? '')
}

/** An MSR of each processor, where the driver for them is loaded and this user may (Linux: arch/x86/kernel/msr.c). */
function readMsrs({ system }: Examined, index: number): bigint[] {
  const values: bigint[] = []
  for (const processor of system.list('/dev/cpu').filter(name => /^\d+$/.test(name))) {
    const bytes = system.readBytes(`/dev/cpu/${processor}/msr`, index, 8)
    if (bytes) values.push(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))
  }
  return values
}
