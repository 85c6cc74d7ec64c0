import { execFileSync } from 'node:child_process'
import { chmodSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { buildInitramfs, fillInitramfs, planInitramfs, writeInitramfs } from '../../../lib/boot/initramfs.js'
import { programFiles } from '../../../lib/boot/program-files.js'
import { ConfigError } from '../../../lib/errors.js'

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'initramfs-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

/** One header as cpio(5) lists its fields, from the test's own table. */
function header(
  ino: number,
  mode: number,
  nlink: number,
  size: number,
  rdev: [number, number],
  nameSize: number,
): string {
  const hex = (value: number) => value.toString(16).padStart(8, '0')
  return `070701${[ino, mode, 0, 0, nlink, 0, size, 0, 0, rdev[0], rdev[1], nameSize, 0].map(hex).join('')}`
}

describe('a cpio newc archive', () => {
  test('is, byte for byte, what the format says', async () => {
    const archive = await buildInitramfs([
      { type: 'file', path: '/bin/hi', data: 'hello', mode: 0o755 },
      { type: 'symlink', path: 'init', target: 'bin/hi' },
      { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
      { type: 'device', path: '/dev/vda', kind: 'block', major: 254, minor: 16, mode: 0o660 },
      { type: 'directory', path: '/tmp', mode: 0o1777 },
    ])
    const expected = [
      // 110 bytes of header and the name with its NUL, padded to 4
      `${header(1, 0o040755, 2, 0, [0, 0], 4)}bin\0\0\0`,
      `${header(2, 0o100755, 1, 5, [0, 0], 7)}bin/hi\0\0\0\0hello\0\0\0`,
      `${header(3, 0o120777, 1, 6, [0, 0], 5)}init\0\0bin/hi\0\0`,
      `${header(4, 0o040755, 2, 0, [0, 0], 4)}dev\0\0\0`,
      `${header(5, 0o020600, 1, 0, [5, 1], 12)}dev/console\0\0\0`,
      `${header(6, 0o060660, 1, 0, [254, 16], 8)}dev/vda\0\0\0`,
      `${header(7, 0o041777, 2, 0, [0, 0], 4)}tmp\0\0\0`,
      `${header(0, 0, 1, 0, [0, 0], 11)}TRAILER!!!\0\0\0\0`,
    ].join('')
    expect(archive.length % 512).toBe(0)
    expect(archive.toString('latin1').replace(/\0+$/, '')).toBe(expected.replace(/\0+$/, ''))
  })

  test('takes content and mode from files, straight into the given memory or onto disk', async () => {
    const source = join(directory, 'big')
    const content = Buffer.alloc(3_000_001, 'nested')
    writeFileSync(source, content)
    chmodSync(source, 0o751)
    const entries = [{ type: 'file' as const, path: 'big', source }]
    const plan = await planInitramfs(entries)
    const memory = new Uint8Array(plan.size + 8)
    await fillInitramfs(plan, memory)
    expect(Buffer.from(memory.subarray(0, 110)).toString()).toBe(header(1, 0o100751, 1, 3_000_001, [0, 0], 4))
    expect(content.equals(memory.subarray(116, 116 + content.length))).toBe(true)
    const path = join(directory, 'written')
    expect(await writeInitramfs(entries, path)).toBe(plan.size)
    expect(readFileSync(path).equals(memory.subarray(0, plan.size))).toBe(true)
  })

  test('refuses what cannot be archived, naming it', async () => {
    const file = (path: string) => ({ type: 'file' as const, path, data: '' })
    const source = (path: string) => ({ type: 'file' as const, path: 'x', source: path })
    const fifo = join(directory, 'fifo')
    execFileSync('mkfifo', [fifo])
    const huge = join(directory, 'huge')
    writeFileSync(huge, '')
    truncateSync(huge, 2 ** 32)
    const refused: [Parameters<typeof planInitramfs>[0], RegExp][] = [
      [[file('a/../b')], /"a\/..\/b": is no usable path/],
      [[file('/')], /is no usable path/],
      [[file('a\0b')], /is no usable path/],
      [[file('a'), file('/a')], /"a": is there twice/],
      [[file('a'), file('a/b')], /"a": is there twice, or is the parent/],
      [[file('n'.repeat(4096))], /longer than 4095 bytes/],
      [[source(join(directory, 'none'))], /none": cannot be read \(ENOENT\)/],
      [[source(directory)], /is not a file/],
      [[source(fifo)], /is not a file/],
      [[source(huge)], /4 GiB or more/],
    ]
    for (const [entries, message] of refused) {
      const error = await planInitramfs(entries).catch(error => error)
      expect(error).toBeInstanceOf(ConfigError)
      expect(error.message).toMatch(message)
    }
  })

  test('is not made of a file that became shorter', async () => {
    const source = join(directory, 'shrinks')
    writeFileSync(source, 'x'.repeat(100))
    const plan = await planInitramfs([{ type: 'file', path: 'x', source }])
    truncateSync(source, 50)
    await expect(fillInitramfs(plan, new Uint8Array(plan.size))).rejects.toThrow(/became shorter than 100 bytes/)
  })
})

describe('the files of a program', () => {
  test('are itself, the dynamic linker and the libraries that it loads', async () => {
    const entries = await programFiles(process.execPath, { path: '/usr/bin/node' })
    const paths = entries.map(({ path }) => path)
    expect(paths[0]).toBe('/usr/bin/node')
    expect(paths.some(path => /\/ld-[^/]*\.so/.test(path))).toBe(true)
    expect(paths.some(path => /\/libc\.(so\.6|musl)/.test(path))).toBe(true)
    // What they name is there: an archive can be laid out.
    expect((await planInitramfs(entries)).size).toBeGreaterThan(10_000_000)
  })

  test('are refused for a script and for a missing program', async () => {
    const script = join(directory, 'script')
    writeFileSync(script, `#!/bin/sh\n${'#'.repeat(100)}\n`)
    await expect(programFiles(script)).rejects.toThrow(/is no 64-bit ELF file/)
    await expect(programFiles(join(directory, 'missing'))).rejects.toThrow(/cannot be read \(ENOENT\)/)
  })
})
