import { mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { ConfigError } from '../errors.js'
import { findProgram, outputOf } from './command.js'

/** Told in a few words what goes on. */
export type Progress = (message: string) => void

/** Another apt may be at work: wait for it instead of failing. */
const WAIT_FOR_LOCK = ['-o', 'DPkg::Lock::Timeout=300']

/** The package lists were brought up to date by this process already. */
let updated = false

/**
 * Downloads the first of `packages` that can be had and unpacks it below `directory`, without installing it.
 * Returns its name. apt checks its signature chain and hash.
 *
 * @throws ConfigError where there is no apt, or none of them can be had.
 */
export async function unpackPackage(
  packages: readonly string[],
  directory: string,
  progress: Progress,
): Promise<string> {
  await needApt(packages[0]!)
  return withUpdate(packages[0]!, progress, async () => {
    let failure: unknown
    for (const name of packages) {
      try {
        progress(`downloading ${name}`)
        const downloads = join(directory, 'download')
        await mkdir(downloads, { recursive: true })
        // As root, apt would download as a user that may not write here.
        await outputOf('apt-get', ['-q', '-o', 'APT::Sandbox::User=root', 'download', name], downloads)
        const file = (await readdir(downloads)).find(file => file.endsWith('.deb'))
        if (file === undefined) throw new Error(`apt-get download ${name} left no package`)
        progress(`unpacking ${name}`)
        await outputOf('dpkg-deb', ['-x', join(downloads, file), directory])
        return name
      } catch (error) {
        failure ??= error
      }
    }
    throw failure
  })
}

/** Installs a package on this machine, where we are root. Throws ConfigError otherwise, saying what to run. */
export async function installPackage(name: string, field: string, progress: Progress): Promise<void> {
  const command = `apt-get install --no-install-recommends ${name}`
  if (process.getuid?.() !== 0) {
    throw new ConfigError(field, '', 'is not installed', `run: sudo ${command}`)
  }
  await needApt(name)
  await withUpdate(name, progress, async () => {
    progress(`installing ${name}`)
    await outputOf('apt-get', ['install', '-y', '-q', '--no-install-recommends', ...WAIT_FOR_LOCK, name])
  })
}

/** The package that a kernel's meta package (`linux-image-amd64`) stands for now, signed and unsigned. */
export async function kernelPackages(meta: string, progress: Progress): Promise<string[]> {
  await needApt(meta)
  return withUpdate(meta, progress, async () => {
    const record = await outputOf('apt-cache', ['show', '--no-all-versions', meta])
    const name = /^Depends:.*?\b(linux-image-\d[^\s,]*)/m.exec(record)?.[1]
    if (name === undefined) throw new Error(`${meta} names no kernel package`)
    return [name, `${name}-unsigned`]
  })
}

/** Tries; and if that fails, tries once more with fresh package lists. */
async function withUpdate<T>(name: string, progress: Progress, attempt: () => Promise<T>): Promise<T> {
  let failure: unknown
  try {
    return await attempt()
  } catch (error) {
    failure = error
  }
  if (!updated && process.getuid?.() === 0) {
    progress('bringing the package lists up to date')
    try {
      await outputOf('apt-get', ['update', '-q', ...WAIT_FOR_LOCK])
      updated = true
      return await attempt()
    } catch (error) {
      failure = error
    }
  }
  const problem = `cannot be had from apt (${(failure as Error).message})`
  const sudo = process.getuid?.() === 0 ? '' : 'sudo '
  throw new ConfigError('package', name, problem, `run: ${sudo}apt-get update, check the apt sources and the network`)
}

async function needApt(name: string): Promise<void> {
  for (const program of ['apt-get', 'apt-cache', 'dpkg-deb']) {
    if ((await findProgram(program)) !== undefined) continue
    throw new ConfigError(
      'package',
      name,
      `there is no ${program} to fetch it with`,
      `install what Debian has in ${name}`,
    )
  }
}
