import { expect, it } from 'vitest'
import { MENDS, type Mend, mended } from '../../../lib/lab/qemu-mends.js'

const mends: Mend[] = [
  { file: 'a.c', find: 'one;\n', replacement: 'one;\n  more;\n' },
  { file: 'a.c', find: 'two;\n', replacement: 'lock;\n  two;\n' },
  { file: 'b.c', find: 'one;\n', replacement: 'not here;\n' },
]

it('changes what stands in a file once, and nothing else', () => {
  expect(mended('a.c', 'zero;\none;\ntwo;\nthree;\n', mends)).toBe('zero;\none;\n  more;\nlock;\n  two;\nthree;\n')
  expect(mended('c.c', 'one;\n', mends)).toBe('one;\n')
})

it('refuses a source that is not the one for which it was written', () => {
  expect(() => mended('a.c', 'one;\n', mends)).toThrow('a.c has "two;\\n" nowhere')
  expect(() => mended('a.c', 'one;\ntwo;\none;\n', mends)).toThrow('a.c has "one;\\n" more than once')
  for (const { file } of MENDS) expect(() => mended(file, '')).toThrow(`${file} has`)
})
