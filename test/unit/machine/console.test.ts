import { describe, expect, it } from 'vitest'
import { GuestError, TimeoutError } from '../../../lib/errors.js'
import { Console } from '../../../lib/machine/console.js'

const quiet = () => true
const bytes = (text: string) => new TextEncoder().encode(text)

describe('console.expect', () => {
  it('takes what came before it was called, in pieces, and each text once', async () => {
    const console = new Console(quiet)
    console.output(bytes('boot: 1\nlog'))
    const login = console.expect(/log(in)(\?)?:/)
    console.output(bytes('in: boot: 2'))
    expect(await login).toEqual({ before: 'boot: 1\n', text: 'login:', groups: ['in', undefined] })
    expect(await console.expect('boot: ')).toEqual({ before: ' ', text: 'boot: ', groups: [] })
    expect((await console.expect(/\d/g)).text).toBe('2')
  })

  it('joins a character that comes in two pieces', async () => {
    const console = new Console(quiet)
    const [first, second] = [bytes('é').subarray(0, 1), bytes('é').subarray(1)]
    console.output(first)
    console.output(second)
    expect((await console.expect(/./u)).text).toBe('é')
  })

  it('ends at its timeout, with the last lines, and leaves the text for the next', async () => {
    const console = new Console(quiet)
    console.output(bytes('a\nb\n'))
    await expect(console.expect('c', { timeout: 5 })).rejects.toThrow(TimeoutError)
    await expect(console.expect('c', { timeout: 5 })).rejects.toThrow('console: "c" did not come within 0.005 s\na\nb')
    expect((await console.expect('b')).before).toBe('a\n')
  })

  it('is told that the machine ended, before or while it waits', async () => {
    const console = new Console(quiet)
    const waiting = console.expect('x')
    console.output(bytes('last words'))
    console.finish()
    await expect(waiting).rejects.toThrow(GuestError)
    await expect(console.expect(/y/)).rejects.toThrow('the machine ended before /y/ came')
    expect((await console.expect('last')).text).toBe('last')
  })

  it('is one at a time', async () => {
    const console = new Console(quiet)
    const first = console.expect('a')
    await expect(console.expect('b')).rejects.toThrow('another one is waiting')
    console.output(bytes('a'))
    await first
  })
})

describe('the stream', () => {
  it('gives every byte and ends with the machine', async () => {
    const console = new Console(quiet)
    console.output(Uint8Array.of(0xff, 0))
    console.output(bytes('x'))
    console.finish()
    console.output(bytes('too late'))
    const read: Buffer[] = []
    for await (const chunk of console) read.push(chunk)
    expect(Buffer.concat(read)).toEqual(Buffer.from([0xff, 0, 0x78]))
  })

  it('holds a writer back until the guest has read', async () => {
    const given: string[] = []
    let ready = true
    const console = new Console(chunk => {
      given.push(Buffer.from(chunk).toString())
      return ready
    })
    const write = (text: string) => new Promise<void>(resolve => console.write(text, () => resolve()))
    await write('a')
    ready = false
    let done = false
    const held = write('b').then(() => {
      done = true
    })
    await new Promise(resolve => setImmediate(resolve))
    expect([given, done]).toEqual([['a', 'b'], false])
    console.drain()
    await held
  })

  it('drops what a flooding guest writes while nobody reads, and counts it', () => {
    const console = new Console(quiet)
    const piece = new Uint8Array(1 << 20)
    for (let i = 0; i < 20; i++) console.output(piece)
    expect(console.readableLength).toBe(16 << 20)
    expect(console.dropped).toBe(4 << 20)
  })
})
