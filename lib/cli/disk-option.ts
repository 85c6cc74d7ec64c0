import { InvalidArgumentError } from 'commander'
import type { DiskOptions } from '../index.js'
import { splitWords } from './comma-words.js'

const FLAGS = ['snapshot', 'readonly', 'direct'] as const
const WORDS = [...FLAGS, 'overlay=FILE', 'serial=TEXT'].join(', ')

/** `IMAGE[,flag...][,overlay=FILE][,serial=TEXT]`, as QEMU's `-drive` separates them; a comma in a path is written twice. */
export function parseDisk(value: string): DiskOptions {
  const [path = '', ...words] = splitWords(value)
  const disk: Record<string, string | boolean> = { path }
  for (const word of words) {
    if (FLAGS.some(flag => flag === word)) disk[word] = true
    else {
      const [, key, text] = /^(overlay|serial)=(.*)$/.exec(word) ?? []
      if (key === undefined) throw new InvalidArgumentError(`${JSON.stringify(word)} is none of ${WORDS}.`)
      disk[key] = text!
    }
  }
  return disk as unknown as DiskOptions
}
