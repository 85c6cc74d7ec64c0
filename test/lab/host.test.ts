import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Kvm } from '../../lib/kvm/kvm.js'
import { ensureAssets } from '../../lib/lab/assets.js'
import { ModuleTree } from '../../lib/lab/modules.js'

/** A root directory with this machine's files, but with its own /etc and the modules of the emulated host's kernel in /lib. */
const ROOT = '/tmp/host-root'
const CONFIG = '/etc/modprobe.d/nested-kvm.conf'
/** The module of the emulated host's extension, its `nested` on and off, a parameter that it takes at its load alone, and its bit in CPUID. */
const { extension, module, on, off, fixed, leaf, bit } =
  process.env.NESTED_KVM_LAB === 'vmx'
    ? { extension: 'vmx', module: 'kvm_intel', on: 'Y', off: 'N', fixed: 'enable_apicv', leaf: 1, bit: 5 }
    : { extension: 'svm', module: 'kvm_amd', on: '1', off: '0', fixed: 'npt', leaf: 0x8000_0001, bit: 2 }
const env = { PATH: `/bin.first:${process.env.PATH}` }
const parameter = (name: string) => readFileSync(`/sys/module/${module}/parameters/${name}`, 'utf8').trim()
const nested = () => parameter('nested')

/** Loads the module anew, by hand. */
function reload(...options: string[]) {
  spawnSync('chroot', [ROOT, busybox, 'modprobe', '-r', module])
  execFileSync('chroot', [ROOT, busybox, 'modprobe', module, ...options])
}

// It reloads the module, which is nobody's in the emulated host only.
describe.skipIf(!process.env.NESTED_KVM_LAB)('nested-kvm host', () => {
  beforeAll(async () => {
    await makeRoot()
    reload('nested=1', `${fixed}=0`)
  })
  // Those that run after it in this emulated host nest, in the way of the lab.
  afterAll(() => {
    agent?.kill()
    reload('nested=1', ...(module === 'kvm_intel' ? [`${fixed}=0`] : []))
    for (const path of mounted.reverse()) spawnSync('umount', ['-R', '-l', path])
  })

  it('is on already: nothing is done, but for what makes it last', async () => {
    expect(await enable()).toMatchObject({ ok: true, already: true, steps: [] })
    expect(await enable({ persist: true })).toMatchObject({ ok: true, already: true, steps: [{ kind: 'write' }] })
    expect(config()).toContain(`\noptions ${module} nested=1\n`)
    expect(await enable({ persist: true })).toMatchObject({ ok: true, steps: [] })
  })

  it('is switched off, and what KVM offers with it', async () => {
    const planned = JSON.parse(command('host', 'disable-nested', '--dry-run', '--json').text)
    const steps = [
      { kind: 'unload', command: ['modprobe', '-r', module] },
      { kind: 'load', command: ['modprobe', module, 'nested=0'] },
    ]
    expect(planned).toMatchObject({ schema: 1, ok: true, done: false, module, former: on, steps })
    expect([nested(), offers()]).toEqual([on, true])
    const { text, code } = command('host', 'disable-nested')
    expect([code, nested(), parameter(fixed), offers()]).toEqual([0, off, 'N', false])
    expect(text).toContain(`Set again, as before: ${module}.${fixed}.`)
    expect(text).toContain(`Done: KVM no longer offers ${extension} to guests.`)
    // Which the next boot would not know.
    expect(text).toContain(`after the next boot it is as ${CONFIG} says`)
    expect(await ask({ examine: true })).toMatchObject({ ok: false, way: 'enable', extension })
  })

  it('is switched on again, and parameters that were set by hand stay', async () => {
    const polling = '/sys/module/kvm/parameters/halt_poll_ns'
    const before = readFileSync(polling)
    writeFileSync(polling, '12345')
    const done = await enable({ persist: true })
    expect(done).toMatchObject({ ok: true, former: off, changed: [] })
    expect(done.restored).toEqual(['kvm.halt_poll_ns', `${module}.${fixed}`])
    expect([nested(), parameter(fixed), offers()]).toEqual([on, 'N', true])
    expect(readFileSync(polling, 'utf8').trim()).toBe('12345')
    writeFileSync(polling, before)
  })

  it('refuses while a VM uses the module, and names the process', async () => {
    using kvm = Kvm.open()
    using _vm = kvm.createVm()
    const name = readFileSync('/proc/self/comm', 'utf8').trim()
    const { reason } = await disable({ persist: true })
    expect(reason).toContain(`it is in use by ${name} (pid ${process.pid}, 1 VM)`)
    expect([nested(), config()]).toEqual([on, expect.stringContaining('nested=1')])
  })

  it('loads the module as it was where it does not load as wanted', async () => {
    const modprobe = join(ROOT, 'bin.first/modprobe')
    const before = readFileSync(modprobe)
    // The kernel refuses the value.
    const spoil = `[ "$2" = nested=0 ] && set -- "$@" ${fixed}=maybe`
    writeFileSync(modprobe, `#!/bin/sh\n${spoil}\nexec busybox modprobe "$@"\n`)
    const { reason } = await disable({ persist: true })
    writeFileSync(modprobe, before)
    expect([nested(), parameter(fixed), offers()]).toEqual([on, 'N', true])
    expect(reason).toMatch(/nested=0: .*nvalid.*; it is loaded again as it was, with nested=1/)
    expect(config()).toContain('nested=1')
  })

  it('refuses a module that is built in, another file that says otherwise, and a read-only /etc', async () => {
    // What a kernel with it built in shows: the parameters of a module that is not in the list.
    writeFileSync(join(ROOT, 'modules.none'), '')
    mount('--bind', join(ROOT, 'modules.none'), join(ROOT, 'proc/modules'))
    expect((await disable()).reason).toContain(`add ${module}.nested=0 to the kernel's command line and restart`)
    execFileSync('umount', [join(ROOT, 'proc/modules')])
    const mine = join(ROOT, 'etc/modprobe.d/mine.conf')
    writeFileSync(mine, `options ${module.replace('_', '-')} nested=1\n`)
    const against = `"/etc/modprobe.d/mine.conf:1": it sets nested=1 for ${module}`
    expect((await disable({ persist: true })).reason).toContain(against)
    rmSync(mine)
    mount('--bind', join(ROOT, 'etc'), join(ROOT, 'etc'))
    mount('-o', 'remount,bind,ro', join(ROOT, 'etc'))
    expect((await disable({ persist: true })).reason).toContain('it cannot be written (EROFS)')
    expect([nested(), config()]).toEqual([on, expect.stringContaining('nested=1')])
  })
})

/** Does in that root, and in one process, since to start one takes long here, what the command does. */
const AGENT = `
  import { createInterface } from 'node:readline'
  const { applyHostNesting, examineHost, planHostNesting } = await import(process.argv[1])
  const answer = ({ examine, nested, persist }) => {
    if (examine) return examineHost()
    const plan = planHostNesting(nested, { persist })
    return { ok: true, ...plan, ...applyHostNesting(plan) }
  }
  for await (const line of createInterface({ input: process.stdin })) {
    let answered
    try { answered = answer(JSON.parse(line)) } catch (error) { answered = { ok: false, reason: error.message } }
    console.log(JSON.stringify(answered))
  }`

type Answer = Record<string, unknown> & { reason?: string }

let agent: ChildProcess | undefined
let lines: AsyncIterator<string>

async function ask(question: object): Promise<Answer> {
  if (!agent) {
    const args = ['--input-type=module', '--eval', AGENT, join(process.cwd(), 'dist/index.js')]
    agent = spawn('chroot', [ROOT, process.execPath, ...args], { env, stdio: ['pipe', 'pipe', 'inherit'] })
    lines = createInterface({ input: agent.stdout! })[Symbol.asyncIterator]()
  }
  agent.stdin!.write(`${JSON.stringify(question)}\n`)
  return JSON.parse((await lines.next()).value)
}

const enable = (options: { persist?: boolean } = {}) => ask({ nested: true, ...options })
const disable = (options: { persist?: boolean } = {}) => ask({ nested: false, ...options })

let busybox: string
const mounted: string[] = []

async function makeRoot(): Promise<void> {
  const { busybox: shell, labKernel } = await ensureAssets(['busybox', 'labKernel'])
  busybox = shell.program
  for (const name of readdirSync('/')) {
    const [from, to] = [join('/', name), join(ROOT, name)]
    const stat = lstatSync(from)
    mkdirSync(ROOT, { recursive: true })
    if (name === 'lib' || name === 'etc' || name === 'tmp' || !(stat.isDirectory() || stat.isSymbolicLink())) continue
    if (stat.isSymbolicLink()) symlinkSync(readlinkSync(from), to)
    else {
      mkdirSync(to)
      mount('--rbind', from, to)
    }
  }
  for (const path of ['tmp', 'lib', 'lib.own', 'etc/modprobe.d', 'bin.first'])
    mkdirSync(join(ROOT, path), { recursive: true })
  // What is needed may be below a directory that it has for itself.
  for (const path of [process.cwd(), dirname(process.execPath), dirname(busybox)]) {
    if (existsSync(join(ROOT, path))) continue
    mkdirSync(join(ROOT, path), { recursive: true })
    mount('--bind', path, join(ROOT, path))
  }
  mount('--bind', '/lib/', join(ROOT, 'lib.own'))
  for (const name of readdirSync('/lib'))
    if (name !== 'modules') symlinkSync(`/lib.own/${name}`, join(ROOT, 'lib', name))
  for (const name of ['passwd', 'group', 'ld.so.cache']) {
    writeFileSync(join(ROOT, 'etc', name), readFileSync(join('/etc', name)))
  }
  const modules = join(ROOT, 'lib/modules', labKernel.release)
  mkdirSync(join(modules, 'kernel'), { recursive: true })
  mount('--bind', join(labKernel.modulesDir, 'kernel'), join(modules, 'kernel'))
  writeFileSync(join(modules, 'modules.dep'), await dependencies(await ModuleTree.open(labKernel.modulesDir)))
  symlinkSync(busybox, join(ROOT, 'bin.first/busybox'))
  writeFileSync(join(ROOT, 'bin.first/modprobe'), '#!/bin/sh\nexec busybox modprobe "$@"\n')
  chmodSync(join(ROOT, 'bin.first/modprobe'), 0o755)
}

/** What depmod(8) would write of the module and what it needs. */
async function dependencies(tree: ModuleTree): Promise<string> {
  const path = (name: string) => relative(tree.directory, tree.path(name)!)
  const lines: string[] = []
  for (const { name } of await tree.load(module)) {
    const needed = (await tree.load(name)).map(module => module.name).filter(other => other !== name)
    lines.push(`${path(name)}: ${needed.reverse().map(path).join(' ')}`.trimEnd())
  }
  return `${lines.join('\n')}\n`
}

function mount(...args: string[]): void {
  execFileSync('mount', args)
  mounted.push(args.at(-1)!)
}

function config(): string {
  return readFileSync(join(ROOT, CONFIG), 'utf8')
}

/** Whether KVM offers the extension to guests. */
function offers(): boolean {
  using kvm = Kvm.open()
  return kvm.supportedCpuid().some(entry => entry.function === leaf && (entry.ecx & (1 << bit)) !== 0)
}

/** The command, in that root. */
function command(...args: string[]) {
  const main = join(process.cwd(), 'dist/cli/main.js')
  const { stdout, stderr, status } = spawnSync('chroot', [ROOT, process.execPath, main, ...args], {
    env,
    encoding: 'utf8',
  })
  return { text: stdout + stderr, code: status }
}
