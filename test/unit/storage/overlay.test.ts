import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp, open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openImageFile } from '../../../lib/kvm/image-file.js'
import { type BlockStorage, type Done, SECTOR } from '../../../lib/storage/block-storage.js'
import { Overlay, type OverlayState } from '../../../lib/storage/overlay.js'
import { openKeptLayer } from '../../../lib/storage/overlay-file.js'
import { OverlayLayer } from '../../../lib/storage/overlay-layer.js'
import { MemoryStorage } from './memory-storage.js'

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'nested-kvm-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

const SECTORS = 64
const temporary = () => OverlayLayer.temporary(directory)

const wait = promisify((act: (done: Done) => void, done: Done) => act(done))
const read = async (storage: BlockStorage, offset: number, length: number) => {
  // In two pieces, as a guest's buffers are.
  const bytes = new Uint8Array(length)
  await wait(done => storage.read([bytes.subarray(0, 100), bytes.subarray(100)], offset, done))
  return bytes
}
const write = (storage: BlockStorage, offset: number, bytes: Uint8Array) => {
  return wait(done => storage.write([bytes.subarray(0, 7), bytes.subarray(7)], offset, done))
}

/** `toEqual` takes its time for so many. */
const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0

function base(): MemoryStorage {
  const storage = new MemoryStorage(SECTORS, { readonly: true })
  for (let i = 0; i < storage.size; i++) storage.bytes[i] = (i / SECTOR) * 3 + (i % 5)
  return storage
}

type Step =
  | { readonly do: 'write' | 'zero' | 'read'; readonly sector: number; readonly count: number }
  | { readonly do: 'freeze' }
  | { readonly do: 'thaw' | 'fork'; readonly to: number }

const range = { sector: fc.nat(SECTORS - 9), count: fc.integer({ min: 1, max: 8 }) }
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 5, arbitrary: fc.record({ do: fc.constantFrom('write', 'zero', 'read'), ...range }) },
  fc.constant({ do: 'freeze' }),
  fc.record({ do: fc.constantFrom('thaw', 'fork'), to: fc.nat(5) }),
)

it('is the image with what was written over it, at whatever moment; the image stays', {
  timeout: 120_000,
}, async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 25 }), async steps => {
      const image = base()
      const untouched = image.bytes.slice()
      let overlay = new Overlay(image, temporary)
      const opened = [overlay]
      let model = untouched.slice()
      const moments: { state: OverlayState; model: Uint8Array }[] = []
      for (const [i, step] of steps.entries()) {
        if (step.do === 'freeze') moments.push({ state: overlay.freeze(), model: model.slice() })
        else if ('to' in step) {
          const moment = moments[step.to]
          if (!moment) continue
          // A second one goes on from there, the first is left as it is.
          if (step.do === 'fork') {
            overlay = new Overlay(image, temporary)
            opened.push(overlay)
          }
          overlay.thaw(moment.state)
          model = moment.model.slice()
        } else {
          const [offset, length] = [step.sector * SECTOR, step.count * SECTOR]
          if (step.do === 'read')
            expect(same(await read(overlay, offset, length), model.subarray(offset, offset + length))).toBe(true)
          else if (step.do === 'zero') await wait(done => overlay.zero(offset, length, true, done))
          else await write(overlay, offset, new Uint8Array(length).fill(i + 1))
          if (step.do !== 'read') model.fill(step.do === 'zero' ? 0 : i + 1, offset, offset + length)
        }
      }
      expect(same(await read(overlay, 0, image.size), model)).toBe(true)
      for (const { state } of moments) state.close()
      expect(same(await read(overlay, 0, image.size), model)).toBe(true)
      for (const one of opened) one.close()
      expect(same(image.bytes, untouched)).toBe(true)
    }),
    { numRuns: 200 },
  )
  // Its files had no names, and none of them is open any more.
  expect(readdirSync(directory)).toEqual([])
  const open = readdirSync('/proc/self/fd').length
  const overlay = new Overlay(base(), temporary)
  await write(overlay, 0, new Uint8Array(SECTOR))
  const state = overlay.freeze()
  expect(readdirSync('/proc/self/fd').length).toBe(open + 2)
  overlay.close()
  state.close()
  expect(readdirSync('/proc/self/fd').length).toBe(open)
})

it('is saved with all its layers, and another goes on from that, also where the file is gone by then', async () => {
  const image = base()
  const overlay = new Overlay(image, temporary)
  await write(overlay, 2 * SECTOR, new Uint8Array(SECTOR).fill(1))
  overlay.freeze().close()
  await write(overlay, 3 * SECTOR, new Uint8Array(2 * SECTOR).fill(2))
  const path = join(directory, 'saved')
  const file = await open(path, 'wx')
  let end = 0
  await overlay.save({
    resize: size => file.truncate(size),
    async put(position, bytes) {
      expect(position).toBeGreaterThanOrEqual(end)
      end = position + bytes.length
      await file.write(bytes, 0, bytes.length, position)
    },
  })
  await file.close()
  const expected = await read(overlay, 0, image.size)
  overlay.close()

  const again = new Overlay(image, temporary)
  again.load(path)
  const other = new Overlay(new MemoryStorage(SECTORS + 1), temporary)
  expect(() => other.load(path)).toThrow(/a disk of 32768 bytes, and the image has 33280/)
  const bytes = readFileSync(path)
  for (const [name, change, message] of [
    ['cut', bytes.subarray(0, -1), /it has \d+ bytes, not/],
    ['foreign', Buffer.alloc(bytes.length), /it is no disk overlay/],
  ] as const) {
    writeFileSync(join(directory, name), change)
    const loader = name === 'cut' ? again : other
    expect(() => loader.load(join(directory, name))).toThrow(message)
    rmSync(join(directory, name))
  }
  rmSync(path)
  expect(same(await read(again, 0, image.size), expected)).toBe(true)
  await write(again, 2 * SECTOR, new Uint8Array(SECTOR).fill(3))
  expect((await read(again, 2 * SECTOR, SECTOR))[0]).toBe(3)
  again.close()
  other.close()
})

describe('in a file that is kept', () => {
  const kept = (image: BlockStorage, path: string) =>
    new Overlay(image, () => openKeptLayer(path, image.size, openImageFile))

  it('is gone on with the next time, as far as it was flushed', async () => {
    const image = base()
    const path = join(directory, 'kept')
    let overlay = kept(image, path)
    await write(overlay, SECTOR, new Uint8Array(2 * SECTOR).fill(1))
    const flushes = [wait(done => overlay.flush(done)), write(overlay, 5 * SECTOR, new Uint8Array(SECTOR).fill(2))]
    flushes.push(wait(done => overlay.flush(done)))
    await Promise.all(flushes)
    await wait(done => overlay.flush(done))
    await write(overlay, 7 * SECTOR, new Uint8Array(SECTOR).fill(3))
    expect(() => kept(image, path)).toThrow(/another machine has it open/)
    const expected = await read(overlay, 0, 7 * SECTOR)
    overlay.close()
    overlay = kept(image, path)
    expect(same(await read(overlay, 0, 7 * SECTOR), expected)).toBe(true)
    // As a disk whose power went away.
    expect((await read(overlay, 7 * SECTOR, SECTOR))[0]).toBe(image.bytes[7 * SECTOR])
    overlay.close()
    expect(() => kept(new MemoryStorage(SECTORS / 2), path)).toThrow(/of a disk of 32768 bytes/)
    rmSync(path)
  })
})

it('tells of a directory where no temporary file can be made', () => {
  const file = join(directory, 'file')
  writeFileSync(file, '')
  expect(() => new Overlay(base(), () => OverlayLayer.temporary(file))).toThrow(/TMPDIR: .*ENOTDIR.*set TMPDIR/)
})

it('reads at once what is the image’s alone, where the image does', async () => {
  const image = base()
  const overlay = new Overlay(image, temporary)
  const bytes = new Uint8Array(2 * SECTOR)
  expect(overlay.readNow([bytes], 4 * SECTOR)).toBe(false)
  image.now = true
  await write(overlay, 6 * SECTOR, new Uint8Array(2 * SECTOR).fill(0xee))
  expect([4, 5, 6].map(sector => overlay.readNow([bytes], sector * SECTOR))).toEqual([true, false, false])
  overlay.readNow([bytes], 4 * SECTOR)
  expect(bytes).toEqual(image.bytes.subarray(4 * SECTOR, 6 * SECTOR))
  overlay.close()
})
