import { cp, mkdir, readdir, rm, truncate, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { buildInitramfs } from '../boot/initramfs.js'
import { ConfigError } from '../errors.js'
import { aptProxy, installPackages, type Progress, releaseMirror } from './apt.js'
import type { KernelAsset } from './assets.js'
import { findProgram, outputOf } from './command.js'
import { ModuleTree } from './modules.js'
import { MARK } from './tower-image.js'

/** Debian 12: the release whose QEMU and Xen the towers are tried with. */
const SUITE = 'bookworm'
const PACKAGES = ['busybox', 'fio', 'iproute2', 'iputils-ping', 'kmod', 'qemu-system-x86', 'xen-utils-4.17']
/** Nothing of these is read in a guest. */
const NOT_KEPT = ['usr/share/doc', 'usr/share/man', 'usr/share/locale', 'var/cache/apt', 'var/lib/apt/lists']
/** Bytes; sparse: what is empty in it takes no room. */
const SIZE = 1 << 30

/** What an initramfs needs to have /dev/vda as its root. */
const ROOT_MODULES = ['virtio_mmio', 'virtio_pci', 'virtio_blk', 'crc32c_generic', 'ext4']
const APPLETS = ['sh', 'cat', 'echo', 'insmod', 'mount', 'poweroff', 'switch_root', 'usleep']

/** Process 1 of the initramfs: goes over to /dev/vda, which comes a little later than its driver. */
const INITRD_INIT = `#!/bin/sh
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
tries=0
until [ -b /dev/vda ] || [ $tries -gt 500 ]; do tries=$((tries + 1)); usleep 10000; done
mount -t ext4 /dev/vda /root || { echo 'there is no root disk on /dev/vda'; poweroff -f; }
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
`

/**
 * Process 1 of the root disk, which is all of its system: tells what L1 is as the tower's image does, runs what the kernel's command line has
 * as `run=` (it gives to init what it does not know), tells its exit code and powers off. Without `run=` it is a shell on the console.
 */
const INIT = `#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -c /dev/console ] || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
hostname l1
ip link set lo up
flag=$(grep -o -w -m1 -e svm -e vmx /proc/cpuinfo | head -n 1)
case $flag in
  svm) modprobe -q kvm_amd nested=1 ;;
  vmx) modprobe -q kvm_intel nested=1 ;;
esac
echo '${MARK}'"{\\"kernel\\":\\"$(uname -r)\\",\\"flag\\":\\"$flag\\",\\"cpus\\":$(nproc)}"
if [ -n "$run" ]; then
  bash -c "$run"
  echo '${MARK}'"{\\"status\\":$?}"
else
  setsid -c bash -i < /dev/console > /dev/console 2>&1
fi
sync
mount -o remount,ro /
busybox poweroff -f
`

/** What a root disk is made from: another of these is another disk. */
export async function rootDiskRecipe(kernels: readonly KernelAsset[]): Promise<string> {
  const modules = kernels.map(async ({ modulesDir, release }) => {
    return [release, (await readdir(modulesDir, { recursive: true })).sort()]
  })
  return JSON.stringify([1, SUITE, PACKAGES, NOT_KEPT, SIZE, INIT, await Promise.all(modules)])
}

/**
 * Makes a root disk of Debian in `file`: an ext4 file system without a partition table. debootstrap installs it (which takes a minute or two, and
 * root) from where this machine has its own packages.
 *
 * @throws ConfigError where this process is not root, or a part cannot be had.
 */
export async function makeRootDisk(file: string, kernels: readonly KernelAsset[], progress: Progress): Promise<void> {
  if (process.getuid?.() !== 0) {
    throw new ConfigError('root disk', file, 'can be made by root only: debootstrap changes its root', 'run it as root')
  }
  const [debootstrap, mke2fs, unshare] = [
    await needProgram('debootstrap', 'debootstrap', progress),
    await needProgram('mke2fs', 'e2fsprogs', progress),
    await needProgram('unshare', 'util-linux', progress),
  ]
  const tree = `${file}.tree`
  await mkdir(tree)
  progress(`installing Debian ${SUITE} with ${PACKAGES.join(', ')}: a minute or two`)
  const mirror = await releaseMirror()
  const proxy = await aptProxy()
  const options = ['--variant=minbase', `--include=${PACKAGES.join(',')}`, SUITE, tree, mirror]
  // In a mount namespace of its own, so that no /proc is left mounted there, whatever ends it.
  await outputOf('env', [...proxy, unshare, '--mount', debootstrap, ...options]).catch((error: Error) => {
    const problem = `cannot be installed by debootstrap (${error.message})`
    throw new ConfigError('root disk', SUITE, problem, 'run: apt-get update, check the apt sources and the network')
  })
  for (const path of NOT_KEPT) await rm(join(tree, path), { recursive: true, force: true })
  for (const { modulesDir, release } of kernels) {
    await cp(modulesDir, join(tree, 'usr/lib/modules', release), { recursive: true })
    await outputOf('chroot', [tree, 'depmod', release])
  }
  await writeFile(join(tree, 'usr/sbin/init'), INIT, { mode: 0o755 })
  await makeExt4(file, tree, mke2fs, progress)
  await rm(tree, { recursive: true })
}

/** The initramfs of a machine whose root is /dev/vda, for a kernel. */
export async function diskInitrd(kernel: KernelAsset, busybox: string): Promise<Buffer> {
  const tree = await ModuleTree.open(kernel.modulesDir)
  // ext4 asks for crc32c by that name when it mounts, and finds it built in or here.
  const modules = await tree.load(...ROOT_MODULES.filter(name => name !== 'crc32c_generic' || tree.has(name)))
  return buildInitramfs([
    { type: 'file', path: '/bin/busybox', source: busybox, mode: 0o755 },
    ...APPLETS.map(name => ({ type: 'symlink' as const, path: `/bin/${name}`, target: 'busybox' })),
    ...['/dev', '/root'].map(path => ({ type: 'directory' as const, path })),
    { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
    ...modules.map(({ name, data }) => ({ type: 'file' as const, path: `/modules/${name}.ko`, data })),
    { type: 'file', path: '/modules/order', data: modules.map(({ name }) => name).join('\n') },
    { type: 'file', path: '/init', data: INITRD_INIT, mode: 0o755 },
  ])
}

/**
 * Makes an ext4 file system of `size` bytes in `file` with what is below `directory`, without mounting anything (mke2fs(8), -d). It has no journal,
 * as it is thrown away after a crash.
 */
export async function makeExt4(
  file: string,
  directory: string,
  mke2fs: string,
  progress: Progress,
  size = SIZE,
): Promise<void> {
  progress(`making ${basename(file)}`)
  await writeFile(file, '')
  await truncate(file, size)
  await outputOf(mke2fs, [
    '-q',
    '-t',
    'ext4',
    '-O',
    '^has_journal',
    '-m',
    '0',
    '-E',
    'root_owner=0:0',
    '-d',
    directory,
    file,
  ])
}

export async function needProgram(name: string, package_: string, progress: Progress): Promise<string> {
  const there = await findProgram(name)
  if (there !== undefined) return there
  await installPackages([package_], name, progress)
  const installed = await findProgram(name)
  if (installed !== undefined) return installed
  throw new ConfigError(
    name,
    '',
    'is not there although its package is',
    `run: apt-get install --reinstall ${package_}`,
  )
}
