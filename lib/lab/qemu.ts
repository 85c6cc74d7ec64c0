import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import type { Duplex, Readable } from 'node:stream'
import type { EmulatedMachine, Emulator, EmulatorEnd, RunningEmulator, Share } from './emulator.js'

/** What runs QEMU so that the kernel kills it when we die, even by SIGKILL (util-linux: setpriv(1), --pdeathsig). */
const SETPRIV = '/usr/bin/setpriv'

// File descriptors in QEMU. Sockets and the initramfs are inherited, so nothing is left on disk whatever happens.
const FD_CONSOLE = 3
const FD_INITRD = 8
const PORTS = { control: 4, stdin: 5, stdout: 6, stderr: 7 } as const

/**
 * QEMU's own interpreter of x86 (TCG), whose AMD CPU has SVM with nested paging. It has no NRIPS, no decode assists
 * and no AVIC, which KVM does without.
 *
 * @param program the path of `qemu-system-x86_64`, 7.2 or newer.
 */
export function qemuEmulator(program: string): Emulator {
  return {
    name: 'QEMU',
    vendor: 'svm',
    guestModules: ['virtio_pci', '9p', '9pnet_virtio', 'virtio_console'],
    kvmModule: 'kvm_amd',
    kvmParameters: ['nested=1'],
    commandLine: ['console=ttyS0'],
    shareType: '9p',
    shareOptions,
    start: machine => start(program, machine),
  }
}

/**
 * Linux: Documentation/filesystems/9p.rst. What one message can carry is bounded by the 128 descriptors of a virtqueue
 * (net/9p/trans_virtio.c), a little below 512 KiB.
 */
function shareOptions(share: Share): string {
  const options = ['trans=virtio', 'version=9p2000.L', 'msize=512000', 'cache=loose']
  return [share.writable ? 'rw' : 'ro', ...options].join(',')
}

function start(program: string, machine: EmulatedMachine): RunningEmulator {
  const [command, ...args] = [...wrapper(), program, ...qemuArguments(machine)]
  const child = spawn(command!, args, {
    // Its own session: a Ctrl-C on our terminal is for the command in the guest, not for QEMU.
    detached: true,
    stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe', 'pipe', 'pipe', 'pipe', machine.initrd],
  })
  let message = ''
  child.stderr?.setEncoding('utf8').on('data', text => {
    message = (message + text).slice(-4096)
  })
  const channel = (fd: number): Duplex => {
    const socket = child.stdio[fd] as Duplex
    // A guest that ends first breaks the pipe; how it ended is told by `ended`.
    socket.on('error', () => {})
    return socket
  }
  const ended = new Promise<EmulatorEnd>(resolve => {
    child.once('error', error => resolve({ exitCode: null, signal: null, message: error.message }))
    child.once('close', (exitCode, signal) => resolve({ exitCode, signal, message: message.trim() }))
  })
  return {
    console: channel(FD_CONSOLE) as Readable,
    control: channel(PORTS.control),
    stdin: channel(PORTS.stdin),
    stdout: channel(PORTS.stdout),
    stderr: channel(PORTS.stderr),
    ended,
    kill: () => void child.kill('SIGKILL'),
  }
}

function wrapper(): string[] {
  return existsSync(SETPRIV) ? [SETPRIV, '--pdeathsig', 'KILL', '--'] : []
}

/** QEMU's command line (QEMU: docs/system/invocation), without the program. */
export function qemuArguments(machine: EmulatedMachine): string[] {
  const args = ['-no-user-config', '-nodefaults', '-display', 'none', '-no-reboot', '-machine', 'pc,usb=off']
  args.push('-accel', 'tcg,thread=multi')
  // Five-level paging would make every emulated page walk, and the nested page tables, a level deeper.
  args.push('-cpu', 'max,+svm,la57=off')
  args.push('-m', `${Math.ceil(machine.memoryBytes / 1024)}k`, '-smp', String(machine.cpus))
  args.push('-kernel', machine.kernel, '-initrd', `/proc/self/fd/${FD_INITRD}`, '-append', machine.commandLine)
  args.push('-chardev', `socket,id=console,fd=${FD_CONSOLE}`, '-serial', 'chardev:console')
  args.push('-device', 'virtio-serial-pci')
  for (const [name, fd] of Object.entries(PORTS)) {
    args.push('-chardev', `socket,id=${name},fd=${fd}`, '-device', `virtserialport,chardev=${name},name=lab.${name}`)
  }
  for (const { tag, path, writable } of machine.shares) {
    // security_model=none: the guest's root acts as this user, and a chown that this user may not do is no error.
    // A comma in the path would end the option: QEMU wants it doubled.
    const access = writable ? '' : ',readonly=on'
    const escaped = path.replaceAll(',', ',,')
    args.push('-fsdev', `local,id=${tag},path=${escaped},security_model=none,multidevs=remap${access}`)
    args.push('-device', `virtio-9p-pci,fsdev=${tag},mount_tag=${tag}`)
  }
  return args
}
