import { resolve } from 'node:path'
import { expect, it } from 'vitest'
import { parseDisk } from '../../../lib/cli/disk-option.js'
import { parseDisks } from '../../../lib/config/disks.js'

it('fills in the defaults, and makes paths absolute', () => {
  expect(parseDisks(undefined)).toEqual([])
  expect(parseDisks([{ path: 'a.img' }, { path: '/b', snapshot: true, serial: 'x' }])).toEqual([
    { path: resolve('a.img'), readonly: false, snapshot: false, overlay: null, direct: false, serial: 'disk0' },
    { path: '/b', readonly: false, snapshot: true, overlay: null, direct: false, serial: 'x' },
  ])
})

it.each([
  ['disks', 'a.img', 'it is no list'],
  ['disks', Array.from({ length: 27 }, () => ({ path: 'a' })), 'too many'],
  ['disks[0]', ['a.img'], 'it is no object'],
  ['disks[1].path', [{ path: 'a' }, {}], 'it is no path'],
  ['disks[0].path', [{ path: 'a\0b' }], 'it is no path'],
  ['disks[0].size', [{ path: 'a', size: 1 }], 'no such field'],
  ['disks[0].readonly', [{ path: 'a', readonly: 'yes' }], 'neither true nor false'],
  ['disks[0]', [{ path: 'a', readonly: true, snapshot: true }], 'do not go together'],
  ['disks[0]', [{ path: 'a', overlay: 'b', snapshot: true }], 'do not go together'],
  ['disks[0].overlay', [{ path: 'a', overlay: 7 }], 'it is no path'],
  ['disks[0].serial', [{ path: 'a', serial: 'x'.repeat(21) }], 'no serial number'],
  ['disks[0].serial', [{ path: 'a', serial: 'ä' }], 'no serial number'],
])('%s of %j is refused', (field, value, problem) => {
  expect(() => parseDisks(value)).toThrow(expect.objectContaining({ name: 'ConfigError', field }))
  expect(() => parseDisks(value)).toThrow(problem)
})

it('on the command line a disk is its path and words behind it', () => {
  expect(parseDisk('a.img')).toEqual({ path: 'a.img' })
  expect(parseDisk('a,,b.img,snapshot,direct,overlay=o.img,serial=S 1')).toEqual({
    path: 'a,b.img',
    snapshot: true,
    direct: true,
    overlay: 'o.img',
    serial: 'S 1',
  })
  expect(() => parseDisk('a.img,snap')).toThrow(
    '"snap" is none of snapshot, readonly, direct, overlay=FILE, serial=TEXT.',
  )
  expect(() => parseDisk('a.img,')).toThrow('"" is none of')
})
