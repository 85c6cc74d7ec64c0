import { buildInitramfs } from '../../lib/boot/initramfs.js'
import { ensureAssets } from '../../lib/lab/assets.js'
import { Machine } from '../../lib/machine/machine.js'

const APPLETS = ['sh', 'cat', 'echo', 'grep', 'mount', 'nproc', 'poweroff', 'reboot', 'sleep', 'uname', 'usleep']

/** An L1 with the stock kernel, whose init mounts what is usual and runs `script`. */
export async function linuxMachine(
  script: string,
  options: { cpu?: string; vcpus?: number; memory?: string; cmdline?: string } = {},
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
  const cmdline = 'console=ttyS0 panic=-1 quiet mitigations=off audit=0 cryptomgr.notests'
  return Machine.create({ kernel: guestKernel.vmlinuz, initrd, cmdline, memory: '256M', ...options })
}

/** A guest that takes longer to boot than this hangs. */
export const BOOT = { timeout: 180_000 }
