import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ensureAssets, writeInitramfs } from 'nested-kvm'
import { CMDLINE } from './linux-guest.mjs'

/**
 * A guest whose init writes `@init` as the first thing that it does, and then runs `command`: writes its `initrd` and its `options.json`, which
 * is also returned. `further` are options of its machine.
 * @param {string} directory
 * @param {string} command
 * @param {Partial<import('nested-kvm').MachineOptions>} [further]
 */
export async function writeInitImage(directory, command, further = {}) {
  const { guestKernel, busybox } = await ensureAssets(['guestKernel', 'busybox'])
  const initrd = join(directory, 'initrd')
  await writeInitramfs(
    [
      { type: 'file', path: '/bin/busybox', source: busybox.program, mode: 0o755 },
      { type: 'directory', path: '/dev' },
      { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
      { type: 'file', path: '/init', data: `#!/bin/busybox sh\necho @init\n${command}\n`, mode: 0o755 },
    ],
    initrd,
  )
  const options = { kernel: guestKernel.vmlinuz, initrd, cmdline: CMDLINE, memory: '256M', ...further }
  await writeFile(join(directory, 'options.json'), JSON.stringify(options))
  return options
}
