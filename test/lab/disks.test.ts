import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
import { MARK, QUICK_CMDLINE } from '../../lib/lab/tower-image.js'
import { Machine } from '../../lib/machine/machine.js'
import { BRIDGE, GUEST, HOST, makeBridge } from './bridge.js'

/** What people give an L1, and the least where this host has not so much memory itself, as the emulated one with vmx. */
const [cpus, memory] = totalmem() > 8 * 2 ** 30 ? [4, '8G'] : [1, '768M']

/** The vCPUs take turns on one emulated processor. */
const LONG = { timeout: 1_200_000 }
const STEP = { timeout: 900_000 }

/** The usual recipe, in the shell of an L1. */
const RECIPE = [
  'modprobe virtio_net',
  'sleep 1',
  `ip addr add ${GUEST}/24 dev eth0`,
  'ip link set eth0 up',
  `ping -c 3 -i 0.2 ${HOST}`,
  'mount /dev/vdb /mnt && touch /mnt/written /root/written',
  'exec qemu-system-x86_64 -enable-kvm -cpu host -m 256 -nodefaults -display none -no-reboot -serial stdio ' +
    '-drive file=/mnt/l2.img,format=raw,if=virtio,snapshot=on',
].join('; ')

it(
  `Debian's QEMU in an L1 (CPUs: ${cpus}, memory: ${memory}) with a card on a bridge and two disks starts L2 from the second, and leaves both as they were`,
  LONG,
  async () => {
    const { guestKernel, rootDisk, guestDisk } = await ensureAssets(['guestKernel', 'rootDisk', 'guestDisk'])
    await makeBridge()
    // A copy that could be written to; in the lab, the cache cannot.
    const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-disks-'))
    onTestFinished(() => rm(directory, { recursive: true, force: true }))
    const second = join(directory, 'guest.img')
    const content = await readFile(guestDisk.image)
    await writeFile(second, content)
    const { size, mtimeMs } = await stat(rootDisk.image)
    await using l1 = await Machine.create({
      kernel: guestKernel.vmlinuz,
      initrd: rootDisk.initrd.guestKernel,
      cmdline: `${QUICK_CMDLINE} net.ifnames=0 run="${RECIPE}"`,
      vcpus: cpus,
      memory,
      disks: [rootDisk.image, second].map(path => ({ path, snapshot: true })),
      nets: [{ type: 'tap', bridge: BRIDGE }],
    })
    await l1.start()
    const own = await report(l1)
    expect(own).toEqual({ kernel: guestKernel.release, flag: expect.stringMatching(/^(svm|vmx)$/), cpus })
    await l1.console.expect(/3 packets transmitted, 3 received/, STEP)
    expect(await report(l1)).toEqual({ level: 2, kernel: guestKernel.release, flag: own.flag, hypervisor: true })
    expect(await report(l1)).toEqual({ status: 0 })
    expect(await l1.wait()).toEqual({ reason: 'shutdown' })
    expect((await readFile(second)).equals(content)).toBe(true)
    expect(await stat(rootDisk.image)).toMatchObject({ size, mtimeMs })
  },
)

/** The next of the lines that a level reports with. */
async function report(machine: Machine): Promise<Record<string, unknown>> {
  await machine.console.expect(MARK, STEP)
  return JSON.parse((await machine.console.expect('\n', STEP)).before)
}
