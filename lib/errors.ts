import { getSystemErrorName } from 'node:util'

/** Where the error text says what to do about it; keyed by `ioctl:code`, or by code alone. */
const remedies: Record<string, string> = {
  'open /dev/kvm:ENOENT': 'this host has no KVM: load kvm_intel or kvm_amd, or use the lab (nested-kvm lab)',
  'open /dev/kvm:EACCES': 'add this user to the group that owns /dev/kvm (usually kvm), or run as root',
  'open /dev/kvm:ENODEV': 'KVM is built in but the CPU or firmware does not offer virtualization',
  'fsopen of a tmpfs with huge pages:EPERM':
    'huge pages need CAP_SYS_ADMIN: run as root, or leave them to the host (auto)',
  'fsopen of a tmpfs with huge pages:EINVAL':
    'this kernel has no transparent huge pages: leave them to the host (auto)',
  'mmap of huge pages:ENOMEM': "the host's pool has too few: vm.nr_hugepages says how many there are",
  'KVM_CREATE_VM:ENOMEM': 'the host is out of memory for VMs',
  'KVM_CREATE_VCPU:EEXIST': 'a vCPU with this id exists already, or an irqchip must be created before any vCPU',
  'KVM_CREATE_VCPU:EINVAL': 'the vCPU id is beyond KVM_CAP_MAX_VCPU_ID, or there are too many vCPUs',
  'KVM_SET_USER_MEMORY_REGION:EEXIST': 'the region overlaps another memslot',
  'KVM_SET_USER_MEMORY_REGION:EINVAL': 'guest address, size and offset must be multiples of the page size',
  'KVM_SET_CPUID2:EINVAL': 'after the first KVM_RUN the CPUID table may no longer change',
}

/**
 * A system call on a KVM file descriptor failed.
 *
 * `ioctl` is what was tried (`KVM_RUN`), `errno` the positive error number, `code` its name (`EINVAL`).
 */
export class KvmError extends Error {
  override readonly name = 'KvmError'
  readonly ioctl: string
  readonly errno: number
  readonly code: string

  constructor(ioctl: string, errno: number, remedy?: string) {
    const code = errno > 0 ? getSystemErrorName(-errno) : 'EUNKNOWN'
    const advice = remedy ?? remedies[`${ioctl}:${code}`]
    super(`${ioctl}: ${code}${advice ? ` (${advice})` : ''}`)
    this.ioctl = ioctl
    this.errno = errno
    this.code = code
  }
}

/**
 * What the caller asked for cannot be done: names the field, the value it had, and the remedy.
 */
export class ConfigError extends Error {
  override readonly name = 'ConfigError'
  readonly field: string
  readonly value: unknown
  readonly remedy: string

  constructor(field: string, value: unknown, problem: string, remedy: string) {
    super(`${field}: ${describe(value)}: ${problem}; ${remedy}`)
    this.field = field
    this.value = value
    this.remedy = remedy
  }
}

/**
 * A snapshot cannot be read, or not be written: `path` is the file or directory, `problem` names the field and its value.
 */
export class SnapshotError extends Error {
  override readonly name = 'SnapshotError'
  readonly path: string
  readonly problem: string
  readonly remedy: string

  constructor(path: string, problem: string, remedy: string, options?: ErrorOptions) {
    super(`${path}: ${problem}; ${remedy}`, options)
    this.path = path
    this.problem = problem
    this.remedy = remedy
  }
}

/**
 * A nested state that KVM would refuse, found before it is handed over: `rule` is the short name of what it breaks, `field` and
 * `value` what breaks it.
 */
export class NestedStateError extends Error {
  override readonly name = 'NestedStateError'
  readonly rule: string
  readonly field: string
  readonly value: unknown
  readonly remedy: string

  constructor(rule: string, field: string, value: unknown, problem: string, remedy: string) {
    super(`nested state: ${rule}: ${field}: ${describe(value)}: ${problem}; ${remedy}`)
    this.rule = rule
    this.field = field
    this.value = value
    this.remedy = remedy
  }
}

/** The guest failed: it crashed, or KVM could not go on with it. `report` has the registers and the exit's facts. */
export class GuestError extends Error {
  override readonly name = 'GuestError'
  readonly report: string

  constructor(message: string, report = '') {
    super(message)
    this.report = report
  }
}

/** Something did not happen in time; `detail` shows what was last seen. */
export class TimeoutError extends Error {
  override readonly name = 'TimeoutError'
  readonly detail: string

  constructor(message: string, detail = '') {
    super(detail ? `${message}\n${detail}` : message)
    this.detail = detail
  }
}

function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 200 ? `${value.slice(0, 200)}...` : value)
  if (typeof value === 'bigint') return `0x${value.toString(16)}`
  return String(value)
}
