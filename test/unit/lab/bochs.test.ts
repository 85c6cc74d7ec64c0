import { execFileSync } from 'node:child_process'
import { expect, test } from 'vitest'
import type { BochsAsset } from '../../../lib/lab/assets.js'
import { bochsConfiguration, bochsEmulator } from '../../../lib/lab/bochs.js'
import type { EmulatedMachine } from '../../../lib/lab/emulator.js'

const fast: BochsAsset = { program: '/b/bochs', version: '3.0', bios: '/b/bios', vgaBios: '/b/vga', fast: true }
const slow: BochsAsset = { ...fast, version: '2.7', fast: false }
const machine: EmulatedMachine = {
  kernel: '/k',
  initrd: Buffer.alloc(0),
  commandLine: '',
  memoryBytes: 3 * 2 ** 30,
  cpus: 2,
  shares: [],
}

/** The lines of a configuration, by their first word. */
const lines = (bochs: BochsAsset) =>
  Object.fromEntries(
    bochsConfiguration(bochs, machine)
      .split('\n')
      .map(line => line.split(/: (.*)/, 2)),
  )

test('Bochs holds at most 2 GiB itself, whatever the guest has', () => {
  expect(lines(fast).memory).toBe('guest=3072, host=2048')
})

test("the kernel is told the clock that Bochs's is", () => {
  for (const bochs of [fast, slow]) {
    const khz = Number(/ips=(\d+)/.exec(lines(bochs).cpu)![1]) / 1000
    expect(bochsEmulator(bochs).commandLine).toContain(`tsc_early_khz=${khz}`)
  }
})

test('each Bochs gets a display and the plugins that it has', () => {
  expect(lines(fast)).toMatchObject({ display_library: 'nogui', plugin_ctrl: expect.not.stringContaining('gameport') })
  expect(lines(slow)).toMatchObject({ display_library: 'term', plugin_ctrl: expect.stringContaining('gameport=0') })
})

test("a share's mount command has the port and the secret from the environment, and its access", () => {
  const words = bochsEmulator(fast).mountWords({ tag: 'share1', path: '/x', writable: false })
  const env = { PATH: process.env.PATH, lab_port: '1234', lab_secret: 'abcd' }
  const shown = execFileSync('sh', ['-c', `printf '%s\\n' ${words} '/a b'`], { env, encoding: 'utf8' }).split('\n')
  expect(shown.slice(0, 3)).toEqual(['-t', '9p', '-o'])
  expect(shown[3]!.split(',')).toEqual(
    expect.arrayContaining(['trans=tcp', 'port=1234', 'aname=abcd/share1', 'version=9p2000.L', 'ro', 'cache=loose']),
  )
  expect(shown.slice(4)).toEqual(['10.0.2.2', '/a b', ''])
  expect(bochsEmulator(fast).mountWords({ tag: 'share2', path: '/y', writable: true })).toContain(',rw,')
})
