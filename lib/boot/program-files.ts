import { execFile } from 'node:child_process'
import { open, realpath } from 'node:fs/promises'
import { promisify } from 'node:util'
import { ConfigError } from '../errors.js'
import type { InitramfsEntry } from './initramfs.js'

const run = promisify(execFile)

const PT_INTERP = 3

/**
 * What a program needs to start in a guest: its own file (at `options.path`, or where it is here), the dynamic linker that its ELF
 * header names, and every library that this linker loads for it, each at the path where the linker looks.
 * A statically linked program is one entry.
 *
 * @throws ConfigError when `program` is missing, is no ELF file (a script, say), or a library is not found.
 */
export async function programFiles(program: string, options: { path?: string } = {}): Promise<InitramfsEntry[]> {
  const source = await realpath(program).catch((error: NodeJS.ErrnoException) => {
    throw new ConfigError('program', program, `cannot be read (${error.code})`, 'check the path')
  })
  const files = new Map([[options.path ?? program, source]])
  const interpreter = await readInterpreter(source)
  if (interpreter !== undefined) {
    files.set(interpreter, interpreter)
    for (const library of await listLibraries(interpreter, source)) files.set(library, library)
  }
  return [...files].map(([path, file]) => ({ type: 'file', path, source: file, mode: 0o755 }))
}

/** What ldd(1) does: the dynamic linker itself lists what it would load, without running the program. */
async function listLibraries(interpreter: string, program: string): Promise<string[]> {
  const { stdout } = await run(interpreter, ['--list', program], { env: { ...process.env, LC_ALL: 'C' } }).catch(
    (error: Error & { stderr?: string }) => {
      throw new ConfigError('program', program, `${interpreter} cannot load it`, error.stderr?.trim() || error.message)
    },
  )
  const libraries: string[] = []
  for (const line of stdout.split('\n')) {
    const missing = /^\s*(\S+) => not found/.exec(line)
    if (missing) {
      throw new ConfigError('program', program, `its library ${missing[1]} is not found`, 'install that library')
    }
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)"; the vDSO and the linker itself have no "=> /"
    const found = /=> (\/.*) \(0x[0-9a-f]+\)$/.exec(line)
    if (found) libraries.push(found[1]!)
  }
  return libraries
}

/** The path in the PT_INTERP segment (System V ABI, Program Loading), or undefined for a static program. */
async function readInterpreter(program: string): Promise<string | undefined> {
  const file = await open(program)
  try {
    const header = Buffer.alloc(64)
    const { bytesRead } = await file.read(header, 0, header.length, 0)
    // ELFCLASS64, little endian
    if (bytesRead < header.length || header.readUInt32BE(0) !== 0x7f454c46 || header.readUInt16LE(4) !== 0x0102) {
      throw new ConfigError('program', program, 'is no 64-bit ELF file', 'give the program itself, not a script')
    }
    const entrySize = header.readUInt16LE(54)
    const table = Buffer.alloc(entrySize * header.readUInt16LE(56))
    await file.read(table, 0, table.length, Number(header.readBigUInt64LE(32)))
    for (let at = 0; entrySize >= 56 && at < table.length; at += entrySize) {
      if (table.readUInt32LE(at) !== PT_INTERP) continue
      const path = Buffer.alloc(Math.min(Number(table.readBigUInt64LE(at + 32)), 4096))
      await file.read(path, 0, path.length, Number(table.readBigUInt64LE(at + 8)))
      return path.subarray(0, path.indexOf(0)).toString()
    }
    return undefined
  } finally {
    await file.close()
  }
}
