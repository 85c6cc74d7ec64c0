import { expect, it, onTestFinished } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
import { Machine } from '../../lib/machine/machine.js'
import { scriptDisk } from './script-disk.js'

const LONG = { timeout: 900_000 }
const STEP = { timeout: 400_000 }

/**
 * What dom0 does: starts Xen's daemons, tells what Xen can do, and starts a guest, PVH with nested paging, from /dev/vdb.
 *
 * The guest reads the TSC itself (`native`). Where Xen is to emulate that, the guest stops at its first RDTSCP: the emulated CPU gives that
 * the exit code of RDTSC (6Eh, where APM vol. 2, appendix C has 87h), and has no NRIPS that tells the next instruction, so that Xen decodes
 * what is there, finds an instruction that is not RDTSC, and tries again for ever ("SVM Insn len emulation failed ... 0f 01 f9").
 */
const DOM0 = `
for module in xen_evtchn xen_gntdev xen_gntalloc xen_privcmd xenfs; do modprobe $module; done
mount -t xenfs xenfs /proc/xen
mkdir -p /run/lock /run/xen /run/xenstored /var/lib/xen /var/log/xen /mnt
export PATH=$PATH:/usr/lib/xen-4.17/bin
oxenstored --pid-file /run/xenstored.pid
until xenstore-exists /; do sleep 0.2; done
xen-init-dom0
xenconsoled --pid-file=/run/xenconsoled.pid
xl info
mount -o ro /dev/vdb /mnt
cat > /tmp/guest.cfg << END
name = "l2"
type = "pvh"
kernel = "/mnt/vmlinuz"
ramdisk = "/mnt/initrd"
extra = "console=hvc0 quiet panic=-1 mitigations=off cryptomgr.notests"
memory = 192
vcpus = 1
hap = 1
tsc_mode = "native"
END
xl create /tmp/guest.cfg
xl console l2
`

/**
 * Xen runs without SMAP and SMEP: with them, on the emulated CPU, the first page fault that it hands to dom0 faults itself, where Xen writes to
 * dom0's stack (`create_bounce_frame`).
 */
it('Xen as L1 has hardware virtualization, and a PVH guest of it reaches user space', LONG, async () => {
  const { xen, rootDisk, guestDisk, labKernel, guestKernel } = await ensureAssets([
    'xen',
    'rootDisk',
    'guestDisk',
    'labKernel',
    'guestKernel',
  ])
  const dom0 = 'console=hvc0 quiet panic=-1 mitigations=off audit=0 cryptomgr.notests run="cat /dev/vdc | bash"'
  const machine = await Machine.create({
    kernel: xen.hypervisor,
    cmdline: 'console=com1 com1=115200,8n1 dom0_mem=512M spec-ctrl=no xpti=no smap=0 smep=0',
    modules: [{ file: labKernel.vmlinuz, cmdline: dom0 }, { file: rootDisk.initrd.labKernel }],
    disks: [
      { path: rootDisk.image, snapshot: true },
      { path: guestDisk.image, snapshot: true },
      await scriptDisk(DOM0),
    ],
    memory: '1G',
    reboot: false,
  })
  onTestFinished(() => machine.stop())
  await machine.start()
  await machine.console.expect('HVM: Hardware Assisted Paging (HAP) detected', STEP)
  await machine.console.expect(/virt_caps +: .*\bhvm\b.*\bhap\b/, STEP)
  const { groups } = await machine.console.expect(/@nested-kvm (\{"level":2.*\})/, STEP)
  expect(JSON.parse(groups[0]!)).toMatchObject({ level: 2, kernel: guestKernel.release, hypervisor: true })
  // dom0 switches off, and Xen with it.
  expect(await machine.wait()).toEqual({ reason: 'shutdown' })
})
