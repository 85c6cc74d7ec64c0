import { readdirSync } from 'node:fs'
import { expect, it } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
import { MARK, QUICK_CMDLINE } from '../../lib/lab/tower-image.js'
import { Machine } from '../../lib/machine/machine.js'
import type { GuestPanic, GuestReset } from '../../lib/machine/machine-events.js'
import { decodeNestedState } from '../../lib/nested/state.js'
import { BOOT } from './linux.js'
import { scriptDisk } from './script-disk.js'

const LONG = { timeout: 900_000 }
const EXPIRED = 'Kernel panic - not syncing: Software Watchdog Timer expired'

/**
 * The last 16 bytes of L2's firmware, where a processor starts. mov dx, 0x3f8; mov al, 'L'; out dx, al; mov al, '2'; out dx, al;
 * mov al, '\n'; out dx, al; jmp to itself: L2 tells that it runs, and keeps its processor busy.
 */
const L2 = String.raw`\xba\xf8\x03\xb0L\xee\xb02\xee\xb0\n\xee\xeb\xfe\0\0`

/**
 * What L1 does: Debian's QEMU runs L2, until L1 is told something. `crash` has the kernel's own watchdog (softdog), which nobody feeds, panic
 * a second later, whatever runs then; `hang` has the kernel stay there; `off` ends all.
 */
const SCRIPT = `
modprobe pvpanic_mmio
modprobe softdog soft_panic=1 soft_margin=1
{ head -c 65520 /dev/zero; printf '${L2}'; } > /tmp/l2.bin
qemu-system-x86_64 -enable-kvm -cpu host -m 1 -nodefaults -display none -serial stdio -bios /tmp/l2.bin < /dev/null &
read -r order < /dev/console
case $order in
  hang) echo 0 > /proc/sys/kernel/panic ;;
  off) kill $!; exit ;;
esac
exec 3> /dev/watchdog
wait
`

it(
  'an L1 whose kernel panics while L2 runs tells so, and comes up in place, by its own reset or by ours',
  LONG,
  async () => {
    const { guestKernel, rootDisk } = await ensureAssets(['guestKernel', 'rootDisk'])
    await using l1 = await Machine.create({
      kernel: guestKernel.vmlinuz,
      initrd: rootDisk.initrd.guestKernel,
      cmdline: `${QUICK_CMDLINE} run="cat /dev/vdb | bash"`,
      vcpus: 2,
      memory: '512M',
      disks: [{ path: rootDisk.image, snapshot: true }, await scriptDisk(SCRIPT)],
    })
    const inL2 = () => l1.vcpus.some(vcpu => decodeNestedState(vcpu.getNestedState()).guestMode)
    const panics: GuestPanic[] = []
    const resets: (GuestReset & { inL2: boolean })[] = []
    l1.on('panic', panic => panics.push(panic))
    // At this moment the machine has been reset, and is paused.
    l1.on('reset', reset => resets.push({ ...reset, inL2: inL2() }))

    /** Waits until L1's init has told of itself, and L2 is seen to run. */
    const comesUp = async () => {
      await l1.console.expect(MARK, BOOT)
      const { flag, cpus } = JSON.parse((await l1.console.expect('\n', BOOT)).before)
      expect([flag, cpus]).toEqual([expect.stringMatching(/^(svm|vmx)$/), 2])
      await l1.console.expect(/L2\r?\n/, BOOT)
      for (let sample = 0; sample < 200; sample++) {
        await l1.pause()
        const seen = inL2()
        await l1.resume()
        if (seen) return
        await new Promise(resolve => setTimeout(resolve, 20))
      }
      throw new Error('no vCPU is seen to run L2')
    }

    await l1.start()
    await comesUp()
    const { vcpus, memory } = l1
    const descriptors = () => readdirSync('/proc/self/fd').length
    const open = descriptors()

    l1.console.write('crash\n')
    await comesUp()
    expect(panics).toEqual([{ event: 'panicked', tail: expect.stringContaining(EXPIRED) }])
    expect(resets).toEqual([{ tail: expect.stringContaining(EXPIRED), inL2: false }])

    l1.console.write('hang\n')
    await l1.console.expect(`end ${EXPIRED}`, BOOT)
    expect(panics).toHaveLength(2)
    expect([l1.state, resets.length]).toEqual(['running', 1])
    await l1.pause()
    await l1.reset()
    await l1.resume()
    await comesUp()
    expect(resets[1]).toEqual({ tail: expect.stringContaining(EXPIRED), inL2: false })

    expect([l1.vcpus, l1.memory, descriptors()]).toEqual([vcpus, memory, open])
    l1.console.write('off\n')
    expect(await l1.wait()).toEqual({ reason: 'shutdown' })
  },
)
