/**
 * A stock Linux as L1, scripted: boots Debian's cloud kernel with busybox, talks to its shell, and asks KVM what the vCPU's
 * nested state is. On a host that does not nest: `nested-kvm lab -- npm run example linux`.
 */
import { buildInitramfs, decodeNestedState, ensureAssets, Machine } from 'nested-kvm'

const { guestKernel, busybox } = await ensureAssets(['guestKernel', 'busybox'], { onProgress: console.error })
const init = `#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
exec setsid cttyhack sh -i
`
const applets = ['sh', 'cat', 'cttyhack', 'grep', 'mount', 'poweroff', 'setsid', 'uname']
const initrd = await buildInitramfs([
  { type: 'file', path: '/bin/busybox', source: busybox.program, mode: 0o755 },
  ...applets.map(name => ({ type: 'symlink' as const, path: `/bin/${name}`, target: 'busybox' })),
  { type: 'directory', path: '/proc' },
  { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
  { type: 'file', path: '/init', data: init, mode: 0o755 },
])

await using l1 = await Machine.create({
  kernel: guestKernel.vmlinuz,
  initrd,
  cmdline: 'console=ttyS0 quiet',
  reboot: false,
})
l1.console.pipe(process.stdout, { end: false })
await l1.start()
await l1.console.expect('# ', { timeout: 120_000 })
l1.console.write('uname -r; grep -o -w -m1 -e svm -e vmx /proc/cpuinfo | cat\n')
await l1.console.expect(/\n(svm|vmx)\r?\n/, { timeout: 120_000 })
await l1.pause()
const nested = decodeNestedState(l1.vcpus[0]!.getNestedState())
await l1.resume()
l1.console.write('poweroff -f\n')
const end = await l1.wait()
console.log(`\n${nested.format} state, ${nested.guestMode ? 'in L2' : 'in L1'}; the machine ended by ${end.reason}`)
