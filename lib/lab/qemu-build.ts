import { copyFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ConfigError } from '../errors.js'
import { installPackages, type Progress, unpackPackage, unpackSource } from './apt.js'
import { cached, inCache } from './cache.js'
import { findProgram, outputOf } from './command.js'
import { type Compilation, compile } from './compile.js'
import { MENDS, mended } from './qemu-mends.js'

/** Debian's suite that has QEMU 7.2, for which the mends were written. */
const SUITE = 'bookworm'

/** The interpreter of x86 on a PC, and the devices that `qemuArguments` names: a tenth of the whole. */
const DEVICES = ['CONFIG_I440FX=y', 'CONFIG_VIRTIO_PCI=y', 'CONFIG_VIRTIO_9P=y', 'CONFIG_VIRTIO_SERIAL=y']
const OPTIONS = [
  '--target-list=x86_64-softmmu',
  '--without-default-features',
  '--without-default-devices',
  '--with-devices-x86_64=lab',
  '--enable-tcg',
  '--enable-attr',
  '--enable-cap-ng',
  '--enable-virtfs',
  '--enable-fdt=system',
  '--disable-docs',
  '--disable-tools',
  '--disable-guest-agent',
  '--disable-debug-info',
  '--disable-plugins',
]

/** What it is built with: programs, and the packages that have them. */
const PROGRAMS = {
  gcc: 'build-essential',
  'dpkg-source': 'build-essential',
  meson: 'meson',
  ninja: 'ninja-build',
  'pkg-config': 'pkg-config',
}
const LIBRARIES = ['libcap-ng-dev', 'libfdt-dev', 'libglib2.0-dev', 'libpixman-1-dev']

/** What a PC starts by, as its packages have it. */
const FIRMWARE = {
  seabios: ['usr/share/seabios/bios-256k.bin'],
  'qemu-system-data': ['kvmvapic.bin', 'linuxboot_dma.bin', 'pvh.bin'].map(name => `usr/share/qemu/${name}`),
}

const PROGRAM = 'qemu-system-x86_64'
const ENTRY = 'qemu'
const RECIPE = JSON.stringify([1, SUITE, DEVICES, OPTIONS, MENDS, FIRMWARE])

/** The mended QEMU, where it has been built. */
export async function builtQemu(): Promise<string | undefined> {
  return (await inCache(ENTRY, RECIPE))?.directory
}

/**
 * The directory of the mended QEMU (`qemu-system-x86_64` and its firmware): in the cache, or built there from the distribution's source, which takes a
 * minute or two.
 *
 * @throws ConfigError where what it is built with is missing and cannot be installed, or the source cannot be had.
 */
export async function buildQemu(progress: Progress): Promise<string> {
  const known = await builtQemu()
  if (known !== undefined) return known
  const missing = await missingPackages()
  if (missing.length > 0) await installPackages(missing, 'QEMU', progress)
  const { directory } = await cached(ENTRY, RECIPE, async work => {
    const source = join(work, 'source')
    const build = join(work, 'build')
    await mkdir(build)
    await unpackSource('qemu', SUITE, source, progress, { patched: true })
    await mend(source)
    await writeFile(join(source, 'configs/devices/x86_64-softmmu/lab.mak'), `${DEVICES.join('\n')}\n`)
    progress('configuring QEMU')
    await outputOf(join(source, 'configure'), OPTIONS, build)
    await compile(ninjaIn(build), progress)
    await outputOf('strip', [join(build, PROGRAM)]).catch(() => {})
    await copyFile(join(build, PROGRAM), join(work, PROGRAM))
    for (const path of [source, build]) await rm(path, { recursive: true })
    await unpackFirmware(work, progress)
    return null
  })
  return directory
}

async function missingPackages(): Promise<string[]> {
  const missing = new Set<string>()
  for (const [program, name] of Object.entries(PROGRAMS)) {
    if ((await findProgram(program)) === undefined) missing.add(name)
  }
  for (const name of LIBRARIES) {
    const status = await outputOf('dpkg-query', ['--status', name]).catch(() => '')
    if (!/^Status: .* installed$/m.test(status)) missing.add(name)
  }
  return [...missing]
}

async function mend(source: string): Promise<void> {
  for (const file of new Set(MENDS.map(mend => mend.file))) {
    const path = join(source, file)
    try {
      await writeFile(path, mended(file, await readFile(path, 'utf8')))
    } catch (error) {
      const problem = `cannot be mended: ${(error as Error).message}`
      throw new ConfigError('QEMU', SUITE, problem, `use Debian's QEMU: apt-get install qemu-system-x86`)
    }
  }
}

async function unpackFirmware(work: string, progress: Progress): Promise<void> {
  for (const [name, files] of Object.entries(FIRMWARE)) {
    const tree = join(work, 'tree')
    await unpackPackage([name], tree, progress)
    for (const file of files) await copyFile(join(tree, file), join(work, file.slice(file.lastIndexOf('/') + 1)))
    await rm(tree, { recursive: true })
  }
}

/** ninja tells how far it is, as in `[17/1226]`. */
function ninjaIn(directory: string): Compilation {
  let part = 0
  const done = (text: string) => {
    const [, step, steps] = [...text.matchAll(/^\[(\d+)\/(\d+)\]/gm)].at(-1) ?? []
    if (step !== undefined) part = Number(step) / Number(steps)
    return part
  }
  const remedy = "use Debian's QEMU: apt-get install qemu-system-x86"
  return { what: 'QEMU', command: 'ninja', args: [PROGRAM], directory, done, remedy }
}
