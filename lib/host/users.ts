import type { HostSystem } from './system.js'

/** A process that has KVM open, and so keeps its modules from being unloaded. */
export interface KvmUser {
  readonly pid: number
  /** Its command's name, as in /proc/PID/comm. */
  readonly name: string
  readonly vms: number
  readonly vcpus: number
}

/**
 * The processes that have `/dev/kvm`, a VM or a vCPU open, by the links of their descriptors (Linux: virt/kvm/kvm_main.c names them
 * `kvm-vm` and `kvm-vcpu:N`). Without being root only the caller's own are seen.
 */
export function kvmUsers(system: HostSystem): KvmUser[] {
  const users: KvmUser[] = []
  for (const pid of system.list('/proc').filter(name => /^\d+$/.test(name))) {
    const directory = `/proc/${pid}/fd`
    const links = system.list(directory).map(fd => system.link(`${directory}/${fd}`))
    const open = links.filter(link => link !== undefined && /^\/dev\/kvm$|^anon_inode:\[?kvm-/.test(link))
    if (open.length === 0) continue
    const count = (kind: RegExp) => open.filter(link => kind.test(link!)).length
    users.push({
      pid: Number(pid),
      // A process names itself as it likes: nothing of it is to steer a terminal.
      name: (system.read(`/proc/${pid}/comm`)?.trim() ?? '?').replace(/[^\x20-\x7e]/g, '?'),
      vms: count(/kvm-vm\b/),
      vcpus: count(/kvm-vcpu/),
    })
  }
  return users.sort((a, b) => a.pid - b.pid)
}

/** As many as are told in one line; the report has all. */
const TOLD = 4

/** Some users in words, and how many more there are. */
export function describeUsers(users: readonly KvmUser[]): string {
  const more = users.length > TOLD ? [`${users.length - TOLD} more`] : []
  return [...users.slice(0, TOLD).map(describeUser), ...more].join(', ')
}

/** As in `qemu-system-x86 (pid 4711, 1 VM)`. */
export function describeUser({ pid, name, vms }: KvmUser): string {
  return `${name} (pid ${pid}${vms > 0 ? `, ${vms} VM${vms > 1 ? 's' : ''}` : ''})`
}
