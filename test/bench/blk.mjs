/**
 * blk.mjs DIRECTORY ours|pc read|randread|write|randwrite SIZE DEPTH: a disk in the host's memory read or written by fio in L1, DEPTH requests at a time of SIZE KiB.
 */
import { join } from 'node:path'
import { ensureAssets } from 'nested-kvm'
import { CMDLINE, runGuest } from './linux-guest.mjs'

const [directory, machine, kind, size, depth] = process.argv.slice(2)
const { guestKernel, rootDisk } = await ensureAssets(['guestKernel', 'rootDisk'])
const fio = [
  `fio --name=bench --filename=/dev/vdb --direct=1 --ioengine=libaio --iodepth=${depth} --rw=${kind} --bs=${size}k`,
  '--ramp_time=1 --runtime=4 --time_based --thread --minimal --terse-version=3',
].join(' ')
const run = `busybox mount -t ext4 -o ro,noload /dev/vda /root; busybox mount -t devtmpfs devtmpfs /root/dev; busybox mount -t proc proc /root/proc; busybox chroot /root ${fio}`
const options = {
  kernel: guestKernel.vmlinuz,
  initrd: join(directory, 'initrd'),
  cmdline: `${CMDLINE} run="${run}"`,
  memory: '512M',
  disks: [{ path: rootDisk.image, readonly: true }, { path: join(directory, 'disk') }],
}
const [line = ''] = await runGuest(/** @type {'ours' | 'pc'} */ (machine), options, /(3;fio-.*)\r?\n/)
// Of the terse format's fields: operations a second, of reads and of writes.
const fields = line.split(';')
const rate = Number(fields[kind.endsWith('read') ? 7 : 48])
console.log(JSON.stringify({ value: 1e6 / rate, check: 1 }))
