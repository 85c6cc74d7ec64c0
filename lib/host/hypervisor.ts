import type { HostSystem } from './system.js'

/** What this host, itself a virtual machine, runs on. */
export interface OuterHypervisor {
  /** As CPUID 0x40000000 (and 0x40000100) gives them. */
  readonly signatures: string[]
  /** What it is, for people; null where neither the signature nor DMI is known. */
  readonly name: string | null
  /** What its operator does to give this machine vmx or svm. */
  readonly remedy: string[]
}

/** Signatures of CPUID 0x40000000. Linux knows the same: arch/x86/kernel/cpu/hypervisor.c and what it names. */
const signatures: Readonly<Record<string, Kind>> = {
  KVMKVMKVM: 'kvm',
  TCGTCGTCGTCG: 'tcg',
  'Microsoft Hv': 'hyperv',
  VMwareVMware: 'vmware',
  XenVMMXenVMM: 'xen',
  VBoxVBoxVBox: 'virtualbox',
  ' lrpepyh  vr': 'parallels',
  'prl hyperv  ': 'parallels',
  'bhyve bhyve ': 'bhyve',
  ACRNACRNACRN: 'acrn',
}

/** What DMI (SMBIOS, type 1) says: vendor and product. A cloud's own remedy goes before its hypervisor's. */
const platforms: readonly (readonly [pattern: RegExp, kind: Kind])[] = [
  [/^Google\b|Google Compute Engine/, 'gcp'],
  [/^Amazon EC2\b/, 'ec2'],
  [/7783-7084-3265-9085-8269-3286-77/, 'azure'],
  [/^Microsoft Corporation\b.*Virtual Machine/, 'hyperv'],
  [/^VMware/, 'vmware'],
  [/^Xen\b/, 'xen'],
  [/^innotek|VirtualBox/, 'virtualbox'],
  [/^Parallels/, 'parallels'],
  [/^QEMU\b|KVM/, 'kvm'],
]

type Kind =
  | 'kvm'
  | 'tcg'
  | 'hyperv'
  | 'vmware'
  | 'xen'
  | 'virtualbox'
  | 'parallels'
  | 'bhyve'
  | 'acrn'
  | 'gcp'
  | 'ec2'
  | 'azure'

const kinds: Readonly<Record<Kind, readonly [name: string, ...remedy: string[]]>> = {
  kvm: [
    'KVM',
    'on its host: nested-kvm host enable-nested',
    'QEMU: -cpu host (or a model with ,+vmx or ,+svm)',
    'libvirt: virsh edit, with the <cpu> that nested-kvm doctor --libvirt prints',
    'Proxmox: qm set VMID --cpu host; OpenStack: cpu_mode = host-passthrough',
  ],
  tcg: ['QEMU (TCG)', '-cpu max,+svm'],
  hyperv: ['Hyper-V', 'with the machine off: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true'],
  vmware: [
    'VMware',
    'vhv.enable = "TRUE" in the .vmx file ("Expose hardware assisted virtualization to the guest OS")',
  ],
  xen: ['Xen', 'in the domain configuration: hap = 1 and nestedhvm = 1 (experimental; HVM guests only)'],
  virtualbox: ['VirtualBox', 'with the machine off: VBoxManage modifyvm NAME --nested-hw-virt on'],
  parallels: ['Parallels', 'with the machine off: prlctl set NAME --nested-virt on (Intel hosts)'],
  bhyve: ['bhyve', 'it has no nested virtualization: use another host'],
  acrn: ['ACRN', 'nested virtualization is a build and scenario option of it (NVMX_ENABLED)'],
  gcp: [
    'Google Compute Engine',
    'enableNestedVirtualization: gcloud compute instances create NAME --enable-nested-virtualization (Intel series; not E2)',
  ],
  ec2: [
    'Amazon EC2',
    'a *.metal instance, or C8i, M8i, R8i with --cpu-options NestedVirtualization=enabled, given while it is stopped',
  ],
  azure: [
    'Azure',
    'a size that nests (Dv3, Ev3 and newer of them; not B or A), in the security type Standard if need be',
  ],
}

const DMI = ['sys_vendor', 'product_name', 'chassis_asset_tag'].map(name => `/sys/class/dmi/id/${name}`)

/** Finds out what hypervisor this host runs under, if any: CPUID's hypervisor bit and signature, and DMI for clouds. */
export function outerHypervisor(system: HostSystem, virtual: boolean): OuterHypervisor | null {
  if (!virtual) return null
  const found = system.hypervisors()
  const dmi = DMI.map(path => system.read(path)?.trim() ?? '').join(' ')
  const platform = platforms.find(([pattern]) => pattern.test(dmi))?.[1]
  // KVM that imitates Hyper-V for its guest still tells its own name second.
  const told = found.map(text => signatures[text]).filter(kind => kind !== undefined)
  const own = told.includes('kvm') ? 'kvm' : told[0]
  const cloud = platform === 'gcp' || platform === 'ec2' || platform === 'azure' ? platform : undefined
  const kind = cloud ?? own ?? platform
  if (kind === undefined) {
    return { signatures: found, name: null, remedy: ['ask its operator to give this machine vmx or svm'] }
  }
  const [name, ...remedy] = kinds[kind]
  return { signatures: found, name, remedy }
}
