import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const cache = new Map<string, Uint8Array>()

/**
 * Assembles a guest with the machine's own `as` and `ld` (binutils) into flat bytes that run at `origin`.
 *
 * The source is in Intel syntax without register prefixes; `.code16`, `.code32` and `.code64` say for which mode the
 * lines after them are (the default is 64-bit). Labels are absolute addresses from `origin` on.
 */
export function assemble(source: string, origin = 0x1000): Uint8Array {
  const key = `${origin}\n${source}`
  const known = cache.get(key)
  if (known) return known
  const directory = mkdtempSync(join(tmpdir(), 'nested-kvm-guest-'))
  try {
    const [assembly, object, binary] = ['guest.s', 'guest.o', 'guest.bin'].map(name => join(directory, name))
    writeFileSync(assembly!, `.intel_syntax noprefix\n.globl _start\n_start:\n${source}\n`)
    execFileSync('as', ['--64', '-o', object!, assembly!], { stdio: ['ignore', 'inherit', 'inherit'] })
    const layout = ['-Ttext', `0x${origin.toString(16)}`, '-e', '_start', '--oformat', 'binary']
    execFileSync('ld', ['-m', 'elf_x86_64', ...layout, '-o', binary!, object!], {
      stdio: ['ignore', 'inherit', 'inherit'],
    })
    const bytes = new Uint8Array(readFileSync(binary!))
    cache.set(key, bytes)
    return bytes
  } finally {
    rmSync(directory, { recursive: true })
  }
}
