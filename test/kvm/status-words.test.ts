import { describe, expect, it } from 'vitest'
import { StatusWords } from '../../lib/kvm/status-words.js'
import { VcpuThread } from '../../lib/kvm/vcpu-thread.js'
import { loadGuest } from './guest.js'

const [READ, CLEAR] = [0x20_0100, 0x20_0104]

/** Runs a guest on a thread to its hlt; gives what came to the event loop, as `reason` or what it wrote to a port. */
async function run(source: string, words: (guest: ReturnType<typeof loadGuest>) => StatusWords) {
  using guest = loadGuest('protected', `${source}\nhlt`)
  const status = words(guest)
  const seen: (string | number)[] = []
  await new Promise<void>((resolve, reject) => {
    const thread = new VcpuThread(
      guest.vcpu,
      exit => {
        if (exit.reason === 'hlt') resolve(thread.stop())
        else if (exit.reason === 'io-out')
          seen.push(new DataView(exit.data.buffer, exit.data.byteOffset, 4).getUint32(0, true))
        else seen.push(exit.reason)
        if (exit.reason === 'mmio-read') exit.data.fill(0x55)
      },
      reject,
    )
    thread.start()
  })
  status.close()
  return seen
}

describe('status words', () => {
  it('are read and cleared by the guest with no event', async () => {
    let word: Uint32Array = new Uint32Array()
    const source = `mov eax, ds:[${READ}]\nout 0x60, eax\nmov dword ptr ds:[${CLEAR}], 0x10001\nmov eax, ds:[${READ}]\nout 0x60, eax`
    const seen = await run(source, ({ vm }) => {
      const words = new StatusWords(vm)
      word = words.add(READ + 0x100, CLEAR + 0x100)
      expect([...word]).toEqual([0])
      word = words.add(READ, CLEAR)
      Atomics.store(word, 0, 0xf000_0003)
      return words
    })
    expect(seen).toEqual([0xf000_0003, 0xf000_0002])
    expect(word).toHaveLength(0)
  })

  it('leave accesses of another width, at another address or the other way round to the handler', async () => {
    const source = [
      `mov ax, ds:[${READ}]`,
      `mov byte ptr ds:[${CLEAR}], 1`,
      `mov eax, ds:[${CLEAR}]`,
      `mov dword ptr ds:[${READ}], 1`,
      `mov eax, ds:[${READ + 8}]`,
      'out 0x60, eax',
    ].join('\n')
    const seen = await run(source, ({ vm }) => {
      const words = new StatusWords(vm)
      words.add(READ, CLEAR)
      return words
    })
    expect(seen).toEqual(['mmio-read', 'mmio-write', 'mmio-read', 'mmio-write', 'mmio-read', 0x5555_5555])
  })

  it('are handed out by vcpu.run() as any other access', () => {
    using guest = loadGuest('protected', `mov eax, ds:[${READ}]\nhlt`)
    const words = new StatusWords(guest.vm)
    words.add(READ, CLEAR)
    expect(guest.vcpu.run()).toMatchObject({ reason: 'mmio-read', address: READ })
    words.close()
  })

  it('are as many as there is room for', () => {
    using guest = loadGuest('protected', 'hlt')
    const words = new StatusWords(guest.vm)
    for (let i = 0; i < 64; i++) words.add(READ + 8 * i, CLEAR + 8 * i)
    expect(() => words.add(0, 4)).toThrow(RangeError)
    words.close()
    expect(() => words.add(0, 4)).toThrow(/closed/)
  })
})
