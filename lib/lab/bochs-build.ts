import { copyFile, mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { ConfigError } from '../errors.js'
import { type Progress, unpackSource } from './apt.js'
import { type CacheEntry, cached, inCache } from './cache.js'
import { findProgram, outputOf } from './command.js'
import { type Compilation, compile } from './compile.js'

/** Debian's suite that has Bochs 3.0, the version that the lab was tried with. */
const SUITE = 'trixie'

/**
 * No debugger, and all that makes it fast; one network card, for the files and channels of the lab. Some of what is off is on by default.
 */
const OPTIONS = [
  '--with-nogui',
  '--enable-x86-64',
  '--enable-cpu-level=6',
  '--enable-vmx=2',
  '--enable-svm',
  '--enable-avx',
  '--enable-evex',
  '--enable-handlers-chaining',
  '--enable-trace-linking',
  '--enable-repeat-speedups',
  '--enable-fast-function-calls',
  '--enable-long-phy-address',
  '--enable-pci',
  '--enable-e1000',
  '--enable-large-ramfile',
  '--disable-debugger',
  '--disable-gdb-stub',
  '--disable-smp',
  '--disable-stats',
  '--disable-plugins',
  '--disable-docbook',
]
const FLAGS = ['CFLAGS=-O3', 'CXXFLAGS=-O3']
/** Of the compiler, in a whole build: for telling how far it is. */
const COMPILATIONS = 510

const ENTRY = 'bochs'
const RECIPE = JSON.stringify([1, SUITE, OPTIONS, FLAGS])

/** The fast Bochs, where it has been built. */
export async function builtBochs(): Promise<string | undefined> {
  return (await inCache(ENTRY, RECIPE))?.directory
}

/**
 * The directory of the fast Bochs (`bochs`, `bios.bin`, `vgabios.bin`): in the cache, or built there from the distribution's source, which takes
 * some minutes.
 *
 * @throws ConfigError where there is no compiler, or the source cannot be had.
 */
export async function buildBochs(progress: Progress): Promise<string> {
  for (const program of ['g++', 'make', 'tar']) {
    if ((await findProgram(program)) !== undefined) continue
    throw new ConfigError('Bochs', '', `cannot be built without ${program}`, 'run: apt-get install build-essential')
  }
  const entry: CacheEntry<null> = await cached(ENTRY, RECIPE, async work => {
    const source = join(work, 'source')
    await mkdir(source)
    await unpackSource('bochs', SUITE, source, progress)
    progress('configuring Bochs')
    await outputOf('./configure', [...OPTIONS, ...FLAGS], source)
    await compile(makeIn(source), progress)
    await outputOf('strip', [join(source, 'bochs')]).catch(() => {})
    await copyFile(join(source, 'bochs'), join(work, 'bochs'))
    const bios = await readdir(join(source, 'bios'))
    await copyFile(join(source, 'bios', named(bios, 'bios.bin')), join(work, 'bios.bin'))
    await copyFile(join(source, 'bios', named(bios, 'vgabios-cirrus.bin')), join(work, 'vgabios.bin'))
    await rm(source, { recursive: true })
    return null
  })
  return entry.directory
}

function named(files: readonly string[], start: string): string {
  const found = files.find(file => file.startsWith(start))
  if (found === undefined) throw new ConfigError('Bochs', '', `its source has no ${start}`, 'report this')
  return found
}

function makeIn(directory: string): Compilation {
  let compiled = 0
  const done = (text: string) => {
    compiled += text.match(/^(g\+\+|gcc|cc) .*-c /gm)?.length ?? 0
    return compiled / COMPILATIONS
  }
  return { what: 'Bochs', command: 'make', args: [], directory, done, remedy: "install Debian's bochs instead" }
}
