/** net.mjs DIRECTORY ours|pc send|receive MIB: a TCP stream that L1 sends to L0, or receives from it, over a tap. */
import { execFile, execFileSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { ensureAssets, ModuleTree } from 'nested-kvm'
import { CMDLINE, runGuest } from './linux-guest.mjs'

const [directory, machine, direction, mebibytes] = process.argv.slice(2)
const [HOST, GUEST, PORT, TAP] = ['10.199.8.1', '10.199.8.2', '5001', 'nkbench0']
const { guestKernel, labKernel, busybox } = await ensureAssets(['guestKernel', 'labKernel', 'busybox'])

/** @param {string} words */
const ip = words => execFileSync('ip', words.split(' '))

// In the emulated host nothing loads modules by itself.
if (!existsSync('/sys/module/tun')) {
  for (const { name, data } of await (await ModuleTree.open(labKernel.modulesDir)).load('tun')) {
    writeFileSync(join(directory, `${name}.ko`), data)
    execFileSync(busybox.program, ['insmod', join(directory, `${name}.ko`)])
  }
}
ip(`tuntap add dev ${TAP} mode tap`)
try {
  ip(`addr add ${HOST}/24 dev ${TAP}`)
  ip(`link set ${TAP} up`)
  const there = direction === 'send' ? 'receive' : 'send'
  const peer = promisify(execFile)(join(directory, 'stream'), ['listen', HOST, PORT, there, mebibytes])
  const run = `busybox ifconfig eth0 ${GUEST} up; stream connect ${HOST} ${PORT} ${direction} ${mebibytes}; echo @status $?`
  const options = {
    kernel: guestKernel.vmlinuz,
    initrd: join(directory, 'initrd'),
    cmdline: `${CMDLINE} run="${run}"`,
    memory: '256M',
    tap: TAP,
  }
  const [status] = await runGuest(/** @type {'ours' | 'pc'} */ (machine), options, /@status (\d+)\r?\n/)
  if (status !== '0') throw new Error(`the guest's end of the stream failed: ${status}`)
  const seconds = Number((await peer).stdout)
  console.log(JSON.stringify({ value: (seconds / Number(mebibytes)) * 1024, check: 1 }))
} finally {
  ip(`link del ${TAP}`)
}
