import { Duplex } from 'node:stream'
import { GuestError, TimeoutError } from '../errors.js'

export interface ExpectOptions {
  /** Milliseconds. Default: 30 000. */
  readonly timeout?: number
}

export interface ExpectMatch {
  /** What came before the match and after the match before. */
  readonly before: string
  readonly text: string
  /** Capture groups of the pattern. */
  readonly groups: readonly (string | undefined)[]
}

interface Expectation {
  readonly pattern: string | RegExp
  resolve(match: ExpectMatch): void
  reject(error: Error): void
}

/** Text kept for `expect`: more than that without a match is a flood. */
const KEPT_TEXT = 1 << 20
/** Output kept for a reader that does not read: what comes then is dropped, for the guest may write for ever. */
const KEPT_OUTPUT = 16 << 20
/** Above this much output that a reader has not taken, the guest waits, where its device can. */
const OUTPUT_HIGH_WATER = 1 << 20
const TAIL_LINES = 20
/** In reports: a Linux kernel that panics says why before its call trace. */
const REPORT_LINES = 60
/** The last output, kept for reports and for those that come later. */
const KEPT_RECENT = 16 << 10

export interface ConsoleOptions {
  /** The guest may write again, after `output` returned false. */
  readonly goOn?: () => void
  /** Tells the guest the size of the terminal. */
  readonly resize?: (columns: number, rows: number) => void
}

/**
 * A console of the guest. Readable: what the guest writes; writable: what it reads. `expect` follows the same output
 * and is independent of who else reads it.
 */
export class Console extends Duplex {
  readonly #input: (bytes: Uint8Array) => boolean
  readonly #options: ConsoleOptions
  readonly #decoder = new TextDecoder()
  readonly #watchers = new Set<(bytes: Uint8Array) => void>()
  #recent: Uint8Array[] = []
  #recentLength = 0
  #drained: (() => void) | undefined
  #text = ''
  #expectation: Expectation | undefined
  #ended = false
  /** Bytes dropped because nobody read them. */
  dropped = 0

  /** @param input gives bytes to the guest; returns false where `drain` tells when to go on */
  constructor(input: (bytes: Uint8Array) => boolean, options: ConsoleOptions = {}) {
    super({ allowHalfOpen: true, emitClose: true })
    // As many as are attached to it, and wait to type.
    this.setMaxListeners(0)
    this.#input = input
    this.#options = options
    // Nobody is waited for who does not read any more.
    this.on('removeListener', () => !this.#hasReader && this.#options.goOn?.())
  }

  /**
   * Tells the guest how large the terminal is that shows its console; 0 where nobody knows. A serial console has no way to.
   */
  resize(columns: number, rows: number): void {
    this.#options.resize?.(columns, rows)
  }

  /** @internal The guest wrote. False: who reads it is behind, `goOn` tells when to go on. */
  output(bytes: Uint8Array): boolean {
    if (this.#ended) return true
    if (this.readableLength + bytes.length > KEPT_OUTPUT) this.dropped += bytes.length
    else this.push(bytes)
    this.#keep(bytes)
    for (const watcher of this.#watchers) watcher(bytes)
    this.#text = (this.#text + this.#decoder.decode(bytes, { stream: true })).slice(-KEPT_TEXT)
    this.#match()
    return !this.#hasReader || this.readableLength < OUTPUT_HIGH_WATER
  }

  /** @internal The guest has read what was held back. */
  drain(): void {
    const drained = this.#drained
    this.#drained = undefined
    drained?.()
  }

  /** @internal There will be no more output. */
  finish(): void {
    if (this.#ended) return
    this.#ended = true
    this.push(null)
    this.drain()
    this.#expectation?.reject(this.#endedError(this.#expectation.pattern))
  }

  /**
   * Waits until the output since the last match has `pattern` in it, and takes the output up to its end.
   * @throws {TimeoutError} it did not come in time; the message shows the last lines
   * @throws {GuestError} the machine ended before
   */
  expect(pattern: string | RegExp, { timeout = 30_000 }: ExpectOptions = {}): Promise<ExpectMatch> {
    if (this.#expectation) return Promise.reject(new Error('console.expect: another one is waiting'))
    return new Promise((resolve, reject) => {
      const settle = () => {
        clearTimeout(timer)
        this.#expectation = undefined
      }
      const timer = setTimeout(() => {
        settle()
        reject(new TimeoutError(`console: ${show(pattern)} did not come within ${timeout / 1000} s`, this.tail()))
      }, timeout)
      this.#expectation = {
        pattern,
        resolve(match) {
          settle()
          resolve(match)
        },
        reject(error) {
          settle()
          reject(error)
        },
      }
      this.#match()
      if (this.#ended) this.#expectation?.reject(this.#endedError(pattern))
    })
  }

  /** Tells `watcher` of all output from now on, whoever else reads it. Returns what ends that. */
  watch(watcher: (bytes: Uint8Array) => void): () => void {
    this.#watchers.add(watcher)
    return () => this.#watchers.delete(watcher)
  }

  /** The last output as it came, 16 KiB of it at most. */
  recent(): Uint8Array {
    return new Uint8Array(Buffer.concat(this.#recent)).subarray(-KEPT_RECENT)
  }

  /** The last lines of output, whether an `expect` has taken them or not. */
  lastLines(): string {
    return lastLines(Buffer.from(this.recent()).toString(), REPORT_LINES)
  }

  /** Takes the output that no `expect` has taken. */
  takeText(): string {
    const text = this.#text
    this.#text = ''
    return text
  }

  /** The last lines of output that no `expect` has taken. */
  tail(): string {
    return lastLines(this.#text, TAIL_LINES)
  }

  override _read(): void {
    this.#options.goOn?.()
  }

  override _write(chunk: Uint8Array, _encoding: BufferEncoding, done: () => void): void {
    if (this.#ended || this.#input(chunk)) done()
    else this.#drained = done
  }

  #keep(bytes: Uint8Array): void {
    this.#recent.push(bytes)
    this.#recentLength += bytes.length
    if (this.#recentLength < 2 * KEPT_RECENT) return
    this.#recent = [this.recent()]
    this.#recentLength = KEPT_RECENT
  }

  get #hasReader(): boolean {
    return this.listenerCount('data') > 0 || this.listenerCount('readable') > 0
  }

  #match(): void {
    const expectation = this.#expectation
    if (!expectation) return
    const found = find(this.#text, expectation.pattern)
    if (!found) return
    this.#text = this.#text.slice(found.before.length + found.text.length)
    expectation.resolve(found)
  }

  #endedError(pattern: string | RegExp): GuestError {
    return new GuestError(`console: the machine ended before ${show(pattern)} came`, this.tail())
  }
}

function lastLines(text: string, most: number): string {
  return text.trimEnd().split('\n').slice(-most).join('\n')
}

function find(text: string, pattern: string | RegExp): ExpectMatch | undefined {
  if (typeof pattern === 'string') {
    const at = text.indexOf(pattern)
    return at < 0 ? undefined : { before: text.slice(0, at), text: pattern, groups: [] }
  }
  const match = new RegExp(pattern.source, pattern.flags.replace(/[gy]/g, '')).exec(text)
  return match ? { before: text.slice(0, match.index), text: match[0], groups: match.slice(1) } : undefined
}

function show(pattern: string | RegExp): string {
  return typeof pattern === 'string' ? JSON.stringify(pattern) : String(pattern)
}
