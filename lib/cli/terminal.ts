import type { Duplex } from 'node:stream'
import { LineEditor } from './line-editor.js'

const ctrlA = 0x01

/** What the escape keys ask for. */
export type TerminalKey = 'leave' | 'save' | 'help'

/** By letter; its upper case does the same. */
const keys: Readonly<Record<string, TerminalKey>> = { x: 'leave', s: 'save', h: 'help', '?': 'help' }

export const terminalHelp = [
  'Ctrl-A x       stop the machine and leave',
  'Ctrl-A s       save a snapshot of the machine, which then goes on',
  'Ctrl-A h       this help',
  'Ctrl-A Ctrl-A  send Ctrl-A to the guest',
]

/**
 * Splits what is typed into bytes for the guest and keys for us. Ctrl-A is the escape; it may be the last byte of one
 * chunk and its key the first of the next. An unknown key after it is dropped.
 */
export class EscapeParser {
  #escaped = false

  /** Returns the bytes and the keys in the order typed. */
  parse(chunk: Uint8Array): (Uint8Array | TerminalKey)[] {
    const parts: (Uint8Array | TerminalKey)[] = []
    let start = 0
    const flush = (end: number) => {
      if (end > start) parts.push(chunk.subarray(start, end))
    }
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at]
      if (this.#escaped) {
        this.#escaped = false
        // A doubled Ctrl-A goes to the guest: what follows starts with the second one.
        start = byte === ctrlA ? at : at + 1
        const key = keys[String.fromCharCode(byte!).toLowerCase()]
        if (key) parts.push(key)
      } else if (byte === ctrlA) {
        flush(at)
        start = at + 1
        this.#escaped = true
      }
    }
    flush(chunk.length)
    return parts
  }
}

/** Standard input as the terminal needs it; a real one is `process.stdin`. */
export interface TerminalInput extends NodeJS.ReadableStream {
  readonly isTTY?: boolean
  setRawMode?(raw: boolean): unknown
}

export interface TerminalOptions {
  readonly input: TerminalInput
  readonly output: NodeJS.WritableStream
  /** The guest's console. */
  readonly console: Duplex
  onKey(key: TerminalKey): void
}

/**
 * Connects a terminal to a guest's console. A real terminal is put into raw mode, so that every key reaches the guest,
 * and is restored by `close()` and, whatever happens, when the process exits. Input that is no terminal is forwarded byte
 * for byte, without escape keys; its end is not the machine's.
 */
export class Terminal {
  readonly #options: TerminalOptions
  readonly #parser = new EscapeParser()
  readonly #raw: boolean
  #closed = false
  #lineOpen = false
  /** A question to the one at the terminal: what is typed is its answer. */
  #question: { readonly editor: LineEditor; resolve(answer: string | undefined): void } | undefined

  constructor(options: TerminalOptions) {
    this.#options = options
    const { input, output, console } = options
    this.#raw = input.isTTY === true && input.setRawMode !== undefined
    if (this.#raw) {
      process.on('exit', this.#restore)
      // The shell puts the terminal into its own mode while we are stopped.
      process.on('SIGCONT', this.#enterRaw)
      this.#enterRaw()
    }
    input.on('data', this.#onData)
    // A terminal that is gone reads as an error. That is the end of input, not of the machine; SIGHUP follows it.
    input.on('error', () => {})
    input.resume()
    console.on('data', this.#onOutput)
    console.pipe(output, { end: false })
  }

  /** A line from us between the guest's; right in raw mode too. */
  writeLines(lines: readonly string[]): void {
    const newline = this.#raw && !this.#closed ? '\r\n' : '\n'
    this.#options.output.write(newline + lines.map(line => line + newline).join(''))
  }

  /** Asks for a line, while the guest's output waits. Undefined where none was given (Esc, Ctrl-C), or none can be asked for. */
  ask(prompt: string): Promise<string | undefined> {
    const { console, output } = this.#options
    if (!this.#raw || this.#closed || this.#question) return Promise.resolve(undefined)
    console.pause()
    output.write(`${this.#lineOpen ? '\r\n' : ''}${prompt}`)
    this.#lineOpen = false
    return new Promise(resolve => {
      this.#question = { editor: new LineEditor(), resolve }
    })
  }

  /** Writes what the console still holds, disconnects it and restores the terminal. */
  close(): void {
    if (this.#closed) return
    const { input, output, console } = this.#options
    this.#answer(undefined)
    console.unpipe(output)
    // Each chunk read is also shown to #onOutput.
    for (let chunk = console.read(); chunk !== null; chunk = console.read()) output.write(chunk)
    console.off('data', this.#onOutput)
    // What the shell or we say next starts on a line of its own.
    if (this.#raw && this.#lineOpen) output.write('\r\n')
    this.#closed = true
    input.off('data', this.#onData)
    input.pause()
    this.#restore()
    process.off('exit', this.#restore)
    process.off('SIGCONT', this.#enterRaw)
  }

  readonly #enterRaw = (): void => {
    this.#options.input.setRawMode?.(true)
  }

  readonly #restore = (): void => {
    if (!this.#raw) return
    try {
      this.#options.input.setRawMode?.(false)
    } catch {
      // The terminal is gone (its window was closed): nothing to restore.
    }
  }

  readonly #onOutput = (chunk: Uint8Array): void => {
    this.#lineOpen = chunk[chunk.length - 1] !== 0x0a
  }

  readonly #onData = (data: Uint8Array | string): void => {
    const chunk = typeof data === 'string' ? Buffer.from(data) : data
    if (!this.#raw) {
      this.#send(chunk)
      return
    }
    if (this.#question) {
      this.#edit(chunk)
      return
    }
    for (const part of this.#parser.parse(chunk)) {
      if (typeof part === 'string') this.#options.onKey(part)
      // A key may have asked something: what was typed after it, in the same chunk, is the answer.
      else if (this.#question) this.#edit(part)
      else this.#send(part)
    }
  }

  #edit(chunk: Uint8Array): void {
    const { echo, end } = this.#question!.editor.feed(chunk)
    this.#options.output.write(echo)
    if (!end) return
    this.#answer(end.text)
    if (end.rest.length > 0) this.#onData(end.rest)
  }

  #answer(text: string | undefined): void {
    const question = this.#question
    if (!question) return
    this.#question = undefined
    const { output, console } = this.#options
    output.write('\r\n')
    console.resume()
    question.resolve(text)
  }

  #send(bytes: Uint8Array): void {
    const { input, console } = this.#options
    if (!console.writable || console.write(bytes) || this.#raw) return
    // A file or a pipe is read no faster than the guest takes it. A terminal is read on: Ctrl-A x must always work.
    input.pause()
    console.once('drain', () => {
      if (!this.#closed) input.resume()
    })
  }
}
