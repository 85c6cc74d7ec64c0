import { buildInitramfs, type InitramfsEntry } from '../../lib/boot/initramfs.js'
import type { MachineOptions } from '../../lib/config/machine-config.js'
import { ensureAssets } from '../../lib/lab/assets.js'
import { ModuleTree } from '../../lib/lab/modules.js'
import { QUICK_CMDLINE } from '../../lib/lab/tower-image.js'
import { Machine } from '../../lib/machine/machine.js'

const APPLETS = [
  'sh',
  'cat',
  'dd',
  'dmesg',
  'echo',
  'grep',
  'head',
  'insmod',
  'md5sum',
  'mount',
  'nproc',
  'poweroff',
  'reboot',
  'sleep',
  'stty',
  'uname',
  'usleep',
  'wc',
]

interface ImageOptions {
  /** Loaded before the script runs, with what they need. */
  modules?: readonly string[]
  /** In its root beside what is usual. */
  files?: readonly InitramfsEntry[]
}

/** The image of an L1 with the stock kernel, whose init mounts what is usual, loads modules and runs `script`. */
export async function linuxInitrd(script: string, { modules: names = [], files = [] }: ImageOptions): Promise<Buffer> {
  const { guestKernel, busybox } = await ensureAssets(['guestKernel', 'busybox'])
  const modules = names.length > 0 ? await (await ModuleTree.open(guestKernel.modulesDir)).load(...names) : []
  const init = `#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
${modules.map(({ name }) => `insmod /modules/${name}.ko`).join('\n')}
${script}
`
  return await buildInitramfs([
    { type: 'file', path: '/bin/busybox', source: busybox.program, mode: 0o755 },
    ...APPLETS.map(name => ({ type: 'symlink' as const, path: `/bin/${name}`, target: 'busybox' })),
    ...['/proc', '/sys', '/dev'].map(path => ({ type: 'directory' as const, path })),
    { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
    { type: 'file', path: '/init', data: init, mode: 0o755 },
    ...modules.map(({ name, data }) => ({ type: 'file' as const, path: `/modules/${name}.ko`, data })),
    ...files,
  ])
}

interface LinuxOptions extends ImageOptions, Partial<Omit<MachineOptions, 'kernel' | 'initrd' | 'modules'>> {
  image?: 'vmlinuz' | 'image'
}

/** An L1 with that image and the stock kernel, as a bzImage (`vmlinuz`) or as the ELF file in it (`image`). */
export async function linuxMachine(script: string, options: LinuxOptions = {}): Promise<Machine> {
  const { image = 'vmlinuz', modules = [], files = [], ...rest } = options
  const { guestKernel } = await ensureAssets(['guestKernel'])
  const initrd = await linuxInitrd(script, { modules, files })
  // A guest that panics ends, and is not tried again.
  const base = { kernel: guestKernel[image], initrd, cmdline: QUICK_CMDLINE, memory: '256M', reboot: false }
  return Machine.create({ ...base, ...rest })
}

/** A guest that takes longer to boot than this hangs. */
export const BOOT = { timeout: 180_000 }
