import { InvalidArgumentError } from 'commander'
import type { VsockOptions } from '../index.js'
import { splitWords } from './comma-words.js'

/** `SOCKET[,cid=N]`; a comma in the path is written twice. */
export function parseVsock(value: string): VsockOptions {
  const [path = '', ...words] = splitWords(value)
  const cids = words.map(word => {
    const [, digits] = /^cid=(\d{1,10})$/.exec(word) ?? []
    if (digits === undefined) throw new InvalidArgumentError(`${JSON.stringify(word)} is not cid=NUMBER.`)
    return Number(digits)
  })
  return { path, cid: cids.at(-1) }
}
