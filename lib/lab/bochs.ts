import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { type FileHandle, readFile } from 'node:fs/promises'
import { Readable } from 'node:stream'
import type { BochsAsset } from './assets.js'
import { bootDisk } from './boot-disk.js'
import {
  CHANNELS,
  type ChannelName,
  type EmulatedMachine,
  type Emulator,
  endingWithUs,
  endOf,
  type RunningEmulator,
  unnamedFile,
} from './emulator.js'
import { Channel, ChannelFile } from './nine-p/channel-file.js'
import { HostFile } from './nine-p/host-file.js'
import { MAX_MESSAGE, NinePServer } from './nine-p/server.js'

/**
 * Instructions per second of the guest's clock, which counts instructions: about as many as Bochs does, so that the guest's seconds are near
 * to ours, and rather longer. The guest's TSC counts at this rate, too; the CPU model's CPUID claims another one, so the kernel is told.
 */
const IPS = { fast: 200_000_000, slow: 50_000_000 }

function ipsOf(bochs: BochsAsset): number {
  return bochs.fast ? IPS.fast : IPS.slow
}

/** The user-mode network of Bochs: the guest, and this machine as the guest sees it. */
const GUEST_ADDRESS = '10.0.2.15'
const HOST_ADDRESS = '10.0.2.2'

// File descriptors in Bochs: files without a name, so nothing is left on disk whatever happens.
const FD_CONFIG = 3
const FD_DISK = 4
const FD_CONSOLE = 5
const FD_COMMANDS = 6

const CHANNELS_TAG = 'channels'

/** Bochs holds no more of the guest's memory than this; what is above goes to a file, should the guest ever use so much. */
const MOST_HOST_MEGABYTES = 2048

/** How often the file that the guest's serial port writes to is looked at, in milliseconds. */
const CONSOLE_INTERVAL = 100

/**
 * Bochs, whose Intel CPU has VMX with EPT. It has no shared directories and takes no file descriptors: its guest reaches this machine's
 * files and the channels as 9p trees, over TCP and the emulated network card.
 */
export function bochsEmulator(bochs: BochsAsset): Emulator {
  return {
    name: bochs.fast ? 'Bochs' : 'Bochs (the slow one: run nested-kvm lab setup)',
    vendor: 'vmx',
    guestModules: ['e1000', '9p', '9pnet_fd'],
    kvmModule: 'kvm_intel',
    // Bochs 3.0 wants the posted-interrupt descriptor page-aligned, where the SDM (vol. 3, 25.6.8) says 64 bytes.
    kvmParameters: ['nested=1', 'enable_apicv=0'],
    // Idle, the emulated clock would run ahead of this machine by seconds while the guest waits for a file. PCI hot-plug, which the BIOS's
    // ACPI tables have, finds registers in Bochs that read all ones: the network card would go.
    commandLine: [
      'console=ttyS0',
      '8250.nr_uarts=1',
      'acpiphp.disable=1',
      `tsc_early_khz=${ipsOf(bochs) / 1000}`,
      'idle=poll',
    ],
    guestSetup: `ifconfig eth0 ${GUEST_ADDRESS} netmask 255.255.255.0 up || fail "the network card is missing"`,
    mountWords: share => mountWords(share.tag, `${share.writable ? 'rw' : 'ro'},cache=loose`),
    guestPort: `mkdir ${CHANNELS_TAG}
mount ${mountWords(CHANNELS_TAG, 'cache=none')} ${CHANNELS_TAG} || fail "the channels cannot be mounted"
port() { eval "$1=$PWD/${CHANNELS_TAG}/$1"; }`,
    start: machine => start(bochs, machine),
  }
}

/** The port and the secret come by the kernel's command line, which gives what it does not know to init as variables. */
function mountWords(tag: string, options: string): string {
  const transport = `trans=tcp,port=$lab_port,aname=$lab_secret/${tag}`
  return `-t 9p -o "${transport},version=9p2000.L,msize=${MAX_MESSAGE},${options}" ${HOST_ADDRESS}`
}

async function start(bochs: BochsAsset, machine: EmulatedMachine): Promise<RunningEmulator> {
  const channels = Object.fromEntries(CHANNELS.map(name => [name, new Channel()])) as Record<ChannelName, Channel>
  const secret = randomBytes(16).toString('hex')
  const server = await NinePServer.listen(name => {
    if (!name.startsWith(`${secret}/`)) return undefined
    const tag = name.slice(secret.length + 1)
    if (tag === CHANNELS_TAG) return new ChannelFile(new Map(Object.entries(channels)))
    const share = machine.shares.find(share => share.tag === tag)
    return share && HostFile.attach(share.path, share.writable)
  })
  const files: FileHandle[] = []
  try {
    const commandLine = `${machine.commandLine} lab_port=${server.port} lab_secret=${secret}`
    const disk = bootDisk({ kernel: await readFile(machine.kernel), initrd: machine.initrd, commandLine })
    for (const content of [Buffer.from(bochsConfiguration(bochs, machine)), disk, Buffer.alloc(0)]) {
      files.push(await unnamedFile(content))
    }
    const args = ['-q', '-f', `/proc/self/fd/${FD_CONFIG}`]
    // The debugger that it is, is to go on at once, and never comes to the end of its input.
    if (!bochs.fast) {
      files.push(await unnamedFile(Buffer.from('c\n')))
      args.push('-rc', `/proc/self/fd/${FD_COMMANDS}`)
    }
    const child = spawn(...endingWithUs(bochs.program, args), {
      // Its own session: a Ctrl-C on our terminal is for the command in the guest, not for Bochs.
      detached: true,
      // Its text display goes to nobody, but has to be one.
      env: { ...process.env, TERM: 'vt100' },
      stdio: ['pipe', 'ignore', 'pipe', ...files.map(({ fd }) => fd)],
    })
    const ended = endOf(child)
    const console = new GrowingFile(files.splice(FD_CONSOLE - FD_CONFIG, 1)[0]!)
    for (const channel of Object.values(channels)) channel.on('error', () => {})
    const over = ended.then(async end => {
      server.close()
      await console.finish()
      for (const channel of Object.values(channels)) channel.hangUp()
      return end
    })
    return {
      console,
      control: channels.control,
      signals: channels.signals,
      stdin: channels.stdin,
      stdout: channels.stdout,
      stderr: channels.stderr,
      ended: over,
      kill: () => void child.kill('SIGKILL'),
    }
  } catch (error) {
    server.close()
    throw error
  } finally {
    for (const file of files) await file.close()
  }
}

/** The configuration file (Bochs: doc/docbook/user, "bochsrc"). */
export function bochsConfiguration(bochs: BochsAsset, machine: EmulatedMachine): string {
  const megabytes = Math.ceil(machine.memoryBytes / (1 << 20))
  const cpu = `model=corei7_skylake_x, count=1, ips=${ipsOf(bochs)}, reset_on_triple_fault=0, ignore_bad_msrs=1`
  // What is off is not needed or, as the speaker of 2.7, crashes it.
  const plugins = ['unmapped=1', 'biosdev=1', 'speaker=0', 'extfpuirq=1', 'parallel=0', 'serial=1', 'e1000=1']
  if (!bochs.fast) plugins.push('gameport=0')
  return `plugin_ctrl: ${plugins.join(', ')}
config_interface: textconfig
display_library: ${bochs.fast ? 'nogui' : 'term'}
cpu: ${cpu}
memory: guest=${megabytes}, host=${Math.min(megabytes, MOST_HOST_MEGABYTES)}
romimage: file=${bochs.bios}
vgaromimage: file=${bochs.vgaBios}
ata0-master: type=disk, path=/proc/self/fd/${FD_DISK}, mode=flat
ata1: enabled=0
boot: disk
com1: enabled=1, mode=file, dev=/proc/self/fd/${FD_CONSOLE}
pci: enabled=1, chipset=i440fx, slot1=e1000
e1000: enabled=1, mac=52:54:00:12:34:56, ethmod=slirp
clock: sync=none, time0=utc
log: /dev/null
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
`
}

/** What a file gets, as it grows. */
class GrowingFile extends Readable {
  readonly #file: FileHandle
  readonly #timer: NodeJS.Timeout
  #offset = 0
  #reading: Promise<void> = Promise.resolve()

  constructor(file: FileHandle) {
    super({ read() {} })
    this.#file = file
    this.#timer = setInterval(() => this.#look(), CONSOLE_INTERVAL)
  }

  /** Reads what there still is, and ends. */
  async finish(): Promise<void> {
    clearInterval(this.#timer)
    this.#look()
    await this.#reading
    await this.#file.close()
    this.push(null)
  }

  #look(): void {
    this.#reading = this.#reading.then(async () => {
      const { size } = await this.#file.stat()
      while (this.#offset < size) {
        const buffer = Buffer.alloc(Math.min(size - this.#offset, 1 << 16))
        const { bytesRead } = await this.#file.read(buffer, 0, buffer.length, this.#offset)
        if (bytesRead === 0) return
        this.#offset += bytesRead
        this.push(buffer.subarray(0, bytesRead))
      }
    })
  }
}
