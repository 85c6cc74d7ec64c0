import { existsSync } from 'node:fs'
import { copyFile, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join, relative } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { programFiles } from '../boot/program-files.js'
import { ConfigError } from '../errors.js'
import { installPackages, kernelPackages, type Progress, unpackPackage } from './apt.js'
import { buildBochs, builtBochs } from './bochs-build.js'
import { cached } from './cache.js'
import { findProgram, outputOf } from './command.js'
import { guestDiskRecipe, makeGuestDisk } from './guest-disk.js'
import { APPLETS } from './guest-files.js'
import { hasPvhEntry, unpackKernel } from './kernel-image.js'
import { ModuleTree } from './modules.js'
import type { QemuProgram } from './qemu.js'
import { buildQemu, builtQemu } from './qemu-build.js'
import { diskInitrd, makeRootDisk, rootDiskRecipe } from './root-disk.js'

export { cacheDirectory } from './cache.js'

/** A stock kernel, unpacked. */
export interface KernelAsset {
  /** The bzImage. */
  readonly vmlinuz: string
  /** The `vmlinux` inside it (ELF, with a PVH entry), where this machine could unpack it; `vmlinuz` otherwise. */
  readonly image: string
  /** `lib/modules/<release>`: the modules that hypervisors and their guests use, and what those need. For `ModuleTree.open`. */
  readonly modulesDir: string
  /** As `uname -r` says it. */
  readonly release: string
}

export interface BochsAsset {
  readonly program: string
  /** As in `3.0`. */
  readonly version: string
  /** The PC's firmware and its VGA adapter's. */
  readonly bios: string
  readonly vgaBios: string
  /** Built for speed; the distribution's is a debugger. */
  readonly fast: boolean
}

/** What can be found or fetched. */
export interface Assets {
  /** Bochs, the fast one where `setUpLab` has built it. */
  readonly bochs: BochsAsset
  readonly qemu: { readonly program: string; readonly version: string }
  /** For the emulated host with svm: a mended QEMU, without KVM, where `setUpLab` has built it; else `qemu`. */
  readonly labQemu: QemuProgram
  /** Debian's generic kernel: it has 9p and every device. For the emulated host. */
  readonly labKernel: KernelAsset
  /** Debian's cloud kernel: small and quick to boot. For guests. */
  readonly guestKernel: KernelAsset
  /** A statically linked busybox. */
  readonly busybox: { readonly program: string }
  /** Debian on a disk, with QEMU, Xen's tools and fio. */
  readonly rootDisk: RootDiskAsset
  /** A disk that holds the image of an L2. */
  readonly guestDisk: GuestDiskAsset
  /** Xen, unpacked: an ELF file with a PVH note and a Multiboot header. Its dom0 runs `labKernel` from `rootDisk`. */
  readonly xen: { readonly hypervisor: string }
}

/** The root disk of an L1. It is taken for damaged, and made again, once it was written to: give it `snapshot: true`. */
export interface RootDiskAsset {
  /** The raw image of an ext4 file system. */
  readonly image: string
  /** The initramfs with which a kernel has /dev/vda as its root. Init runs what the kernel's command line says as `run="..."`. */
  readonly initrd: { readonly guestKernel: string; readonly labKernel: string }
}

/**
 * A raw ext4 image, to be mounted: `l2.img` is a disk that a PC's BIOS boots, and `vmlinuz` and `initrd` the same for a hypervisor that boots
 * kernels.
 */
export interface GuestDiskAsset {
  readonly image: string
}

export type AssetKind = keyof Assets

const QEMU = 'qemu-system-x86_64'
const XEN = 'xen-hypervisor-4.17-amd64'
const LEAST_QEMU = [7, 2] as const

/** Of the packages bochsbios and vgabios, or of the SeaBIOS that may be there in their place. */
const BIOS = ['/usr/share/bochs/BIOS-bochs-latest', '/usr/share/seabios/bios.bin']
const VGA_BIOS = [
  '/usr/share/vgabios/vgabios.bin',
  '/usr/share/bochs/VGABIOS-lgpl-latest',
  '/usr/share/seabios/vgabios.bin',
]

const KERNELS = {
  labKernel: {
    meta: 'linux-image-amd64',
    entry: 'lab-kernel',
    release: /^\d[^/]*(?<!-cloud)(?<!-rt)-(amd64|generic)$/,
  },
  guestKernel: { meta: 'linux-image-cloud-amd64', entry: 'guest-kernel', release: /^\d[^/]*-cloud-amd64$/ },
} as const

/** Without these a kernel is of no use; the others are kept where it has them. */
const NEEDED_MODULES = {
  labKernel: ['kvm_amd', 'kvm_intel', '9p', '9pnet_virtio', 'virtio_pci', 'virtio_console', '9pnet_fd', 'e1000'],
  guestKernel: ['kvm_amd', 'kvm_intel'],
} as const
/** Of a kernel that is Xen's dom0, with its root on a disk. */
const DOM0_MODULES = [
  'crc32c_generic',
  'xen_evtchn',
  'xen_gntdev',
  'xen_gntalloc',
  'xen_privcmd',
  'xenfs',
  'xen_blkback',
  'xen_netback',
]
const USEFUL_MODULES = ['virtio_pci', 'virtio_mmio', 'virtio_console', 'virtio_blk', 'virtio_net', 'virtio_rng']
USEFUL_MODULES.push(
  'overlay',
  'ext4',
  'isofs',
  'loop',
  'tun',
  'vmw_vsock_virtio_transport',
  'bridge',
  'dummy',
  'vhost_net',
  'sr_mod',
  'ata_piix',
  'ahci',
  'sd_mod',
  'msr',
  'cpuid',
  'button',
  'pvpanic_mmio',
  'softdog',
)

/**
 * Finds the assets on this machine, in the cache, or through apt: kernels and busybox are downloaded and unpacked into the cache,
 * QEMU is installed where we are root. Only what is named is looked for.
 *
 * @throws ConfigError when one cannot be had, saying exactly what to install.
 */
export async function ensureAssets<K extends AssetKind>(
  kinds: readonly K[],
  options: { onProgress?: Progress } = {},
): Promise<Pick<Assets, K>> {
  const progress = options.onProgress ?? (() => {})
  const found: Partial<Record<AssetKind, unknown>> = {}
  // One after the other: apt does one thing at a time.
  for (const kind of kinds) found[kind] = await ensure[kind](progress)
  return found as Pick<Assets, K>
}

const ensure: { [K in AssetKind]: (progress: Progress) => Promise<Assets[K]> } = {
  qemu: ensureQemu,
  labQemu: ensureLabQemu,
  bochs: ensureBochs,
  busybox: ensureBusybox,
  labKernel: progress => ensureKernel('labKernel', progress),
  guestKernel: progress => ensureKernel('guestKernel', progress),
  rootDisk: ensureRootDisk,
  guestDisk: ensureGuestDisk,
  xen: ensureXen,
}

async function ensureRootDisk(progress: Progress): Promise<RootDiskAsset> {
  const { guestKernel, labKernel, busybox } = await ensureAssets(['guestKernel', 'labKernel', 'busybox'], {
    onProgress: progress,
  })
  const kernels = { guestKernel, labKernel }
  const { directory } = await cached('root-disk', await rootDiskRecipe(Object.values(kernels)), async work => {
    await makeRootDisk(join(work, 'root.img'), Object.values(kernels), progress)
    for (const [name, kernel] of Object.entries(kernels)) {
      await writeFile(join(work, `${name}.cpio`), await diskInitrd(kernel, busybox.program))
    }
    return {}
  })
  const [image, forGuest, forLab] = ['root.img', 'guestKernel.cpio', 'labKernel.cpio'].map(name =>
    join(directory, name),
  )
  return { image: image!, initrd: { guestKernel: forGuest!, labKernel: forLab! } }
}

async function ensureGuestDisk(progress: Progress): Promise<GuestDiskAsset> {
  const { guestKernel, busybox } = await ensureAssets(['guestKernel', 'busybox'], { onProgress: progress })
  const { directory } = await cached('guest-disk', guestDiskRecipe(guestKernel), async work => {
    await makeGuestDisk(join(work, 'guest.img'), guestKernel, busybox.program, progress)
    return {}
  })
  return { image: join(directory, 'guest.img') }
}

async function ensureXen(progress: Progress): Promise<Assets['xen']> {
  const { directory } = await cached('xen', JSON.stringify([1, XEN]), async work => {
    const tree = join(work, 'tree')
    await unpackPackage([XEN], tree, progress)
    const packed = (await readdir(join(tree, 'boot'))).find(name => /^xen-.*\.gz$/.test(name))
    if (packed === undefined) {
      throw new ConfigError('package', XEN, 'holds no hypervisor', `install another version of ${XEN}`)
    }
    await writeFile(join(work, 'xen'), gunzipSync(await readFile(join(tree, 'boot', packed))))
    await rm(tree, { recursive: true })
    return {}
  })
  return { hypervisor: join(directory, 'xen') }
}

async function ensureQemu(progress: Progress): Promise<Assets['qemu']> {
  let program = await findProgram(QEMU)
  if (program === undefined) {
    await installPackages(['qemu-system-x86'], QEMU, progress)
    program = await findProgram(QEMU)
  }
  if (program === undefined) {
    throw new ConfigError(
      QEMU,
      '',
      'is not there although its package is',
      'run: apt-get install --reinstall qemu-system-x86',
    )
  }
  const text = await outputOf(program, ['--version']).catch((error: Error) => error.message)
  const version = /version (\d+)\.(\d+)\S*/.exec(text)
  if (version === null) {
    throw new ConfigError(
      QEMU,
      program,
      `does not run (${text.trim()})`,
      'run: apt-get install --reinstall qemu-system-x86',
    )
  }
  const [major, minor] = [Number(version[1]), Number(version[2])]
  if (major < LEAST_QEMU[0] || (major === LEAST_QEMU[0] && minor < LEAST_QEMU[1])) {
    throw new ConfigError(
      QEMU,
      program,
      `is version ${major}.${minor}`,
      `install version ${LEAST_QEMU.join('.')} or newer`,
    )
  }
  return { program, version: `${major}.${minor}` }
}

/** The mended one where it has been built; else Debian's. */
async function ensureLabQemu(progress: Progress): Promise<QemuProgram> {
  const built = await builtQemu()
  if (built !== undefined) return { program: join(built, QEMU), firmware: built }
  progress(
    'this QEMU can deliver an interrupt twice, and a guest hang of it; `nested-kvm lab setup` builds one that does not',
  )
  return await ensureQemu(progress)
}

/** The fast build where there is one; else Debian's, which is several times slower. */
async function ensureBochs(progress: Progress): Promise<BochsAsset> {
  const built = await builtBochs()
  if (built !== undefined) return fastBochs(built)
  progress('this Bochs is the slow one; `nested-kvm lab setup --vendor vmx` builds a fast one')
  let program = await findProgram('bochs')
  if (program === undefined) {
    // Which brings bochs itself, with the plainest of its displays.
    await installPackages(['bochs-term'], 'bochs', progress)
    program = await findProgram('bochs')
  }
  if (program === undefined) {
    throw new ConfigError('bochs', '', 'is not there although its package is', 'run: apt-get install --reinstall bochs')
  }
  const text = await outputOf(program, ['--help']).catch((error: Error) => error.message)
  const version = /Emulator (\d+\.\d+)/.exec(text)?.[1]
  if (version === undefined) {
    throw new ConfigError('bochs', program, 'does not run', 'run: nested-kvm lab setup --vendor vmx')
  }
  return {
    program,
    version,
    bios: await firmware(BIOS, 'bochsbios', progress),
    vgaBios: await firmware(VGA_BIOS, 'vgabios', progress),
    fast: false,
  }
}

async function firmware(paths: readonly string[], name: string, progress: Progress): Promise<string> {
  const there = () => paths.find(path => existsSync(path))
  if (there() === undefined) await installPackages([name], 'bochs', progress)
  const found = there()
  if (found !== undefined) return found
  throw new ConfigError('bochs', paths[0], 'is missing', 'run: nested-kvm lab setup --vendor vmx')
}

/**
 * Fetches all that the lab of a vendor needs, so that it starts without a wait. Its emulator is built from the distribution's source: for svm a QEMU
 * with its faults mended, for vmx a fast Bochs. Throws as `ensureAssets` does.
 */
export async function setUpLab(vendor: 'svm' | 'vmx', options: { onProgress?: Progress } = {}): Promise<void> {
  const build = vendor === 'vmx' ? buildBochs : buildQemu
  await build(options.onProgress ?? (() => {}))
  await ensureAssets([vendor === 'vmx' ? 'bochs' : 'labQemu', 'labKernel', 'busybox'], options)
}

function fastBochs(directory: string): BochsAsset {
  const [program, bios, vgaBios] = ['bochs', 'bios.bin', 'vgabios.bin'].map(name => join(directory, name))
  return { program: program!, version: '3.0', bios: bios!, vgaBios: vgaBios!, fast: true }
}

async function ensureBusybox(progress: Progress): Promise<Assets['busybox']> {
  const installed = await findProgram('busybox')
  if (installed !== undefined && (await isUsableBusybox(installed))) return { program: installed }
  const { directory } = await cached('busybox', '1', async work => {
    const tree = join(work, 'tree')
    const name = await unpackPackage(['busybox-static'], tree, progress)
    for (const path of ['bin/busybox', 'usr/bin/busybox'])
      await rename(join(tree, path), join(work, 'busybox')).catch(() => {})
    await rm(tree, { recursive: true })
    if (!(await isUsableBusybox(join(work, 'busybox')))) {
      throw new ConfigError('package', name, 'its busybox lacks what the lab needs', 'install another busybox-static')
    }
    return {}
  })
  return { program: join(directory, 'busybox') }
}

/** Static, and with every command that the lab's scripts use. */
async function isUsableBusybox(program: string): Promise<boolean> {
  try {
    if ((await programFiles(program)).length !== 1) return false
    const applets = new Set((await outputOf(program, ['--list'])).split('\n'))
    return APPLETS.every(name => applets.has(name))
  } catch {
    return false
  }
}

async function ensureKernel(kind: keyof typeof KERNELS, progress: Progress): Promise<KernelAsset> {
  const { meta, entry } = KERNELS[kind]
  const recipe = JSON.stringify([1, NEEDED_MODULES[kind], usefulModules(kind)])
  const { directory, facts } = await cached(entry, recipe, async work => {
    const tree = join(work, 'tree')
    let from = { root: '/', release: await installedRelease(kind) }
    if (from.release === undefined) {
      await unpackPackage(await kernelPackages(meta, progress), tree, progress)
      from = { root: tree, release: (await releases(kind, tree)).at(-1) }
    }
    if (from.release === undefined) {
      throw new ConfigError('package', meta, 'holds no kernel of the kind that is needed', `install ${meta}`)
    }
    const image = await keepKernel(kind, from.root, from.release, work)
    await rm(tree, { recursive: true, force: true })
    return { release: from.release, image }
  })
  return {
    vmlinuz: join(directory, 'vmlinuz'),
    image: join(directory, facts.image),
    modulesDir: join(directory, 'lib/modules', facts.release),
    release: facts.release,
  }
}

/** What is kept where the kernel has it. */
function usefulModules(kind: keyof typeof KERNELS): string[] {
  return kind === 'labKernel' ? [...USEFUL_MODULES, ...DOM0_MODULES] : USEFUL_MODULES
}

/** Takes over from an unpacked package (or this machine) the few files of its hundreds of megabytes that are used. */
async function keepKernel(kind: keyof typeof KERNELS, root: string, release: string, work: string): Promise<string> {
  const bzImage = await readFile(join(root, 'boot', `vmlinuz-${release}`))
  await writeFile(join(work, 'vmlinuz'), bzImage)
  const source = await modulesDirectory(root, release)
  const target = join(work, 'lib/modules', release)
  await mkdir(target, { recursive: true })
  await copyFile(join(source, 'modules.builtin'), join(target, 'modules.builtin'))
  const modules = await ModuleTree.open(source)
  const useful = usefulModules(kind).filter(name => modules.has(name))
  for (const { name } of await modules.load(...NEEDED_MODULES[kind], ...useful)) {
    const file = modules.path(name)!
    const kept = join(target, relative(source, file))
    await mkdir(join(kept, '..'), { recursive: true })
    await copyFile(file, kept)
  }
  const vmlinux = await unpackKernel(bzImage)
  if (vmlinux === undefined || !hasPvhEntry(vmlinux)) return 'vmlinuz'
  await writeFile(join(work, 'vmlinux'), vmlinux)
  return 'vmlinux'
}

/** The newest kernel of this machine that can be read and has the modules. */
async function installedRelease(kind: keyof typeof KERNELS): Promise<string | undefined> {
  for (const release of (await releases(kind, '/')).reverse()) {
    const modules = await modulesDirectory('/', release)
      .then(ModuleTree.open)
      .catch(() => undefined)
    if (!modules || !NEEDED_MODULES[kind].every(name => modules.has(name))) continue
    const readable = await readFile(`/boot/vmlinuz-${release}`).catch(() => undefined)
    if (readable) return release
  }
  return undefined
}

/** The kernels of that kind below a root directory, oldest first. */
async function releases(kind: keyof typeof KERNELS, root: string): Promise<string[]> {
  const names = await readdir(join(root, 'boot')).catch(() => [])
  return names
    .filter(name => name.startsWith('vmlinuz-'))
    .map(name => name.slice('vmlinuz-'.length))
    .filter(release => KERNELS[kind].release.test(release))
    .sort(new Intl.Collator('en', { numeric: true }).compare)
}

async function modulesDirectory(root: string, release: string): Promise<string> {
  // Newer packages have gone over to /usr.
  for (const lib of ['lib/modules', 'usr/lib/modules']) {
    const directory = join(root, lib, release)
    if ((await readdir(directory).catch(() => [])).length > 0) return directory
  }
  throw new ConfigError('kernel modules', release, `are not below ${root}`, `reinstall linux-image-${release}`)
}
