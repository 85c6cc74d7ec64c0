import { expect, it } from 'vitest'
import { LineEditor } from '../../../lib/cli/line-editor.js'

/** Feeds chunks until the line ends: what it was, what is left, what was shown. */
function type(...chunks: string[]) {
  const editor = new LineEditor()
  let shown = ''
  for (const chunk of chunks) {
    const { echo, end } = editor.feed(Buffer.from(chunk))
    shown += echo
    if (end) return { text: end.text, rest: Buffer.from(end.rest).toString(), shown }
  }
  return { shown }
}

it.each<[string, string[], { text?: string | undefined; rest?: string; shown: string }]>([
  ['a line', ['snap\r'], { text: 'snap', rest: '', shown: 'snap' }],
  ['a line feed ends it too, and what follows is left', ['a\nls\r'], { text: 'a', rest: 'ls\r', shown: 'a' }],
  ['in pieces, within a character', ['\u00e4'], { shown: '\u00e4' }],
  ['Backspace', ['ab\x7fc\r'], { text: 'ac', rest: '', shown: 'ab\b \bc' }],
  ['Backspace at the start', ['\x7f\ba\r'], { text: 'a', rest: '', shown: 'a' }],
  ['Backspace takes a character, not a byte', ['\u{1f600}\x7fa\r'], { text: 'a', rest: '', shown: '\u{1f600}\b \ba' }],
  ['Ctrl-U', ['abc\x15d\r'], { text: 'd', rest: '', shown: `abc${'\b \b'.repeat(3)}d` }],
  [
    'Ctrl-W, to the last part of a path',
    ['a/bc\x17d\r'],
    { text: 'a/d', rest: '', shown: `a/bc${'\b \b'.repeat(2)}d` },
  ],
  ['Ctrl-C', ['ab\x03c'], { text: undefined, rest: 'c', shown: 'ab' }],
  ['a cursor key is an Esc', ['ab\x1b[A'], { text: undefined, rest: '', shown: 'ab' }],
  ['other control characters', ['a\x01\x00\tb\r'], { text: 'ab', rest: '', shown: 'ab' }],
])('%s', (_name, chunks, expected) => {
  expect(type(...chunks)).toEqual(expected)
})

it('takes a character that comes in two chunks', () => {
  const editor = new LineEditor()
  expect(editor.feed(Uint8Array.of(0xc3))).toEqual({ echo: '' })
  expect(editor.feed(Uint8Array.of(0xa4))).toEqual({ echo: '\u00e4' })
})
