import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it, onTestFinished } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
import type { Done } from '../../lib/storage/block-storage.js'
import { RawImage } from '../../lib/storage/raw-image.js'
import { type ReadNow, watchedFiles } from '../unit/storage/watched-file.js'
import { loadModules } from './load-modules.js'

const DEVICE = '/dev/loop0'
const SIZE = 1 << 20

const run = promisify(execFile)
const wait = promisify((act: (done: Done) => void, done: Done) => act(done))

it('a block device is a disk: its size, its content, its lock; it may have to wait, and no read at once does', async () => {
  const content = randomBytes(SIZE)
  const file = join(tmpdir(), 'nested-kvm-loop.img')
  writeFileSync(file, content)
  onTestFinished(() => rmSync(file))
  await loadModules(['loop'])
  const { busybox } = await ensureAssets(['busybox'])
  await run(busybox.program, ['losetup', DEVICE, file])
  onTestFinished(async () => void (await run(busybox.program, ['losetup', '-d', DEVICE])))

  const reads: ReadNow[] = []
  const options = {
    field: 'disks[0].path',
    path: DEVICE,
    readonly: false,
    direct: false,
    openFile: watchedFiles(reads),
  }
  const disk = RawImage.open(options)
  expect(disk.size).toBe(SIZE)
  expect(() => RawImage.open(options)).toThrow('another program has it open')

  const bytes = new Uint8Array(4096)
  await wait(done => disk.read([bytes], 8192, done))
  expect(bytes).toEqual(new Uint8Array(content.subarray(8192, 8192 + 4096)))
  // It is in the page cache now.
  bytes.fill(0)
  expect(disk.readNow([bytes], 8192)).toBe(true)
  expect(bytes).toEqual(new Uint8Array(content.subarray(8192, 8192 + 4096)))
  expect(reads).toEqual([{ count: 4096, mayWait: false }])

  await wait(done => disk.write([new Uint8Array(512).fill(0xab)], SIZE - 512, done))
  await wait(done => disk.discard(0, 4096, done))
  await wait(done => disk.zero(4096, 4096, true, done))
  await wait(done => disk.flush(done))
  disk.close()
  const after = readFileSync(DEVICE)
  expect(after.subarray(-512).equals(Buffer.alloc(512, 0xab))).toBe(true)
  expect(after.subarray(4096, 8192).equals(Buffer.alloc(4096))).toBe(true)
  expect(after.subarray(8192, SIZE - 512).equals(content.subarray(8192, SIZE - 512))).toBe(true)
})
