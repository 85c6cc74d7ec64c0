import { CONFIG_FILE } from './modprobe-config.js'
import type { HostSystem } from './system.js'

/** The two virtualization extensions that a hypervisor inside a guest can use. */
export type Extension = 'vmx' | 'svm'

/** The kernel module that drives each extension and owns its `nested` parameter. */
export const moduleOf = { vmx: 'kvm_intel', svm: 'kvm_amd' } as const satisfies Record<Extension, string>

/** What the kernel says about its KVM modules. Everything here is for people to read; no decision rests on the names. */
export interface KvmModules {
  /** The modules that drive `/dev/kvm` now. */
  readonly vendor: string[]
  /** `nested` of each vendor module that has the parameter, as the kernel prints it (`Y`, `N`, `1`, `0`). */
  readonly nested: Record<string, string>
}

/** Reads `/sys/module`: the vendor modules and their `nested` parameters. */
export function readModules(system: HostSystem): KvmModules {
  // A module shows up as a holder of `kvm`; one that is built into the kernel only as a directory of its own.
  const own = system.list('/sys/module').filter(name => name.startsWith('kvm_'))
  const vendor = [...new Set([...system.list('/sys/module/kvm/holders'), ...own])].sort()
  const nested: Record<string, string> = {}
  for (const name of vendor) {
    const value = system.read(`/sys/module/${name}/parameters/nested`)?.trim()
    if (value) nested[name] = value
  }
  return { vendor, nested }
}

/** True for the values that the kernel prints for a switched-on boolean or integer parameter. */
export function isOn(value: string | undefined): boolean {
  return value === 'Y' || (value !== undefined && /^[1-9]\d*$/.test(value))
}

/** Whether a module is loaded, is part of the kernel itself, or is not there now. */
export function moduleState(system: HostSystem, module: string): 'loaded' | 'built-in' | 'absent' {
  if (!system.list('/sys/module').includes(module)) return 'absent'
  const loaded = (system.read('/proc/modules') ?? '').split('\n').some(line => line.startsWith(`${module} `))
  return loaded ? 'loaded' : 'built-in'
}

/** The commands, run as root, that load the extension's module with nesting switched on, now and after every boot. */
export function enableCommands(extension: Extension, system: HostSystem): string[] {
  const module = moduleOf[extension]
  const keep = `echo 'options ${module} nested=1' > ${CONFIG_FILE}`
  switch (moduleState(system, module)) {
    case 'absent':
      return [keep, `modprobe ${module}`]
    case 'loaded':
      return [keep, `modprobe -r ${module}`, `modprobe ${module}`]
    case 'built-in':
      // It cannot be reloaded, only started with another parameter.
      return [`add ${module}.nested=1 to the kernel's command line and restart`]
  }
}
