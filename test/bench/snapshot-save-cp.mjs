/** Baseline of snapshot-save: the same bytes by cp, zero pages left out, and seen on the disk, as a snapshot is. */
import { execFileSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { checksum } from './checksum.mjs'

const directory = process.argv[2]
const copy = join(directory, 'memory.copy')
const start = performance.now()
execFileSync('cp', ['--sparse=always', '--reflink=never', join(directory, 'memory.dense'), copy])
execFileSync('sync', [copy, directory])
const value = performance.now() - start
const check = checksum(copy)
rmSync(copy)
console.log(JSON.stringify({ value, check }))
