/**
 * An L1 with its running L2, both stock Linux, saved and brought back: L2 counts on its console, L1 is saved to a directory and ended, and
 * another machine goes on from there. On a host that does not nest: `nested-kvm lab -- npm run example nested-snapshot`.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { decodeNestedState, ensureAssets, Machine, QUICK_CMDLINE, readSnapshot, writeTowerImage } from 'nested-kvm'

const BOOT = { timeout: 600_000 }
const directory = await mkdtemp(join(tmpdir(), 'nested-snapshot-'))
try {
  // L1 carries Node and this package; it runs `nested-kvm run` with an L2 that counts.
  const assets = await ensureAssets(['guestKernel', 'busybox'], { onProgress: console.error })
  const initrd = join(directory, 'l1.cpio')
  await writeTowerImage(initrd, assets)

  const l1 = await Machine.create({
    kernel: assets.guestKernel.vmlinuz,
    initrd,
    cmdline: QUICK_CMDLINE,
    memory: '1G',
    reboot: false,
  })
  await l1.start()
  const before = await l1.console.expect(/"count":(\d+)}/, BOOT)
  console.log(`L2 counts: ${before.groups[0]}`)

  const path = join(directory, 'snapshot')
  await l1.pause()
  const { bytes } = await l1.snapshot(path)
  await l1.stop()
  const saved = await readSnapshot(path)
  const nested = decodeNestedState(saved.state.vcpus[0]!.state.KVM_GET_NESTED_STATE!)
  console.log(
    `saved ${Math.round(bytes / 2 ** 20)} MiB: ${nested.format} state, ${nested.guestMode ? 'in L2' : 'in L1'}`,
  )

  const again = await Machine.restore(path)
  await again.resume()
  const after = await again.console.expect(/"count":(\d+)}/, BOOT)
  console.log(`L2 counts on: ${after.groups[0]}`)
  await again.console.expect('"count":24}', BOOT)
  console.log(`the machine ended by ${(await again.wait()).reason}`)
} finally {
  await rm(directory, { recursive: true, force: true })
}
