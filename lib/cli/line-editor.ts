export interface LineEnd {
  /** Undefined where the line was given up. */
  readonly text: string | undefined
  /** What was typed after its end. */
  readonly rest: Uint8Array
}

/** A line typed at a terminal in raw mode: Backspace, Ctrl-W and Ctrl-U take back; Enter ends it, Esc, Ctrl-C and Ctrl-G give it up. */
export class LineEditor {
  readonly #decoder = new TextDecoder()
  #text = ''

  /** `echo` is what the terminal is to show for it. */
  feed(chunk: Uint8Array): { echo: string; end?: LineEnd } {
    let echo = ''
    const finish = (at: number, text: string | undefined) => ({ echo, end: { text, rest: chunk.subarray(at + 1) } })
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at]!
      switch (byte) {
        case 0x0d:
        case 0x0a:
          return finish(at, this.#text)
        case 0x03:
        case 0x07:
          return finish(at, undefined)
        case 0x1b:
          // A cursor key is an Esc with more after it, in the same chunk: that is for nobody.
          return finish(chunk.length, undefined)
        case 0x7f:
        case 0x08:
          echo += this.#erase(1)
          break
        case 0x15:
          echo += this.#erase(Number.POSITIVE_INFINITY)
          break
        case 0x17:
          echo += this.#erase([.../[^/\s]*[/\s]*$/.exec(this.#text)![0]].length)
          break
        default: {
          if (byte < 0x20) break
          const typed = this.#decoder.decode(chunk.subarray(at, at + 1), { stream: true })
          this.#text += typed
          echo += typed
        }
      }
    }
    return { echo }
  }

  #erase(count: number): string {
    const characters = [...this.#text]
    const gone = characters.splice(Math.max(0, characters.length - count))
    this.#text = characters.join('')
    return '\b \b'.repeat(gone.length)
  }
}
