import { Duplex, PassThrough, Readable, Writable } from 'node:stream'
import { expect, test } from 'vitest'
import { GuestError, TimeoutError } from '../../../lib/errors.js'
import type { EmulatorEnd, RunningEmulator } from '../../../lib/lab/emulator.js'
import { Lab, type LabOptions } from '../../../lib/lab/lab.js'

/** A guest's side of the channels, driven by the test. */
class FakeEmulator implements RunningEmulator {
  readonly console = new PassThrough()
  readonly stdout = new PassThrough()
  readonly stderr = new PassThrough()
  readonly heard: string[] = []
  killed = 0
  readonly control = new PassThrough()
  readonly signals = this.#port()
  readonly read: string[] = []
  readonly stdin = this.#port(this.read)
  #end!: (end: EmulatorEnd) => void
  readonly ended = new Promise<EmulatorEnd>(resolve => {
    this.#end = resolve
  })

  #port(into: string[] = this.heard): Duplex {
    return new Duplex({
      read() {},
      write(bytes, _encoding, done) {
        into.push(String(bytes))
        done()
      },
    })
  }

  tell(line: string): void {
    if (!this.control.writableEnded) this.control.write(`${line}\n`)
  }

  /** As a process does: its ends of the sockets close, then it is gone. */
  end(end: Partial<EmulatorEnd> = {}): void {
    for (const stream of [this.console, this.control, this.stdout, this.stderr]) stream.end()
    this.#end({ exitCode: 0, signal: null, message: '', ...end })
  }

  kill(): void {
    if (this.killed++ === 0) this.end({ exitCode: null, signal: 'SIGKILL' })
  }
}

function labOver(options: LabOptions = {}): { guest: FakeEmulator; lab: Lab } {
  const guest = new FakeEmulator()
  return { guest, lab: new Lab(guest, 'QEMU', options) }
}

const settled = () => new Promise(resolve => setTimeout(resolve, 20))

test('a command that ends: its code, its output whole, the emulator gone', async () => {
  const { guest, lab } = labOver()
  guest.tell('ready')
  guest.stdout.write('out é'.repeat(1000))
  guest.stderr.write('err')
  guest.tell('exit 7')
  const result = await lab.wait()
  expect(result).toMatchObject({ exitCode: 7, stdout: 'out é'.repeat(1000), stderr: 'err' })
  expect(result.bootSeconds).toBeGreaterThan(0)
  expect(result.seconds).toBeGreaterThanOrEqual(result.bootSeconds)
  expect(guest.killed).toBe(1)
})

test('output goes to the given streams as it comes, slow ones too, and standard input goes in', async () => {
  const pieces: string[] = []
  const slow = new Writable({
    highWaterMark: 4,
    write(bytes, _encoding, done) {
      pieces.push(String(bytes))
      setTimeout(done, 10)
    },
  })
  const { guest, lab } = labOver({ stdout: slow, stdin: Readable.from(['typed']) })
  guest.tell('ready')
  guest.stdout.write('first ')
  await settled()
  expect(pieces).toEqual(['first '])
  expect(guest.read).toEqual(['typed'])
  for (const word of ['second ', 'third ', 'fourth']) guest.stdout.write(word)
  guest.tell('exit 0')
  expect((await lab.wait()).stdout).toBe('')
  expect(pieces.join('')).toBe('first second third fourth')
  expect(slow.writableEnded).toBe(false)
})

test('signals reach a command that runs, and only that', async () => {
  const { guest, lab } = labOver()
  expect(lab.signal('SIGINT')).toBe(false)
  guest.tell('ready')
  await settled()
  expect(lab.signal('SIGINT')).toBe(true)
  expect(guest.heard).toEqual(['INT\n'])
  guest.tell('exit 130')
  expect((await lab.wait()).exitCode).toBe(130)
  expect(lab.signal('SIGINT')).toBe(false)
})

test('a guest that is stuck is ended at the timeout, its last console lines shown', async () => {
  const { guest, lab } = labOver({ timeout: 0.05 })
  guest.console.write('[ 1.0] last words\r\n')
  const error = await lab.wait().catch(error => error)
  expect(error).toBeInstanceOf(TimeoutError)
  expect(error.message).toBe('the lab did not come up within 0.05 s\n[ 1.0] last words')
  expect(guest.killed).toBe(1)
})

test('an emulator that dies is told of with the reason: a panic, or what it said', async () => {
  const panicked = labOver()
  panicked.guest.console.write('[ 2.0] Kernel panic - not syncing: Oops\r\nRIP: 0010\r\n')
  await settled()
  panicked.guest.end()
  const panic = await panicked.lab.wait().catch(error => error)
  expect(panic).toBeInstanceOf(GuestError)
  expect(panic.message).toMatch(/QEMU ended \(with code 0\) before the command did: .*not syncing: Oops/)
  expect(panic.report).toContain('RIP: 0010')

  const failed = labOver()
  failed.guest.end({ exitCode: 1, message: 'qemu: cannot allocate memory' })
  await expect(failed.lab.wait()).rejects.toThrow(/with code 1\) .*: qemu: cannot allocate memory/)
})

test('a guest cannot fake an end with nonsense on the control channel', async () => {
  const { guest, lab } = labOver()
  guest.tell('exit 9999')
  guest.tell('x'.repeat(100_000))
  guest.tell('exit -1')
  guest.tell('exit 3')
  guest.tell('exit 4')
  expect((await lab.wait()).exitCode).toBe(3)
})

test('an abort or a reader that went away ends the lab with that reason', async () => {
  const abort = new AbortController()
  const aborted = labOver({ abort: abort.signal })
  abort.abort(new Error('enough'))
  await expect(aborted.lab.wait()).rejects.toThrow('enough')

  const gone = new Writable({ write: (_bytes, _encoding, done) => done(new Error('EPIPE')) })
  const unread = labOver({ stdout: gone })
  unread.guest.stdout.write('x')
  await expect(unread.lab.wait()).rejects.toThrow('EPIPE')
  expect(unread.guest.killed).toBeGreaterThan(0)
})
