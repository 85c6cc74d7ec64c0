import type { ChildProcess } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { existsSync } from 'node:fs'
import { type FileHandle, open, unlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex, Readable } from 'node:stream'

const SETPRIV = '/usr/bin/setpriv'

/** What an emulated host's clock counts: this machine's time, or its own instructions. */
export type Clock = 'host' | 'instructions'

/** A directory of this machine that the emulated host sees, under the name `tag`. */
export interface Share {
  readonly tag: string
  readonly path: string
  readonly writable: boolean
}

/** What the lab asks of an emulator: a PC that starts a Linux kernel. */
export interface EmulatedMachine {
  /** The file of a `vmlinux`, or of a bzImage where that is all there is. */
  readonly kernel: string
  readonly initrd: Buffer
  readonly commandLine: string
  readonly memoryBytes: number
  readonly cpus: number
  readonly shares: readonly Share[]
}

/** How an emulator ended; `message` is what it said about it, often empty. */
export interface EmulatorEnd {
  readonly exitCode: number | null
  readonly signal: NodeJS.Signals | null
  readonly message: string
}

/**
 * An emulator that runs. It ends with this process, however that ends. The channels are byte streams to named ports in
 * the guest; they end when the emulator does.
 */
export interface RunningEmulator {
  /** The guest's serial console. */
  readonly console: Readable
  /** What the lab's script in the guest tells, in lines. */
  readonly control: Readable
  /** What it is to do: lines to the guest; empty ones mean nothing. */
  readonly signals: Duplex
  readonly stdin: Duplex
  readonly stdout: Duplex
  readonly stderr: Duplex
  readonly ended: Promise<EmulatorEnd>
  /** Ends it at once. The guest gets no chance to do anything. */
  kill(): void
}

/** The channels' names in the guest, apart from the console. */
export const CHANNELS = ['control', 'signals', 'stdin', 'stdout', 'stderr'] as const
export type ChannelName = (typeof CHANNELS)[number]

/** An emulator that can be a nested-capable host, and what its guest has to do for it. */
export interface Emulator {
  /** For messages. */
  readonly name: string
  /** The virtualization extension that it emulates. */
  readonly vendor: 'svm' | 'vmx'
  /** Modules that the guest's kernel needs to reach this emulator's shares and channels. */
  readonly guestModules: readonly string[]
  /** The KVM module that drives its extension, and the module's parameters. */
  readonly kvmModule: string
  readonly kvmParameters: readonly string[]
  /** What the kernel is told because it is this emulator; `console=` among it. */
  readonly commandLine: readonly string[]
  /** Lines of the guest's first script, before it mounts anything. */
  readonly guestSetup: string
  /** mount(8)'s options, source and all but the mount point for a share, as words for the shell. */
  mountWords(share: Share): string
  /**
   * A shell function `port`: sets the variable that its argument names (`CHANNELS`) to the path of that channel, or calls
   * `fail` with a message. The shell is in a directory of its own.
   */
  readonly guestPort: string
  start(machine: EmulatedMachine): Promise<RunningEmulator>
}

/** Where the kernel can be told so: a process that ends when we do, even by SIGKILL (util-linux: setpriv(1), --pdeathsig). */
export function endingWithUs(program: string, args: readonly string[]): [string, string[]] {
  return existsSync(SETPRIV) ? [SETPRIV, ['--pdeathsig', 'KILL', '--', program, ...args]] : [program, [...args]]
}

/** How an emulator's process ends, with the end of what it says on standard error. */
export function endOf(child: ChildProcess): Promise<EmulatorEnd> {
  let message = ''
  child.stderr?.setEncoding('utf8').on('data', text => {
    message = (message + text).slice(-4096)
  })
  return new Promise(resolve => {
    child.once('error', error => resolve({ exitCode: null, signal: null, message: error.message }))
    child.once('close', (exitCode, signal) => resolve({ exitCode, signal, message: message.trim() }))
  })
}

/** A file without a name: whatever becomes of us, nothing is left behind. */
export async function unnamedFile(content: Uint8Array): Promise<FileHandle> {
  const path = join(tmpdir(), `nested-kvm-${randomUUID()}`)
  const file = await open(path, 'wx+', 0o600)
  try {
    await unlink(path)
    await file.writeFile(content)
    return file
  } catch (error) {
    await file.close()
    throw error
  }
}
