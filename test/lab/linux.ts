import { buildInitramfs } from '../../lib/boot/initramfs.js'
import type { MachineOptions } from '../../lib/config/machine-config.js'
import { ensureAssets } from '../../lib/lab/assets.js'
import { QUICK_CMDLINE } from '../../lib/lab/tower-image.js'
import { Machine } from '../../lib/machine/machine.js'

const APPLETS = ['sh', 'cat', 'echo', 'grep', 'mount', 'nproc', 'poweroff', 'reboot', 'sleep', 'uname', 'usleep']

/**
 * An L1 with the stock kernel, as a bzImage (`vmlinuz`) or as the ELF file in it (`image`), whose init mounts what is usual and
 * runs `script`.
 */
export async function linuxMachine(
  script: string,
  options: { image?: 'vmlinuz' | 'image' } & Partial<MachineOptions> = {},
): Promise<Machine> {
  const { guestKernel, busybox } = await ensureAssets(['guestKernel', 'busybox'])
  const init = `#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
${script}
`
  const initrd = await buildInitramfs([
    { type: 'file', path: '/bin/busybox', source: busybox.program, mode: 0o755 },
    ...APPLETS.map(name => ({ type: 'symlink' as const, path: `/bin/${name}`, target: 'busybox' })),
    ...['/proc', '/sys', '/dev'].map(path => ({ type: 'directory' as const, path })),
    { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
    { type: 'file', path: '/init', data: init, mode: 0o755 },
  ])
  // A guest that panics ends, and is not tried again.
  const { image = 'vmlinuz', ...rest } = options
  const base = { kernel: guestKernel[image], initrd, cmdline: QUICK_CMDLINE, memory: '256M', reboot: false }
  return Machine.create({ ...base, ...rest })
}

/** A guest that takes longer to boot than this hangs. */
export const BOOT = { timeout: 180_000 }
