import {
  accessSync,
  closeSync,
  constants,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  statSync,
} from 'node:fs'
import { join } from 'node:path'
import { hostCpuid, hypervisorSignature } from '../kvm/host-cpuid.js'
import type { CpuidEntry } from '../kvm/structs.js'

/** What the diagnosis asks of an open `/dev/kvm`. */
export interface OpenKvm {
  readonly apiVersion: number
  checkExtension(capability: number): number
  supportedCpuid(): CpuidEntry[]
  close(): void
}

/** Owner and permission bits of a file. */
export interface FileOwner {
  readonly mode: number
  readonly uid: number
  readonly gid: number
}

/** The host as the diagnosis sees it; tests hand in another one. */
export interface HostSystem {
  /** The text of a file, or undefined where it is missing or unreadable. */
  read(path: string): string | undefined
  /** Some bytes of a file or device, or undefined where they cannot be read. */
  readBytes(path: string, offset: number, length: number): Uint8Array | undefined
  /** The names in a directory; none where it is missing. */
  list(path: string): string[]
  /** Where a symbolic link points to; undefined where it is none, or may not be read. */
  link(path: string): string | undefined
  owner(path: string): FileOwner | undefined
  /** Why a file or directory cannot be written (`EROFS`, `EACCES`, `ENOENT`); undefined where it can. */
  unwritable(path: string): string | undefined
  /** Where a program of the administrator's is; undefined where there is none of that name. */
  program(name: string): string | undefined
  /** The signatures of the hypervisors that this host runs under, as CPUID tells; none on bare metal. */
  hypervisors(): string[]
  /** The user id that this process acts as. */
  readonly uid: number
  /** Opens `/dev/kvm`; throws `KvmError` as `Kvm.open` does. */
  openKvm(path: string): OpenKvm
}

/** This machine, with `openKvm` to open its `/dev/kvm`. */
export function thisHost(openKvm: (path: string) => OpenKvm): HostSystem {
  return {
    read: path => attempt(() => readFileSync(path, 'utf8')),
    readBytes: (path, offset, length) => attempt(() => readBytes(path, offset, length)),
    list: path => attempt(() => readdirSync(path)) ?? [],
    link: path => attempt(() => readlinkSync(path)),
    owner: path => attempt(() => statSync(path)),
    unwritable,
    program: findProgram,
    hypervisors: () => attempt(hypervisorSignatures) ?? [],
    uid: process.geteuid?.() ?? -1,
    openKvm,
  }
}

function attempt<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch {
    return undefined
  }
}

function readBytes(path: string, offset: number, length: number): Uint8Array | undefined {
  const fd = openSync(path, 'r')
  try {
    const bytes = new Uint8Array(length)
    return readSync(fd, bytes, 0, length, offset) === length ? bytes : undefined
  } finally {
    closeSync(fd)
  }
}

const unwritable = (path: string) => refusal(path, constants.W_OK)

/** Why a path may not be used so; undefined where it may. */
function refusal(path: string, mode: number): string | undefined {
  try {
    accessSync(path, mode)
    return undefined
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? 'EUNKNOWN'
  }
}

/** Where administrators' programs are although it is in few users' PATH. */
const ADMIN_PATH = ['/usr/local/sbin', '/usr/sbin', '/sbin']

function findProgram(name: string): string | undefined {
  const directories = [...(process.env.PATH ?? '').split(':').filter(Boolean), ...ADMIN_PATH]
  return directories
    .map(directory => join(directory, name))
    .find(path => refusal(path, constants.X_OK) === undefined && statSync(path).isFile())
}

/** KVM that imitates Hyper-V has its own signature at one of the next bases (Linux: hypervisor_cpuid_base). */
const NEXT_BASE = 0x4000_0100

function hypervisorSignatures(): string[] {
  const first = hypervisorSignature()
  if (first === undefined) return []
  const { ebx, ecx, edx } = hostCpuid(NEXT_BASE)
  const second = Buffer.from(Uint32Array.of(ebx, ecx, edx).buffer)
    .toString('latin1')
    .replace(/\0+$/, '')
  return /^[\x20-\x7e]{4,12}$/.test(second) && second !== first ? [first, second] : [first]
}
