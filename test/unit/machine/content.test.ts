import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { ConfigError } from '../../../lib/errors.js'
import { ContentFiles } from '../../../lib/machine/content.js'
import { plainMemory } from '../memory/plain.js'

const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i & 0xff)

function file(): string {
  const folder = mkdtempSync(join(tmpdir(), 'nested-kvm-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  writeFileSync(join(folder, 'file'), bytes)
  return join(folder, 'file')
}

test('a file goes into memory over the boundaries of its views', () => {
  using files = new ContentFiles()
  const memory = plainMemory([[0, 2000]], 300)
  const content = files.open('initrd', file())
  expect(content).toMatchObject({ size: 1000 })
  files.fill(memory, content, { address: 250, size: 1000 })
  expect(memory.read(250, 1000)).toEqual(bytes)
  expect([memory.read(249, 1)[0], memory.read(1250, 1)[0]]).toEqual([0, 0])
})

test('bytes stay as they are, and whole files are read', () => {
  using files = new ContentFiles()
  expect(files.open('kernel', bytes)).toBe(bytes)
  expect(files.whole('kernel', bytes)).toBe(bytes)
  expect(files.whole('kernel', file())).toEqual(bytes)
  files.fill(plainMemory([]), bytes, undefined)
})

test('a file that cannot be read, or becomes shorter, is a ConfigError of its field', () => {
  using files = new ContentFiles()
  const failure = (act: () => unknown) => {
    try {
      act()
    } catch (error) {
      expect(error).toBeInstanceOf(ConfigError)
      return error
    }
    throw new Error('this was accepted')
  }
  expect(failure(() => files.open('modules[1]', '/does/not/exist'))).toMatchObject({ field: 'modules[1]' })
  expect(failure(() => files.whole('kernel', tmpdir()))).toMatchObject({ field: 'kernel' })
  const path = file()
  const content = files.open('initrd', path)
  truncateSync(path, 400)
  expect(failure(() => files.fill(plainMemory([[0, 1000]]), content, { address: 0, size: 1000 }))).toMatchObject({
    field: 'initrd',
    message: expect.stringContaining('it ended after 400 of 1000 bytes'),
  })
})
