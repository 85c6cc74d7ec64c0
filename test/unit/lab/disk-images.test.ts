import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { findProgram } from '../../../lib/lab/command.js'
import { makeExt4, makeRootDisk, rootDiskRecipe } from '../../../lib/lab/root-disk.js'

let directory: string
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'nested-kvm-disk-'))
})
afterEach(async () => {
  vi.restoreAllMocks()
  await rm(directory, { recursive: true, force: true })
})

it('an ext4 image holds the directory, whole, and takes the room of that only', async () => {
  const [mke2fs, debugfs, e2fsck] = await Promise.all(['mke2fs', 'debugfs', 'e2fsck'].map(findProgram))
  const [tree, image] = [join(directory, 'tree'), join(directory, 'disk.img')]
  await mkdir(join(tree, 'deep'), { recursive: true })
  await writeFile(join(tree, 'deep/file'), 'content\n', { mode: 0o750 })
  await makeExt4(image, tree, mke2fs!, () => {}, 64 << 20)
  const { size, blocks } = await stat(image)
  expect(size).toBe(64 << 20)
  expect(blocks * 512).toBeLessThan(8 << 20)
  expect(() => execFileSync(e2fsck!, ['-fn', image], { stdio: 'ignore' })).not.toThrow()
  const ask = (request: string) => execFileSync(debugfs!, ['-R', request, image], { encoding: 'utf8', stdio: 'pipe' })
  expect(ask('cat /deep/file')).toBe('content\n')
  expect(ask('stat /deep/file')).toMatch(/Mode: +0750/)
})

it('a root disk is made by root only, and others are told so before anything is there', async () => {
  vi.spyOn(process, 'getuid').mockReturnValue(1000)
  const image = join(directory, 'root.img')
  await expect(makeRootDisk(image, [], () => {})).rejects.toThrow(/root disk.*can be made by root only.*run it as root/)
  expect(existsSync(`${image}.tree`)).toBe(false)
})

it('another kernel asks for another root disk, and so does one with other modules', async () => {
  const recipe = (release: string) => rootDiskRecipe([{ release, vmlinuz: '', image: '', modulesDir: directory }])
  const one = await recipe('6.1.0-1-amd64')
  expect(await recipe('6.1.0-2-amd64')).not.toBe(one)
  expect(await recipe('6.1.0-1-amd64')).toBe(one)
  await mkdir(join(directory, 'kernel'))
  await writeFile(join(directory, 'kernel/softdog.ko'), '')
  expect(await recipe('6.1.0-1-amd64')).not.toBe(one)
})
