/**
 * A Linux guest of ours or of QEMU's, with the same devices, for the benchmarks that compare the two.
 * @import { MachineOptions } from 'nested-kvm'
 */
import { spawn } from 'node:child_process'
import { ensureAssets, Machine } from 'nested-kvm'

const TIMEOUT_MS = 100_000

/** A kernel that says little, as each character on a console inside a guest is two exits, and that tests nothing at boot. */
export const CMDLINE = 'console=ttyS0 panic=-1 quiet mitigations=off audit=0 cryptomgr.notests'

/**
 * @typedef {object} GuestOptions
 * @property {string} kernel
 * @property {string} initrd
 * @property {string} cmdline
 * @property {string} memory
 * @property {{ path: string, readonly?: boolean }[]} [disks]
 * @property {string} [tap] name of an interface
 */

/**
 * Runs a guest until what it prints matches, and resolves with the groups of that.
 * @param {'ours' | 'pc' | 'microvm'} machine
 * @param {GuestOptions} options
 * @param {RegExp} pattern
 * @returns {Promise<readonly (string | undefined)[]>}
 */
export async function runGuest(machine, options, pattern) {
  return machine === 'ours' ? await runOurs(options, pattern) : await runQemu(machine, options, pattern)
}

/**
 * @param {GuestOptions} options
 * @param {RegExp} pattern
 */
async function runOurs({ tap, ...options }, pattern) {
  /** @type {MachineOptions} */
  const config = { ...options, reboot: false, rng: false, ...(tap && { nets: [{ type: 'tap', ifname: tap }] }) }
  const machine = await Machine.create(config)
  try {
    await machine.start()
    return (await machine.console.expect(pattern, { timeout: TIMEOUT_MS })).groups
  } finally {
    await machine.stop()
  }
}

/**
 * @param {'pc' | 'microvm'} machine
 * @param {GuestOptions} options
 * @param {RegExp} pattern
 * @returns {Promise<readonly (string | undefined)[]>}
 */
async function runQemu(machine, { kernel, initrd, cmdline, memory, disks = [], tap }, pattern) {
  const { program } = (await ensureAssets(['qemu'])).qemu
  const bus = machine === 'pc' ? 'pci' : 'device'
  const args = ['-enable-kvm', '-cpu', 'host', '-m', memory, '-nodefaults', '-no-user-config', '-display', 'none']
  // microvm's fastest: what its documentation names, and nothing that the kernel would wait for.
  args.push('-M', machine === 'pc' ? 'pc' : 'microvm,x-option-roms=off,isa-serial=on,rtc=off')
  args.push('-serial', 'stdio', '-no-reboot', '-kernel', kernel, '-initrd', initrd, '-append', cmdline)
  for (const [i, { path, readonly = false }] of disks.entries()) {
    const flag = readonly ? 'on' : 'off'
    args.push('-drive', `file=${path},format=raw,cache=writeback,if=none,id=disk${i},readonly=${flag}`)
    args.push('-device', `virtio-blk-${bus},drive=disk${i}`)
  }
  if (tap) {
    args.push('-netdev', `tap,id=net,ifname=${tap},script=no,downscript=no,vhost=off`)
    args.push('-device', `virtio-net-${bus},netdev=net`)
  }
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  let text = ''
  let errors = ''
  try {
    return await new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`QEMU's guest did not say ${pattern}: ${text}`)), TIMEOUT_MS)
      child.stdout.setEncoding('utf8').on('data', data => {
        text += data
        const match = pattern.exec(text)
        if (!match) return
        clearTimeout(timer)
        resolve(match.slice(1))
      })
      child.stderr.setEncoding('utf8').on('data', data => {
        errors += data
      })
      child.on('error', reject)
      child.on('close', () => reject(new Error(`QEMU ended: ${errors}${text}`)))
    })
  } finally {
    child.kill('SIGKILL')
  }
}
