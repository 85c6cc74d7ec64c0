/** Far more than a screen of messages, and little enough to keep for every lab. */
const KEPT_CHARACTERS = 64 << 10

/** The end of a guest's console, for diagnostics. What a hostile guest prints cannot reach the terminal as control codes. */
export class ConsoleLog {
  #text = ''

  add(bytes: Uint8Array): void {
    const text = this.#text + Buffer.from(bytes).toString('latin1')
    this.#text = text.length > 2 * KEPT_CHARACTERS ? text.slice(-KEPT_CHARACTERS) : text
  }

  /** The last `count` lines that have something in them, without control characters and escape sequences. */
  lines(count: number): string[] {
    const lines = this.#text
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
      .replaceAll(/\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[^[])/g, '')
      .split(/[\r\n]+/)
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
      .map(line => line.replaceAll(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, '').trimEnd())
    return lines.filter(line => line !== '').slice(-count)
  }

  /** The first line of the kernel's last words, if it had any. */
  panic(): string | undefined {
    return this.lines(Number.POSITIVE_INFINITY).find(line => line.includes('Kernel panic - not syncing'))
  }
}
