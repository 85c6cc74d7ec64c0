import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
import { QUICK_CMDLINE } from '../../lib/lab/tower-image.js'
import { BOOT, linuxInitrd } from './linux.js'

const MAIN = 'dist/cli/main.js'

/** An L1 that tells what it has, writes to its disk, waits for a line, and reads the disk again, past its cache. */
const SCRIPT = `
disk() { head -c 6 /dev/vda; }
has() { echo "$1: $(nproc) $(grep -o -w -m1 -e svm -e vmx /proc/cpuinfo | head -n 1) $(disk)."; }
has first
echo -n after > /dev/vda
echo 3 > /proc/sys/vm/drop_caches
echo saved
read -r line
has "$line"
poweroff -f`

/**
 * The command lines of a machine from its start to its end, the same on every host: nothing in them, and nothing that comes of them, says
 * whose extension it is.
 */
it('the same command lines look at this host, run an L1, save it and go on with it', { timeout: 300_000 }, async () => {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-commands-'))
  onTestFinished(() => rm(directory, { recursive: true, force: true }))
  const [initrd, disk, snapshot] = ['initrd', 'disk', 'snapshot'].map(name => join(directory, name)) as [
    string,
    string,
    string,
  ]
  const { guestKernel } = await ensureAssets(['guestKernel'])
  await writeFile(initrd, await linuxInitrd(SCRIPT, { modules: ['virtio_mmio', 'virtio_blk'] }))
  const content = Buffer.alloc(1 << 20, 'before')
  await writeFile(disk, content)
  const shell = new Shell(directory)

  const { ok, way, extension, facts, deep } = JSON.parse(await shell.run('doctor', '--deep', '--json'))
  expect([ok, way, facts.cpu, deep.ok]).toEqual([true, 'nested-here', [extension], true])

  const machine = ['--kernel', guestKernel.vmlinuz, '--initrd', initrd, '--append', QUICK_CMDLINE, '--memory', '256M']
  const first = shell.start(
    'run',
    ...machine,
    '--cpus',
    '2',
    '--disk',
    `${disk},snapshot`,
    '--no-reboot',
    '--name',
    'l1',
  )
  await first.says(`first: 2 ${extension} before.`)
  await first.says('saved')

  const running = { name: 'l1', state: 'running', vcpus: 2, memory: 256 << 20, kernel: guestKernel.vmlinuz }
  expect(JSON.parse(await shell.run('ps', '--json')).machines).toMatchObject([{ ...running, pid: first.pid }])
  const saved = JSON.parse(await shell.run('ctl', 'l1', 'snapshot', snapshot, '--stop', '--json'))
  expect(saved).toMatchObject({ ok: true, directory: snapshot, stopped: true })
  expect(await first.ended()).toBe(4)
  // What it wrote is in the snapshot.
  expect((await readFile(disk)).equals(content)).toBe(true)

  const second = shell.start('restore', snapshot, '--no-reboot', '--name', 'l1')
  second.type('second\n')
  await second.says(`second: 2 ${extension} aftere.`)
  expect(await second.ended()).toBe(0)
})

/** The commands of a user whose machines' names are kept in `directory`. */
class Shell {
  readonly #env: NodeJS.ProcessEnv

  constructor(directory: string) {
    this.#env = { ...process.env, XDG_RUNTIME_DIR: directory }
  }

  /** What a command says that ends well. */
  run(...args: string[]): Promise<string> {
    return new Promise((resolve, reject) => {
      execFile(process.execPath, [MAIN, ...args], { env: this.#env }, (error, stdout) => {
        if (error) reject(error)
        else resolve(stdout)
      })
    })
  }

  /** A command that has a machine in it. */
  start(...args: string[]): Terminal {
    const child = spawn(process.execPath, [MAIN, ...args], { env: this.#env, stdio: 'pipe' })
    onTestFinished(() => void child.kill('SIGKILL'))
    return new Terminal(child)
  }
}

class Terminal {
  readonly #child: ChildProcess
  readonly #end: Promise<number | null>
  #text = ''
  #look: () => void = () => {}

  constructor(child: ChildProcess) {
    this.#child = child
    for (const stream of [child.stdout!, child.stderr!]) {
      stream.on('data', (bytes: Buffer) => {
        this.#text += bytes.toString('latin1')
        this.#look()
      })
    }
    this.#end = once(child, 'close').then(([code]) => {
      this.#look()
      return code
    })
  }

  get pid(): number | undefined {
    return this.#child.pid
  }

  type(text: string): void {
    this.#child.stdin!.write(text)
  }

  ended(): Promise<number | null> {
    return this.#end
  }

  /** Waits until `text` has been said. */
  async says(text: string): Promise<void> {
    let late: NodeJS.Timeout | undefined
    try {
      await new Promise<void>((resolve, reject) => {
        const fail = (how: string) => reject(new Error(`${how} "${text}": ${this.#text}`))
        late = setTimeout(() => fail('it does not say'), BOOT.timeout)
        this.#look = () => {
          if (this.#text.includes(text)) resolve()
          else if (this.#child.exitCode !== null) fail('it ended without')
        }
        this.#look()
      })
    } finally {
      clearTimeout(late)
    }
  }
}
