import { KvmError } from '../../../lib/errors.js'
import type { FileOwner, HostSystem } from '../../../lib/host/system.js'
import type { CpuidEntry } from '../../../lib/kvm/structs.js'

const ENOENT = 2
const KVM_CAP_NESTED_STATE = 157

const leaf = (fn: number, ecx: number): CpuidEntry => ({
  function: fn,
  index: 0,
  flags: 0,
  eax: 0,
  ebx: 0,
  ecx,
  edx: 0,
})
export const vmxCpuid = [leaf(0, 0), leaf(1, 1 << 5), leaf(0x8000_0001, 1)]
export const svmCpuid = [leaf(1, 0), leaf(0x8000_0001, 1 << 2)]
export const plainCpuid = [leaf(1, 0xffff_ffdf), leaf(0x8000_0001, 0xffff_fffb)]

export interface FakeHost {
  flags?: string
  files?: Record<string, string>
  links?: Record<string, string>
  device?: FileOwner
  kvm?: { cpuid: CpuidEntry[]; nestedState: number }
  openError?: Error
  uid?: number
  /** MSRs of its processors, by number; without it /dev/cpu is not there. */
  msrs?: Record<number, bigint>
  hypervisors?: string[]
  programs?: string[]
  unwritable?: Record<string, string>
}

/** How often a /dev/kvm was closed. */
export const counts = { closed: 0 }

/**
 * A host that has the given files and the given /dev/kvm; a directory is whatever has a file below it. What is done to `fake` later is seen.
 */
export function host(fake: FakeHost): HostSystem {
  const all = (): Record<string, string> => ({
    '/proc/cpuinfo': `processor\t: 0\nflags\t\t: fpu ${fake.flags ?? ''} lm\nvmx flags\t: ept\n`,
    '/proc/sys/kernel/osrelease': '6.1.0-test\n',
    '/etc/passwd': 'root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n',
    '/etc/group': 'root:x:0:\nkvm:x:104:\nvirt:x:105:\n',
    ...(fake.msrs && { '/dev/cpu/0/msr': '', '/dev/cpu/1/msr': '', '/dev/cpu/microcode': '' }),
    ...fake.files,
  })
  return {
    read: path => all()[path],
    readBytes: (path, offset) => {
      const value = /^\/dev\/cpu\/\d+\/msr$/.test(path) ? fake.msrs?.[offset] : undefined
      return value === undefined ? undefined : new Uint8Array(BigUint64Array.of(value).buffer)
    },
    list: path => [
      ...new Set(
        [...Object.keys(all()), ...Object.keys(fake.links ?? {})]
          .filter(name => name.startsWith(`${path}/`))
          .map(name => name.slice(path.length + 1).split('/')[0]!),
      ),
    ],
    link: path => fake.links?.[path],
    owner: path => (path === '/dev/kvm' ? fake.device : path in all() ? { mode: 0o100644, uid: 0, gid: 0 } : undefined),
    unwritable: path => fake.unwritable?.[path],
    program: name => ((fake.programs ?? ['modprobe']).includes(name) ? `/usr/sbin/${name}` : undefined),
    hypervisors: () => fake.hypervisors ?? [],
    uid: fake.uid ?? 1000,
    openKvm: path => {
      if (fake.openError) throw fake.openError
      const { kvm } = fake
      if (!kvm) throw new KvmError(`open ${path}`, ENOENT)
      return {
        apiVersion: 12,
        checkExtension: capability => (capability === KVM_CAP_NESTED_STATE ? kvm.nestedState : 0),
        supportedCpuid: () => kvm.cpuid,
        close: () => {
          counts.closed++
        },
      }
    },
  }
}

export const device = { mode: 0o20660, uid: 0, gid: 104 }
export const intel = (nested: string) => ({
  '/sys/module/kvm/holders/kvm_intel/x': '',
  '/sys/module/kvm_intel/parameters/nested': `${nested}\n`,
  '/proc/modules': 'kvm_intel 450560 0 - Live 0x0\nkvm 1355776 1 kvm_intel, Live 0x0\n',
})
export const amd = (nested: string) => ({
  '/sys/module/kvm/holders/kvm_amd/x': '',
  '/sys/module/kvm_amd/parameters/nested': `${nested}\n`,
  '/sys/module/kvm_amd/refcnt': '0\n',
  '/proc/modules': 'kvm_amd 155648 0 - Live 0x0\nkvm 1355776 1 kvm_amd, Live 0x0\n',
})
