import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { openImageFile } from '../../../lib/kvm/image-file.js'
import type { Done } from '../../../lib/storage/block-storage.js'
import { RawImage } from '../../../lib/storage/raw-image.js'
import { type ReadNow, watchedFiles } from './watched-file.js'

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'nested-kvm-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

const wait = promisify((act: (done: Done) => void, done: Done) => act(done))
let count = 0

function image(content: Uint8Array | string = new Uint8Array(64 * 1024).fill(7)): string {
  const path = join(directory, `disk-${count++}.img`)
  writeFileSync(path, content)
  return path
}

function open(path: string, options: { readonly?: boolean; direct?: boolean } = {}): RawImage {
  const { readonly = false, direct = false } = options
  return RawImage.open({ field: 'disks[0].path', path, readonly, direct, openFile: openImageFile })
}

it('reads and writes the file itself', async () => {
  const path = image()
  const disk = open(path)
  expect(disk.size).toBe(64 * 1024)
  await wait(done => disk.write([new Uint8Array(512).fill(1), new Uint8Array(1024).fill(2)], 512, done))
  await wait(done => disk.flush(done))
  const [a, b] = [new Uint8Array(600), new Uint8Array(1448)]
  await wait(done => disk.read([a, b], 0, done))
  const expected = Buffer.concat([Buffer.alloc(512, 7), Buffer.alloc(512, 1), Buffer.alloc(1024, 2)])
  expect(Buffer.concat([a, b])).toEqual(expected)
  expect(readFileSync(path).subarray(0, 2048)).toEqual(expected)
  disk.close()
})

it('makes holes of what is discarded, and zeros', async () => {
  const path = image(new Uint8Array(1 << 20).fill(7))
  const disk = open(path)
  const blocks = statSync(path).blocks
  await wait(done => disk.discard(65536, 65536, done))
  expect(statSync(path).blocks).toBe(blocks - 128)
  await wait(done => disk.zero(512, 512, false, done))
  await wait(done => disk.zero(4096, 4096, true, done))
  const bytes = readFileSync(path)
  const zeros = (from: number, length: number) => bytes.subarray(from, from + length).every(byte => byte === 0)
  expect([zeros(65536, 65536), zeros(512, 512), zeros(4096, 4096)]).toEqual([true, true, true])
  expect([bytes[511], bytes[1024], bytes[8192], bytes[131072]]).toEqual([7, 7, 7, 7])
  disk.close()
})

it('past the page cache, where the guest’s buffers allow it', async () => {
  const path = image()
  const disk = open(path, { direct: true })
  // The start of a page, as guest memory has them, is not to be had of an ordinary array: the offset in the view is what counts.
  const memory = new Uint8Array(8192)
  await wait(done => disk.read([memory.subarray(100, 612)], 512, done))
  expect(memory.subarray(100, 612).every(byte => byte === 7)).toBe(true)
  disk.close()
})

describe('reads at once', () => {
  /** A disk, and what `readNow` of its file gave; with `instead`, that is what it gives. */
  function watched(path: string, { direct = false, instead }: { direct?: boolean; instead?: number } = {}) {
    const reads: ReadNow[] = []
    const openFile = watchedFiles(reads, instead)
    return { disk: RawImage.open({ field: 'disks[0].path', path, readonly: true, direct, openFile }), reads }
  }

  it('what lies in memory, in a file system that is memory', () => {
    const path = join('/dev/shm', `nested-kvm-${process.pid}.img`)
    onTestFinished(() => rmSync(path))
    writeFileSync(
      path,
      new Uint8Array(64 * 1024).map((_, i) => i / 512),
    )
    const { disk, reads } = watched(path)
    const [a, b] = [new Uint8Array(500), new Uint8Array(3596)]
    expect(disk.readNow([a, b], 512)).toBe(true)
    expect(Buffer.concat([a, b])).toEqual(readFileSync(path).subarray(512, 512 + 4096))
    expect(reads).toEqual([{ count: 4096, mayWait: true }])
    disk.close()
  })

  it('what the page cache has, where the file system tells', () => {
    const path = image()
    readFileSync(path)
    const { disk, reads } = watched(path)
    const bytes = new Uint8Array(4096)
    if (disk.readNow([bytes], 8192)) expect(bytes.every(byte => byte === 7)).toBe(true)
    else expect(reads).toEqual([{ count: -constants.errno.EOPNOTSUPP, mayWait: false }])
    disk.close()
  })

  it('nothing that the page cache does not have, but asks again', () => {
    const { disk, reads } = watched(image(), { instead: -constants.errno.EAGAIN })
    expect([1, 2].map(() => disk.readNow([new Uint8Array(4096)], 0))).toEqual([false, false])
    expect(reads).toHaveLength(2)
    disk.close()
  })

  it('nothing of which the page cache has but a part', () => {
    const { disk } = watched(image(), { instead: 512 })
    expect(disk.readNow([new Uint8Array(4096)], 0)).toBe(false)
    disk.close()
  })

  it('nothing where the file system cannot tell, and does not ask twice', () => {
    const { disk, reads } = watched(image(), { instead: -constants.errno.EOPNOTSUPP })
    expect([1, 2].map(() => disk.readNow([new Uint8Array(4096)], 0))).toEqual([false, false])
    expect(reads).toHaveLength(1)
    disk.close()
  })

  it('nothing that is long, or in many buffers, or to go past the page cache', () => {
    const { disk, reads } = watched(image(), { instead: 4096 })
    expect(disk.readNow([new Uint8Array(16896)], 0)).toBe(false)
    const small = Array.from({ length: 33 }, () => new Uint8Array(64))
    expect(disk.readNow(small, 0)).toBe(false)
    disk.close()
    const direct = watched(image(), { direct: true, instead: 4096 })
    expect(direct.disk.readNow([new Uint8Array(4096)], 0)).toBe(false)
    direct.disk.close()
    expect([...reads, ...direct.reads]).toEqual([])
  })

  it('into nothing but a list of bytes', () => {
    const file = openImageFile(image(), false)
    for (const wrong of [undefined, 5, [1], [new Uint16Array(4)], [new Uint8Array(new SharedArrayBuffer(8))]]) {
      expect(() => file.readNow(wrong as unknown as Uint8Array[], 0, false)).toThrow(TypeError)
    }
    expect(() => file.readNow([new Uint8Array(8)], -1, false)).toThrow(RangeError)
    file.close()
    expect(file.readNow([new Uint8Array(8)], 0, false)).toBe(-constants.errno.EBADF)
  })
})

it('of which less is there than when it was opened is an error, not a hang', async () => {
  const path = image()
  const disk = open(path)
  truncateSync(path, 1000)
  await expect(wait(done => disk.read([new Uint8Array(1024)], 512, done))).rejects.toThrow(/cut short/)
  disk.close()
})

describe('is refused', () => {
  it.each([
    ['that is not there', () => join(directory, 'none'), /disks\[0\]\.path: .*there is no such file/],
    ['that is a directory', () => directory, /neither a file nor a block device/],
    ['that is a device of another kind', () => '/dev/null', /neither a file nor a block device/],
    ['that is empty', () => image(''), /it is empty.*truncate/],
    ['that is no whole number of sectors', () => image('x'.repeat(513)), /513 bytes.*truncate -s 1024/],
  ])('one %s', (_, make, message) => {
    const open2 = () => open(make())
    expect(open2).toThrow(message)
    expect(open2).toThrow(expect.objectContaining({ name: 'ConfigError' }))
  })

  it('a FIFO, without waiting for its other end', () => {
    const path = join(directory, 'fifo')
    expect(spawnSync('mkfifo', [path]).status).toBe(0)
    expect(() => open(path)).toThrow(/neither a file nor a block device/)
  })

  it('what does not come from a path of ours', () => {
    mkdirSync(join(directory, 'd'))
    expect(() => open(join(directory, 'd', 'x', 'y'))).toThrow(/there is no such file/)
  })
})

describe('is locked', () => {
  it('against a second writer, and against readers while it is written', () => {
    const path = image()
    const writer = open(path)
    expect(() => open(path)).toThrow(/another program has it open.*snapshot: true/)
    expect(() => open(path, { readonly: true })).toThrow(/another program writes to it/)
    writer.close()
    open(path).close()
  })

  it('against a writer while it is read, but not against other readers', () => {
    const path = image()
    const readers = [open(path, { readonly: true }), open(path, { readonly: true })]
    expect(() => open(path)).toThrow(/another program has it open/)
    readers[0]!.close()
    expect(() => open(path)).toThrow(/another program has it open/)
    readers[1]!.close()
    open(path).close()
  })
})
