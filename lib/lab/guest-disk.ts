import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { buildInitramfs } from '../boot/initramfs.js'
import type { Progress } from './apt.js'
import type { KernelAsset } from './assets.js'
import { bootDisk } from './boot-disk.js'
import { makeExt4, needProgram } from './root-disk.js'
import { MARK, QUICK_CMDLINE } from './tower-image.js'

/** Bytes; sparse. */
const SIZE = 96 << 20
const APPLETS = ['sh', 'cat', 'echo', 'grep', 'head', 'mount', 'poweroff', 'uname']

/** Process 1 of L2, which comes up, tells what it is, and powers off. */
const INIT = `#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
flag=$(grep -o -w -m1 -e svm -e vmx /proc/cpuinfo | head -n 1)
hypervisor=$(grep -q -w -m1 hypervisor /proc/cpuinfo && echo true || echo false)
echo '${MARK}'"{\\"level\\":2,\\"kernel\\":\\"$(uname -r)\\",\\"flag\\":\\"$flag\\",\\"hypervisor\\":$hypervisor}"
poweroff -f
`

export function guestDiskRecipe({ release }: KernelAsset): string {
  return JSON.stringify([2, SIZE, APPLETS, INIT, QUICK_CMDLINE, release])
}

/**
 * Makes the disk of an L1's guest in `file`: an ext4 file system that holds `l2.img`, a disk that a PC's BIOS boots, whose init tells what it sees and
 * powers off, and `vmlinuz` and `initrd`, the same for a hypervisor that boots kernels (Xen's `xl`).
 *
 * @throws ConfigError where e2fsprogs is missing and cannot be installed, or the kernel could not be unpacked.
 */
export async function makeGuestDisk(
  file: string,
  kernel: KernelAsset,
  busybox: string,
  progress: Progress,
): Promise<void> {
  const mke2fs = await needProgram('mke2fs', 'e2fsprogs', progress)
  const initrd = await buildInitramfs([
    { type: 'file', path: '/bin/busybox', source: busybox, mode: 0o755 },
    ...APPLETS.map(name => ({ type: 'symlink' as const, path: `/bin/${name}`, target: 'busybox' })),
    { type: 'directory', path: '/proc' },
    { type: 'directory', path: '/dev' },
    { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
    { type: 'file', path: '/init', data: INIT, mode: 0o755 },
  ])
  const tree = `${file}.tree`
  await mkdir(tree)
  const disk = bootDisk({ kernel: await readFile(kernel.image), initrd, commandLine: QUICK_CMDLINE })
  await writeFile(join(tree, 'l2.img'), disk)
  await writeFile(join(tree, 'vmlinuz'), await readFile(kernel.vmlinuz))
  await writeFile(join(tree, 'initrd'), initrd)
  await makeExt4(file, tree, mke2fs, progress, SIZE)
  await rm(tree, { recursive: true })
}
