import { existsSync } from 'node:fs'
import { readdir, realpath, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type InitramfsEntry, writeInitramfs } from '../boot/initramfs.js'
import { programFiles } from '../boot/program-files.js'
import type { Assets } from './assets.js'
import { ModuleTree } from './modules.js'

/** Starts a line of a level's report; what follows is JSON. */
export const MARK = '@nested-kvm '
/** How far the last level counts before it powers off: a count each 0.2 s. */
export const LAST_COUNT = 24
/** Where the image of a level has the kernel and the image of the next one. */
export const NEXT_KERNEL = '/boot/vmlinuz'
export const NEXT_INITRD = '/boot/next.cpio'

const PACKAGE = '/opt/nested-kvm'
const NODE = '/bin/node'
const APPLETS = [
  'sh',
  'cat',
  'dd',
  'dmesg',
  'echo',
  'grep',
  'head',
  'insmod',
  'mount',
  'poweroff',
  'sync',
  'tail',
  'tr',
  'uname',
  'usleep',
]

const COUNTING = `n=0
while [ $n -lt ${LAST_COUNT} ]; do
  n=$((n + 1))
  echo '${MARK}'"{\\"count\\":$n}"
  usleep 200000
done`

/** A kernel that says little, as each character on a console inside a guest is two exits, and that tests nothing at boot. */
export const QUICK_CMDLINE = 'console=ttyS0 panic=-1 quiet mitigations=off audit=0 cryptomgr.notests'

const RUN_NEXT = [
  'run',
  '--kernel',
  NEXT_KERNEL,
  '--initrd',
  NEXT_INITRD,
  '--memory',
  '256M',
  '--append',
  `'${QUICK_CMDLINE}'`,
]

type Guest = Pick<Assets, 'guestKernel' | 'busybox'>

/**
 * Writes the image of an L1 that is a host of its own: busybox, the hypervisor's modules, Node, this package, and the kernel and the
 * image of an L2. L1 runs `nested-kvm` with the first of `commands` as its arguments, in the shell's syntax, by default to run L2, and
 * powers off. L2 is such a host as well where there is a second command, and so on; the last level, which has none, counts on its
 * console up to `LAST_COUNT` and powers off.
 */
export async function writeTowerImage(
  path: string,
  assets: Guest,
  commands: readonly (readonly string[])[] = [RUN_NEXT],
): Promise<void> {
  const tree = await ModuleTree.open(assets.guestKernel.modulesDir)
  const [command, ...inner] = commands
  if (command === undefined) {
    await writeInitramfs(baseEntries(assets, await tree.load('cpuid'), [COUNTING]), path)
    return
  }
  const kvm = await tree.load('cpuid', 'kvm_amd', 'kvm_intel')
  const run = [`${NODE} ${PACKAGE}/dist/cli/main.js ${command.join(' ')}`, `echo '${MARK}'"{\\"status\\":$?}"`]
  const next = `${path}.next`
  try {
    await writeTowerImage(next, assets, inner)
    await writeInitramfs(
      [
        ...baseEntries(assets, kvm, run),
        ...(await programFiles(process.execPath, { path: NODE })),
        ...(await packageEntries()),
        { type: 'file', path: NEXT_KERNEL, source: assets.guestKernel.vmlinuz },
        { type: 'file', path: NEXT_INITRD, source: next },
      ],
      path,
    )
  } finally {
    await rm(next, { force: true })
  }
}

type Module = Awaited<ReturnType<ModuleTree['load']>>[number]

function baseEntries(assets: Guest, modules: readonly Module[], commands: readonly string[]): InitramfsEntry[] {
  return [
    { type: 'file', path: '/bin/busybox', source: assets.busybox.program, mode: 0o755 },
    ...APPLETS.map(name => ({ type: 'symlink' as const, path: `/bin/${name}`, target: 'busybox' })),
    ...['/proc', '/sys', '/dev', '/tmp'].map(path => ({ type: 'directory' as const, path })),
    { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
    ...modules.map(({ name, data }) => ({ type: 'file' as const, path: `/modules/${name}.ko`, data })),
    { type: 'file', path: '/init', data: initScript(modules, commands), mode: 0o755 },
  ]
}

/**
 * Process 1 of a level: tells kernel, CPU flag and hypervisor leaf, runs the commands and powers off. A module that
 * does not load is no failure here: only one of kvm_amd and kvm_intel can.
 */
function initScript(modules: readonly Module[], commands: readonly string[]): string {
  const insmod = modules.map(({ name }) => {
    const parameters = name === 'kvm_amd' || name === 'kvm_intel' ? ' nested=1' : ''
    return `insmod /modules/${name}.ko${parameters} 2> /dev/null`
  })
  return `#!/bin/sh
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
${insmod.join('\n')}
flag=$(grep -o -w -m1 -e svm -e vmx /proc/cpuinfo | head -n 1)
# The file's offset is the leaf: 0x40000000, 16 bytes of eax, ebx, ecx, edx.
hypervisor=$(dd if=/dev/cpu/0/cpuid bs=16 skip=67108864 count=1 2> /dev/null | tail -c 12 | tr -d '\\0')
echo '${MARK}'"{\\"kernel\\":\\"$(uname -r)\\",\\"flag\\":\\"$flag\\",\\"hypervisor\\":\\"$hypervisor\\"}"
${commands.join('\n')}
sync
poweroff -f
`
}

/** The command line of this package as it is installed: its one file, the addon, and the packages that they need. */
async function packageEntries(): Promise<InitramfsEntry[]> {
  const root = fileURLToPath(new URL('../..', import.meta.url))
  const require = createRequire(import.meta.url)
  const addon = (require('node-gyp-build') as { path(root: string): string }).path(root)
  const entries: InitramfsEntry[] = [
    { type: 'file', path: `${PACKAGE}/package.json`, source: join(root, 'package.json') },
    { type: 'file', path: `${PACKAGE}/build/Release/nested_kvm.node`, source: addon },
    { type: 'file', path: `${PACKAGE}/dist/cli/main.js`, source: join(root, 'dist/cli/main.js') },
  ]
  for (const name of ['commander', 'node-gyp-build']) {
    const directory = packageDirectory(require.resolve(name))
    entries.push(...(await tree(directory, `${PACKAGE}/node_modules/${name}`)))
  }
  return entries
}

function packageDirectory(file: string): string {
  const directory = dirname(file)
  return existsSync(join(directory, 'package.json')) ? directory : packageDirectory(directory)
}

async function tree(directory: string, path: string): Promise<InitramfsEntry[]> {
  const real = await realpath(directory)
  const files = await readdir(real, { recursive: true, withFileTypes: true })
  return files
    .filter(file => file.isFile() && /\.(m?js|cjs|json)$/.test(file.name))
    .map(file => join(file.parentPath, file.name))
    .map(file => ({ type: 'file' as const, path: join(path, relative(real, file)), source: file }))
}
