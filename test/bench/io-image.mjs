/**
 * io-image.mjs DIRECTORY: what both sides of the benchmarks of disks and networks boot. Writes `initrd`, whose init runs what the kernel's
 * command line says as `run="..."`, and `disk`, in memory where the directory is.
 */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { ensureAssets, ModuleTree, writeInitramfs } from 'nested-kvm'

const MODULES = ['virtio_mmio', 'virtio_pci', 'virtio_blk', 'virtio_net', 'ext4']
const DISK_SIZE = 256 << 20
/** Its root disk has fio; /dev/vda. */
const INIT = `#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
for module in $(busybox cat /modules/order); do busybox insmod /modules/$module.ko; done
eval "$run"
busybox poweroff -f
`

const [directory] = process.argv.slice(2)
const { guestKernel, busybox } = await ensureAssets(['guestKernel', 'busybox'])
const modules = await (await ModuleTree.open(guestKernel.modulesDir)).load(...MODULES)
const stream = join(directory, 'stream')
await promisify(execFile)('cc', ['-O2', '-static', '-o', stream, join(import.meta.dirname, 'stream.c')])
await writeInitramfs(
  [
    { type: 'file', path: '/bin/busybox', source: busybox.program, mode: 0o755 },
    { type: 'file', path: '/bin/stream', source: stream, mode: 0o755 },
    ...['/proc', '/sys', '/dev', '/root'].map(path => ({ type: /** @type {const} */ ('directory'), path })),
    { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
    { type: 'file', path: '/init', data: INIT, mode: 0o755 },
    { type: 'file', path: '/modules/order', data: modules.map(({ name }) => name).join('\n') },
    ...modules.map(({ name, data }) => ({ type: /** @type {const} */ ('file'), path: `/modules/${name}.ko`, data })),
  ],
  join(directory, 'initrd'),
)
const disk = await open(join(directory, 'disk'), 'w')
const block = randomBytes(1 << 20)
for (let at = 0; at < DISK_SIZE; at += block.length) await disk.write(block, 0, block.length, at)
await disk.close()
