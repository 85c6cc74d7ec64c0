import { readdirSync, readFileSync, statSync } from 'node:fs'
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
  /** The names in a directory; none where it is missing. */
  list(path: string): string[]
  owner(path: string): FileOwner | undefined
  /** The user id that this process acts as. */
  readonly uid: number
  /** Opens `/dev/kvm`; throws `KvmError` as `Kvm.open` does. */
  openKvm(path: string): OpenKvm
}

/** This machine, with `openKvm` to open its `/dev/kvm`. */
export function thisHost(openKvm: (path: string) => OpenKvm): HostSystem {
  return {
    read: path => attempt(() => readFileSync(path, 'utf8')),
    list: path => attempt(() => readdirSync(path)) ?? [],
    owner: path => attempt(() => statSync(path)),
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
