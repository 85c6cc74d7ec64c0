import { Duplex, PassThrough } from 'node:stream'
import { afterEach, describe, expect, it } from 'vitest'
import { EscapeParser, Terminal, type TerminalInput, type TerminalKey } from '../../../lib/cli/terminal.js'

/** What a sequence of chunks comes out as: text for the guest, `<key>` for us. */
function parse(...chunks: string[]): string {
  const parser = new EscapeParser()
  return chunks
    .flatMap(chunk => parser.parse(Buffer.from(chunk, 'latin1')))
    .map(part => (typeof part === 'string' ? `<${part}>` : Buffer.from(part).toString('latin1')))
    .join('')
}

describe('EscapeParser', () => {
  it.each<[string, string[], string]>([
    ['plain text', ['hello\r'], 'hello\r'],
    ['Ctrl-C and Ctrl-Z are the guest’s', ['\x03\x1a'], '\x03\x1a'],
    ['leave', ['ab\x01xcd'], 'ab<leave>cd'],
    ['help by h and ?', ['\x01h\x01?'], '<help><help>'],
    ['save', ['a\x01sb'], 'a<save>b'],
    ['upper case too', ['\x01X\x01H\x01S'], '<leave><help><save>'],
    ['a doubled Ctrl-A sends one', ['a\x01\x01b'], 'a\x01b'],
    ['three send one and wait for a key', ['\x01\x01\x01', 'x'], '\x01<leave>'],
    ['x after a doubled one is text', ['\x01\x01x'], '\x01x'],
    ['split between chunks', ['a\x01', 'xb'], 'a<leave>b'],
    ['doubled, split between chunks', ['\x01', '\x01', 'x'], '\x01x'],
    ['an unknown key is dropped', ['a\x01qb'], 'ab'],
    ['an empty chunk changes nothing', ['\x01', '', 'h'], '<help>'],
    ['bytes that are no UTF-8', ['\xff\xfe\x01h\x80'], '\xff\xfe<help>\x80'],
  ])('%s', (_name, chunks, expected) => {
    expect(parse(...chunks)).toBe(expected)
  })
})

class FakeInput extends PassThrough {
  isTTY = true
  readonly modes: boolean[] = []
  setRawMode(raw: boolean) {
    this.modes.push(raw)
  }
}

/** A guest's console: keeps what is typed, says what it is told to. */
class FakeConsole extends Duplex {
  typed = ''
  override _read() {}
  override _write(chunk: Buffer, _encoding: string, done: () => void) {
    this.typed += chunk.toString('latin1')
    done()
  }
}

const tick = () => new Promise(resolve => setImmediate(resolve))

describe('Terminal', () => {
  const open: Terminal[] = []
  afterEach(() => {
    for (const terminal of open.splice(0)) terminal.close()
  })

  function attach(input: TerminalInput) {
    const guest = new FakeConsole()
    const output = new PassThrough()
    const keys: TerminalKey[] = []
    const terminal = new Terminal({ input, output, console: guest, onKey: key => keys.push(key) })
    open.push(terminal)
    return { guest, output, keys, terminal, shown: () => String(output.read() ?? '') }
  }

  it('puts a terminal into raw mode and restores it once closed', () => {
    const input = new FakeInput()
    const before = process.listenerCount('exit')
    const { terminal } = attach(input)
    expect(input.modes).toEqual([true])
    expect(process.listenerCount('exit')).toBe(before + 1)
    terminal.close()
    terminal.close()
    expect(input.modes).toEqual([true, false])
    expect(process.listenerCount('exit')).toBe(before)
    expect(process.listenerCount('SIGCONT')).toBe(0)
  })

  it('restores the terminal when the process exits without closing', () => {
    const input = new FakeInput()
    const before = process.listeners('exit')
    attach(input)
    const added = process.listeners('exit').filter(listener => !before.includes(listener))
    for (const listener of added) listener(0)
    expect(input.modes).toEqual([true, false])
  })

  it('enters raw mode again after it was stopped', () => {
    const input = new FakeInput()
    attach(input)
    process.emit('SIGCONT', 'SIGCONT')
    expect(input.modes).toEqual([true, true])
  })

  it('carries bytes both ways and keeps the keys', async () => {
    const input = new FakeInput()
    const { guest, keys, shown } = attach(input)
    input.write('ls\r\x01h')
    guest.push('file\n')
    await tick()
    expect(guest.typed).toBe('ls\r')
    expect(keys).toEqual(['help'])
    expect(shown()).toBe('file\n')
  })

  it('forwards a pipe as it is, Ctrl-A and all, and outlives its end', async () => {
    const input = new PassThrough()
    const { guest, keys, shown } = attach(input)
    input.end('a\x01xb')
    await tick()
    await tick()
    expect(guest.typed).toBe('a\x01xb')
    expect(keys).toEqual([])
    expect(guest.writableEnded).toBe(false)
    guest.push('still here')
    await tick()
    expect(shown()).toBe('still here')
  })

  it('shows what the console still held when it closes', () => {
    const { guest, terminal, shown } = attach(new FakeInput())
    guest.push('last words\n')
    terminal.close()
    expect(shown()).toBe('last words\n')
  })

  it('leaves a real terminal at the start of a line, and other output as it is', () => {
    const raw = attach(new FakeInput())
    raw.guest.push('login: ')
    raw.terminal.close()
    expect(raw.shown()).toBe('login: \r\n')
    const plain = attach(new PassThrough())
    plain.guest.push('login: ')
    plain.terminal.close()
    expect(plain.shown()).toBe('login: ')
  })

  it('ends its own lines with a carriage return in raw mode only', () => {
    const raw = attach(new FakeInput())
    raw.terminal.writeLines(['one', 'two'])
    expect(raw.shown()).toBe('\r\none\r\ntwo\r\n')
    const plain = attach(new PassThrough())
    plain.terminal.writeLines(['one'])
    expect(plain.shown()).toBe('\none\n')
  })

  it('asks for a line while the output waits, and hands on what was typed after it', async () => {
    const input = new FakeInput()
    const guest = new FakeConsole()
    const output = new PassThrough()
    const answers: (string | undefined)[] = []
    const onKey = () => void terminal.ask('where? ').then(answer => answers.push(answer))
    const terminal = new Terminal({ input, output, console: guest, onKey })
    open.push(terminal)
    guest.push('login: ')
    await tick()
    input.write('\x01sdi')
    await tick()
    guest.push('later')
    input.write('r\rls\r')
    await tick()
    await tick()
    expect(answers).toEqual(['dir'])
    expect(guest.typed).toBe('ls\r')
    expect(String(output.read())).toBe('login: \r\nwhere? dir\r\nlater')
    input.write('\x01sx\x03')
    await tick()
    input.write('\x01s')
    await tick()
    terminal.close()
    await tick()
    expect(answers).toEqual(['dir', undefined, undefined])
    expect(await terminal.ask('again? ')).toBe(undefined)
  })

  it('survives a terminal that is gone', () => {
    const input = new FakeInput()
    const { terminal } = attach(input)
    input.emit('error', new Error('EIO'))
    input.setRawMode = () => {
      throw new Error('EIO')
    }
    expect(() => terminal.close()).not.toThrow()
  })
})
