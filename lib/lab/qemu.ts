import { spawn } from 'node:child_process'
import type { Duplex, Readable } from 'node:stream'
import { hostTscKhz } from '../host/tsc.js'
import {
  type Clock,
  type EmulatedMachine,
  type Emulator,
  endingWithUs,
  endOf,
  type RunningEmulator,
  type Share,
  unnamedFile,
} from './emulator.js'

// File descriptors in QEMU. Sockets and the initramfs are inherited, so nothing is left on disk whatever happens.
const FD_CONSOLE = 3
const PORTS = { control: 4, signals: 5, stdin: 6, stdout: 7, stderr: 8 } as const
const FD_INITRD = 9

/**
 * Milliseconds between two knocks at the guest. A QEMU that is not mended changes `interrupt_request` without a lock in VMRUN, which now and then takes
 * back an interrupt that a device has just raised: it waits in the local APIC then until the next one comes. Where that was the timer of a host that
 * halts, nothing would ever come.
 */
const KNOCK = 500

/** The TSC's frequency where an instruction takes a nanosecond of the emulated host's clock (QEMU: docs/devel/tcg-icount). */
const INSTRUCTIONS_TSC_KHZ = 1_000_000

export interface QemuProgram {
  /** The path of `qemu-system-x86_64`. */
  readonly program: string
  /** Where its firmware is, if not in its own places. */
  readonly firmware?: string
}

/**
 * QEMU's own interpreter of x86 (TCG), whose AMD CPU has SVM with nested paging. It has no NRIPS, no decode assists
 * and no AVIC, which KVM does without.
 *
 * @param qemu 7.2 or newer.
 * @param clock by `instructions`, a second of the emulated host is 10^9 instructions of it.
 */
export function qemuEmulator(qemu: QemuProgram, clock: Clock = 'host'): Emulator {
  return {
    name: 'QEMU',
    vendor: 'svm',
    guestModules: ['virtio_pci', '9p', '9pnet_virtio', 'virtio_console'],
    kvmModule: 'kvm_amd',
    kvmParameters: ['nested=1'],
    commandLine: ['console=ttyS0', ...tscWords(clock)],
    guestSetup: '',
    mountWords: share => `-t 9p -o ${shareOptions(share)} ${share.tag}`,
    guestPort: PORT_FUNCTION,
    start: machine => start(qemu, machine, clock),
  }
}

/**
 * Under TCG the TSC is this host's own, unless instructions are counted. The guest would measure its frequency against an emulated timer, and be wrong by a
 * factor of ten where this host is busy just then; all its clocks follow from that.
 */
function tscWords(clock: Clock): string[] {
  const khz = clock === 'instructions' ? INSTRUCTIONS_TSC_KHZ : hostTscKhz()
  return khz === undefined ? [] : [`tsc_early_khz=${khz}`]
}

/**
 * Linux: Documentation/filesystems/9p.rst. What one message can carry is bounded by the 128 descriptors of a virtqueue
 * (net/9p/trans_virtio.c), a little below 512 KiB.
 */
function shareOptions(share: Share): string {
  const options = ['trans=virtio', 'version=9p2000.L', 'msize=512000', 'cache=loose']
  return [share.writable ? 'rw' : 'ro', ...options].join(',')
}

/** Virtio-serial ports tell their names in sysfs; they may come a little later than their driver. */
const PORT_FUNCTION = `port() {
  tries=0
  while :; do
    for entry in /sys/class/virtio-ports/*; do
      [ -e $entry/name ] && read -r name < $entry/name && [ "$name" = lab.$1 ] && [ -c /dev/\${entry##*/} ] &&
        eval "$1=/dev/\${entry##*/}" && return
    done
    tries=$((tries + 1))
    [ $tries -gt 500 ] && fail "channel $1 is missing"
    usleep 10000
  done
}`

async function start(qemu: QemuProgram, machine: EmulatedMachine, clock: Clock): Promise<RunningEmulator> {
  const initrd = await unnamedFile(machine.initrd)
  const child = spawn(...endingWithUs(qemu.program, qemuArguments(machine, clock, qemu.firmware)), {
    // Its own session: a Ctrl-C on our terminal is for the command in the guest, not for QEMU.
    detached: true,
    stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe', 'pipe', 'pipe', 'pipe', 'pipe', initrd.fd],
  })
  const ended = endOf(child)
  await initrd.close()
  const channel = (fd: number): Duplex => {
    const socket = child.stdio[fd] as Duplex
    // A guest that ends first breaks the pipe; how it ended is told by `ended`.
    socket.on('error', () => {})
    return socket
  }
  const signals = channel(PORTS.signals)
  const knocking = setInterval(() => signals.write('\n'), KNOCK)
  void ended.finally(() => clearInterval(knocking))
  return {
    console: channel(FD_CONSOLE) as Readable,
    control: channel(PORTS.control),
    signals,
    stdin: channel(PORTS.stdin),
    stdout: channel(PORTS.stdout),
    stderr: channel(PORTS.stderr),
    ended,
    kill: () => void child.kill('SIGKILL'),
  }
}

/** QEMU's command line (QEMU: docs/system/invocation), without the program. */
export function qemuArguments(machine: EmulatedMachine, clock: Clock = 'host', firmware?: string): string[] {
  const args = ['-no-user-config', '-nodefaults', '-display', 'none', '-no-reboot', '-machine', 'pc,usb=off']
  if (firmware !== undefined) args.push('-L', firmware)
  // Instructions are counted for all processors together, which then take turns.
  if (clock === 'instructions') args.push('-accel', 'tcg,thread=single', '-icount', 'shift=0,sleep=on')
  else args.push('-accel', 'tcg,thread=multi')
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
