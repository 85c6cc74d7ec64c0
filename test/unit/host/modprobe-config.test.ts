import { expect, it } from 'vitest'
import { CONFIG_FILE, optionPlaces, withOption } from '../../../lib/host/modprobe-config.js'
import { host } from './fake-host.js'

const places = (files: Record<string, string>) =>
  optionPlaces(host({ files }), 'kvm_amd', 'nested').map(({ place, value }) => [place, value])

it('finds an option in any of the directories, whichever way the module is spelled', () => {
  const files = {
    '/etc/modprobe.d/kvm.conf': '# options kvm_amd nested=9\n\noptions kvm-amd npt=1 nested=0\n',
    '/usr/lib/modprobe.d/dist.conf': 'options kvm_amd \\\n  nested\noptions kvm_intel nested=1\n',
    '/etc/modprobe.d/notes.txt': 'options kvm_amd nested=1\n',
  }
  expect(places(files)).toEqual([
    ['/etc/modprobe.d/kvm.conf:3', '0'],
    ['/usr/lib/modprobe.d/dist.conf:1', '1'],
  ])
})

it('knows that a file hides those of its name further down, and leaves out its own', () => {
  const line = 'options kvm_amd nested=1\n'
  const files = {
    '/etc/modprobe.d/kvm.conf': '',
    '/lib/modprobe.d/kvm.conf': line,
    '/run/modprobe.d/x.conf': line,
    [CONFIG_FILE]: line,
  }
  expect(places(files)).toEqual([['/run/modprobe.d/x.conf:1', '1']])
})

it("reads the kernel's command line", () => {
  expect(places({ '/proc/cmdline': 'quiet kvm-amd.nested=0 kvm_intel.nested=1\n' })).toEqual([
    ["the kernel's command line", '0'],
  ])
})

it('takes the last of several values', () => {
  expect(places({ '/etc/modprobe.d/a.conf': 'options kvm_amd nested=0 nested=1' })[0]![1]).toBe('1')
})

it('writes a file, changes its own line only, and then changes nothing', () => {
  const first = withOption(undefined, 'kvm_amd', 'nested', '1')
  expect(first).toMatch(/^# Written by nested-kvm.*\noptions kvm_amd nested=1\n$/)
  expect(withOption(first, 'kvm_amd', 'nested', '1')).toBe(first)
  const mine = '# mine\noptions kvm_intel nested=1\noptions kvm-amd npt=0 nested=1 vls=0\n'
  expect(withOption(mine, 'kvm_amd', 'nested', '0')).toBe(mine.replace('nested=1 vls', 'nested=0 vls'))
  const other = 'options kvm_intel nested=1'
  expect(withOption(other, 'kvm_amd', 'nested', '1')).toBe(`${other}\noptions kvm_amd nested=1\n`)
})
