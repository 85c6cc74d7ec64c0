import { execFileSync } from 'node:child_process'
import { expect, test } from 'vitest'
import { bochsEmulator } from '../../../lib/lab/bochs.js'
import { ConsoleLog } from '../../../lib/lab/console-log.js'
import { labEnvironment } from '../../../lib/lab/environment.js'
import { type GuestPlan, guestFiles, shellQuote } from '../../../lib/lab/guest-files.js'
import { runInLab } from '../../../lib/lab/lab.js'
import { qemuArguments, qemuEmulator } from '../../../lib/lab/qemu.js'

const HOSTILE = `it's "$HOME" \`id\` \\ \n;& é`

const plan: GuestPlan = {
  busybox: '/bin/busybox',
  modules: [{ name: 'kvm_amd', data: Buffer.from('') }],
  emulator: qemuEmulator({ program: '/usr/bin/qemu-system-x86_64' }),
  shares: [
    { tag: 'root', path: '/', writable: false },
    { tag: 'share1', path: `/home/${HOSTILE}/deep`, writable: true },
    { tag: 'share2', path: '/home', writable: true },
  ],
  visible: ['/tmp/node'],
  command: ['node', HOSTILE],
  nestedKvm: ['printf', '%s|', HOSTILE],
  cwd: '/home',
  env: { PATH: '/usr/bin', WORD: HOSTILE },
  stdin: true,
}

const script = (path: string, from = plan) => {
  const entry = guestFiles(from).find(entry => entry.path === path)
  return entry?.type === 'file' && 'data' in entry ? String(entry.data) : ''
}

test('a quoted word is one word to the shell, whatever is in it', () => {
  expect(execFileSync('sh', ['-c', `printf %s ${shellQuote(HOSTILE)}`], { encoding: 'utf8' })).toBe(HOSTILE)
})

test('nested-kvm is what it is told to be', () => {
  const output = execFileSync('sh', ['-c', script('/lab/nested-kvm'), 'nested-kvm', 'more words'], { encoding: 'utf8' })
  expect(output).toBe(`${HOSTILE}|more words|`)
})

test.each(['/init', '/lab/session', '/lab/command', '/lab/nested-kvm'])(
  '%s is a script that the shell can read',
  path => {
    const vmx = bochsEmulator({ program: '/bochs', version: '3.0', bios: '/bios', vgaBios: '/vga', fast: true })
    for (const change of [{ stdin: true }, { stdin: false }, { emulator: vmx }]) {
      const text = script(path, { ...plan, ...change })
      expect(text).not.toBe('')
      execFileSync('sh', ['-n'], { input: text })
    }
  },
)

test('kvm is loaded with nesting on, and an outer directory is mounted before an inner one', () => {
  const init = script('/init')
  expect(init).toContain('insmod /modules/kvm_amd.ko nested=1')
  const at = (tag: string) => init.indexOf(` ${tag} '/root/home`)
  expect(at('share2')).toBeGreaterThan(0)
  expect(at('share1')).toBeGreaterThan(at('share2'))
})

test('a clock of instructions has a TSC that the kernel is told of, and one thread for all processors', () => {
  const machine = { kernel: '/k', initrd: Buffer.alloc(0), commandLine: '', memoryBytes: 2 ** 30, cpus: 2, shares: [] }
  const counted = qemuArguments(machine, 'instructions')
  expect(counted[counted.indexOf('-accel') + 1]).toBe('tcg,thread=single')
  expect(counted[counted.indexOf('-icount') + 1]).toBe('shift=0,sleep=on')
  expect(qemuEmulator({ program: '/qemu' }, 'instructions').commandLine).toContain('tsc_early_khz=1000000')
  const usual = qemuArguments(machine)
  expect(usual[usual.indexOf('-accel') + 1]).toBe('tcg,thread=multi')
  expect(usual).not.toContain('-icount')
  expect(qemuEmulator({ program: '/qemu' }).commandLine).not.toContain('tsc_early_khz=1000000')
})

test('QEMU looks for its firmware where it is said to be', () => {
  const machine = { kernel: '/k', initrd: Buffer.alloc(0), commandLine: '', memoryBytes: 2 ** 30, cpus: 1, shares: [] }
  const args = qemuArguments(machine, 'host', '/firmware')
  expect(args[args.indexOf('-L') + 1]).toBe('/firmware')
  expect(qemuArguments(machine)).not.toContain('-L')
})

test('a comma in a shared path does not end the QEMU option, and only writable shares are writable', () => {
  const args = qemuArguments({
    kernel: '/k',
    initrd: Buffer.alloc(0),
    commandLine: 'quiet',
    memoryBytes: 2 ** 30,
    cpus: 2,
    shares: [plan.shares[0]!, { tag: 'share1', path: '/a,readonly=on,b', writable: true }],
  })
  const shares = args.filter(arg => arg.startsWith('local,'))
  expect(shares[0]).toMatch(/^local,id=root,path=\/,.*,readonly=on$/)
  expect(shares[1]).toMatch(/^local,id=share1,path=\/a,,readonly=on,,b,security_model=none,multidevs=remap$/)
})

test('the environment has what commands need and no secrets', () => {
  const ours = { PATH: '/usr/bin', HOME: '/root', AWS_SECRET: 'x', NODE_OPTIONS: '--a', TMPDIR: '/var/x' }
  expect(labEnvironment(ours, '/opt/node/bin/node', 'svm')).toEqual({
    PATH: '/run/nested-kvm-lab/commands:/opt/node/bin:/usr/bin',
    HOME: '/root',
    NODE_OPTIONS: '--a',
    TMPDIR: '/tmp',
    NESTED_KVM_LAB: 'svm',
  })
})

test("the console's end is kept, without control characters", () => {
  const log = new ConsoleLog()
  for (let line = 0; line < 20_000; line++) log.add(Buffer.from(`line ${line}\r\n`))
  log.add(Buffer.from('\x1b[2J\x1b]0;\x07[ 1.0] Kernel panic - not syncing: x\r\n\n'))
  expect(log.lines(2)).toEqual(['line 19999', '0;[ 1.0] Kernel panic - not syncing: x'])
  expect(log.panic()).toContain('not syncing: x')
  expect(log.lines(Number.POSITIVE_INFINITY).length).toBeLessThan(20_000)
})

test.each([
  [[], {}, /command: "": is missing/],
  [['true'], { vendor: 'arm' as 'svm' }, /vendor: "arm": is not an extension/],
  [['true'], { memory: '1M' }, /memory: "1M": is too little/],
  [['true'], { memory: '999T' }, /more than this machine has/],
  [['true'], { memory: 'lots' }, /memory: "lots"/],
  [['true'], { cpus: 0 }, /cpus: 0/],
  [['true'], { clock: 'sun' as 'host' }, /clock: "sun": is not what a clock can count/],
  [['true'], { vendor: 'vmx', clock: 'host' }, /clock: "host": is not to be had with vmx/],
  [['true'], { timeout: -1 }, /timeout: -1/],
  [['true'], { timeout: Number.NaN }, /timeout: NaN/],
  [['true'], { cwd: '/nonexistent' }, /cannot be used \(ENOENT\)/],
  [['true'], { cwd: '/proc/self' }, /the lab has its own/],
  [['true'], { writable: ['/tmp'] }, /writable directory: "\/tmp"/],
] as const)('before anything is fetched or started: %j %j is refused', async (command, options, message) => {
  await expect(runInLab(command, options)).rejects.toThrow(message)
})
