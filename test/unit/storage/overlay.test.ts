import { readdirSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import fc from 'fast-check'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type BlockStorage, type Done, SECTOR } from '../../../lib/storage/block-storage.js'
import { Overlay, type OverlayState } from '../../../lib/storage/overlay.js'
import { MemoryStorage } from './memory-storage.js'

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'nested-kvm-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

const SECTORS = 64

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
      let overlay = new Overlay(image, directory)
      const opened = [overlay]
      let model = untouched.slice()
      const moments: { state: OverlayState; model: Uint8Array }[] = []
      for (const [i, step] of steps.entries()) {
        if (step.do === 'freeze') moments.push({ state: overlay.freeze(), model: model.slice() })
        else if (step.do === 'thaw' || step.do === 'fork') {
          const moment = moments[step.to]
          if (!moment) continue
          // A second one goes on from there, the first is left as it is.
          if (step.do === 'fork') {
            overlay = new Overlay(image, directory)
            opened.push(overlay)
          }
          overlay.thaw(moment.state)
          model = moment.model.slice()
        } else {
          const [offset, length] = [step.sector * SECTOR, step.count * SECTOR]
          if (step.do === 'read')
            expect(await read(overlay, offset, length)).toEqual(model.slice(offset, offset + length))
          else if (step.do === 'zero') await wait(done => overlay.zero(offset, length, true, done))
          else await write(overlay, offset, new Uint8Array(length).fill(i + 1))
          if (step.do !== 'read') model.fill(step.do === 'zero' ? 0 : i + 1, offset, offset + length)
        }
      }
      expect(await read(overlay, 0, image.size)).toEqual(model)
      for (const { state } of moments) state.close()
      expect(await read(overlay, 0, image.size)).toEqual(model)
      for (const one of opened) one.close()
      expect(image.bytes).toEqual(untouched)
    }),
    { numRuns: 60 },
  )
  // Its files had no names, and none of them is open any more.
  expect(readdirSync(directory)).toEqual([])
  const open = readdirSync('/proc/self/fd').length
  const overlay = new Overlay(base(), directory)
  await write(overlay, 0, new Uint8Array(SECTOR))
  const state = overlay.freeze()
  expect(readdirSync('/proc/self/fd').length).toBe(open + 2)
  overlay.close()
  state.close()
  expect(readdirSync('/proc/self/fd').length).toBe(open)
})

it('tells of a directory where no temporary file can be made', () => {
  const file = join(directory, 'file')
  writeFileSync(file, '')
  expect(() => new Overlay(base(), file)).toThrow(/TMPDIR: .*ENOTDIR.*set TMPDIR/)
})
