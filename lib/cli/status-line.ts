import type { WriteStream } from 'node:tty'

const FRAMES = '|/-\\'

/**
 * A live line on a terminal that tells what is being done and since when. Where the stream is no terminal, each new
 * status is a line of its own; without a stream nothing is shown.
 */
export class StatusLine {
  readonly #stream: WriteStream | NodeJS.WriteStream | undefined
  readonly #started = performance.now()
  readonly #timer: NodeJS.Timeout | undefined
  #text = ''
  #frame = 0

  constructor(stream: NodeJS.WriteStream | undefined) {
    this.#stream = stream
    if (stream?.isTTY) {
      this.#timer = setInterval(() => this.#draw(), 200)
      this.#timer.unref()
    }
  }

  /** What is being done from now on. */
  show(text: string): void {
    if (text === this.#text) return
    this.#text = text
    if (this.#timer) this.#draw()
    else this.#stream?.write(`[${this.#seconds()} s] ${text}\n`)
  }

  /** A line that stays, on standard output, above the live line. */
  print(text: string): void {
    this.#clear()
    process.stdout.write(`${text}\n`)
    if (this.#timer) this.#draw()
  }

  close(): void {
    this.#clear()
    clearInterval(this.#timer)
    this.#text = ''
  }

  #clear(): void {
    if (this.#timer) this.#stream?.write('\r\x1b[K')
  }

  #draw(): void {
    if (!this.#text) return
    this.#frame = (this.#frame + 1) % FRAMES.length
    const width = this.#stream?.columns ?? 80
    const line = `${FRAMES[this.#frame]} ${this.#seconds()} s  ${this.#text}`
    this.#stream?.write(`\r\x1b[K${line.slice(0, width - 1)}`)
  }

  #seconds(): string {
    return ((performance.now() - this.#started) / 1000).toFixed(0)
  }
}
