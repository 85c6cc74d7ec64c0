/** States that KVM gave in the lab: a small L1 with nested paging and its L2, at each of its stations. */
import { readFileSync } from 'node:fs'
import { gunzipSync } from 'node:zlib'
import * as k from '../../../lib/kvm/structs.js'
import type { NestedContext } from '../../../lib/nested/describe.js'
import type { L1Memory } from '../../../lib/nested/walk.js'

export interface Captured {
  readonly name: string
  readonly nested: Uint8Array
  readonly context: NestedContext
}

interface Fixture {
  readonly tablesAt: number
  readonly tables: string
  readonly states: readonly {
    readonly name: string
    readonly nested: string
    readonly regs: string
    readonly sregs2: string
  }[]
}

const unpack = (text: string) => new Uint8Array(gunzipSync(Buffer.from(text, 'base64')))

export function captured(extension: 'svm' | 'vmx'): { states: Captured[]; memory: L1Memory } {
  const path = new URL(`./fixtures/${extension}.json`, import.meta.url)
  const { tablesAt, tables, states } = JSON.parse(readFileSync(path, 'utf8')) as Fixture
  const bytes = unpack(tables)
  return {
    states: states.map(({ name, nested, regs, sregs2 }) => ({
      name,
      nested: unpack(nested),
      context: { regs: k.kvm_regs.decode(unpack(regs)), sregs2: k.kvm_sregs2.decode(unpack(sregs2)) },
    })),
    memory: {
      read(address, length) {
        const at = address - tablesAt
        if (at < 0 || at + length > bytes.length) throw new RangeError('not among the captured pages')
        return bytes.slice(at, at + length)
      },
    },
  }
}
