import type { Duplex, Readable } from 'node:stream'

/** A directory of this machine that the emulated host sees, under the name `tag`. */
export interface Share {
  readonly tag: string
  readonly path: string
  readonly writable: boolean
}

/** What the lab asks of an emulator: a PC that starts a Linux kernel. */
export interface EmulatedMachine {
  readonly kernel: string
  /** A file descriptor of the initramfs, readable from its start; the emulator only reads it. */
  readonly initrd: number
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
  /** Lines in both directions between the lab and its agent in the guest. */
  readonly control: Duplex
  readonly stdin: Duplex
  readonly stdout: Duplex
  readonly stderr: Duplex
  readonly ended: Promise<EmulatorEnd>
  /** Ends it at once. The guest gets no chance to do anything. */
  kill(): void
}

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
  /** mount(8)'s type and options for a share; the source is the share's tag. */
  readonly shareType: string
  shareOptions(share: Share): string
  start(machine: EmulatedMachine): RunningEmulator
}
