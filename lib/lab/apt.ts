import { access, mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ConfigError } from '../errors.js'
import { findProgram, outputOf } from './command.js'

/** Told in a few words what goes on. */
export type Progress = (message: string) => void

/** Another apt may be at work: wait for it instead of failing. */
const WAIT_FOR_LOCK = ['-o', 'DPkg::Lock::Timeout=300']

/** Debian's archive keys, of all its suites. */
const DEBIAN_KEYS = '/usr/share/keyrings/debian-archive-keyring.gpg'

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

/**
 * Downloads a source package from another `suite` of the distribution that this machine's apt sources name, and unpacks it into `directory`, which
 * is made: the upstream archive, and with `patched` the distribution's patches too, for which dpkg-source has to be there. This machine's own apt
 * sources and lists stay as they are.
 *
 * @throws ConfigError where there is no apt, or it cannot be had.
 */
export async function unpackSource(
  name: string,
  suite: string,
  directory: string,
  progress: Progress,
  { patched = false } = {},
): Promise<void> {
  await needApt(name)
  await withUpdate(name, progress, async () => {
    progress(`downloading the source of ${name} from ${suite}`)
    const work = `${directory}.apt`
    await rm(work, { recursive: true, force: true })
    const lists = join(work, 'lists')
    await mkdir(join(lists, 'partial'), { recursive: true })
    const sources = join(work, 'suite.sources')
    await writeFile(sources, await sourceEntry(suite))
    const own = [`Dir::Etc::sourcelist=${sources}`, 'Dir::Etc::sourceparts=/dev/null', `Dir::State::lists=${lists}`]
    own.push(`Dir::Cache=${work}`, 'APT::Sandbox::User=root')
    const options = own.flatMap(option => ['-o', option])
    await outputOf('apt-get', ['update', '-q', ...options])
    const source = join(work, 'source')
    await mkdir(source)
    await outputOf('apt-get', ['source', '-q', ...(patched ? [] : ['--tar-only']), ...options, name], source)
    const entries = await readdir(source, { withFileTypes: true })
    const tree = entries.find(entry => entry.isDirectory())?.name
    const archive = entries.find(({ name: file }) => file.startsWith(`${name}_`) && file.includes('.orig.tar'))?.name
    if (patched && tree !== undefined) {
      await rename(join(source, tree), directory)
    } else if (!patched && archive !== undefined) {
      progress(`unpacking ${archive}`)
      await mkdir(directory, { recursive: true })
      await outputOf('tar', ['-xf', join(source, archive), '-C', directory, '--strip-components=1'])
    } else {
      throw new Error(`apt-get source ${name} left nothing of it`)
    }
    await rm(work, { recursive: true })
  })
}

/** Where this machine has its release from, that suite is, too (sources.list(5), DEB822-STYLE FORMAT). */
async function sourceEntry(suite: string): Promise<string> {
  const lines = ['Types: deb-src', `URIs: ${await releaseMirror()}`, `Suites: ${suite}`, 'Components: main']
  const key = await access(DEBIAN_KEYS).then(
    () => [`Signed-By: ${DEBIAN_KEYS}`],
    () => [],
  )
  return `${[...lines, ...key].join('\n')}\n`
}

/** The mirror that this machine's apt has its release from. */
export async function releaseMirror(): Promise<string> {
  await needApt('apt')
  const format = '$(REPO_URI) $(RELEASE) $(COMPONENT)'
  const targets = await outputOf('apt-get', ['indextargets', '--format', format, 'Created-By: Packages'])
  // Not of an addition to a release (-updates, -security), which has few packages.
  const uri = /^(\S+) [^\s-]+ main$/m.exec(targets)?.[1]
  if (uri !== undefined) return uri
  throw new ConfigError('apt sources', '', 'name no release with a component main', 'add one, and run: apt-get update')
}

/** What the environment of a program that fetches packages past apt has to say of the proxy that apt is told to use. */
export async function aptProxy(): Promise<string[]> {
  const proxy = await outputOf('apt-config', ['shell', 'proxy', 'Acquire::http::Proxy'])
  const value = /^proxy='(.+)'$/m.exec(proxy)?.[1]
  return value === undefined ? [] : [`http_proxy=${value}`]
}

/** Installs packages on this machine, where we are root. Throws ConfigError otherwise, saying what to run. */
export async function installPackages(names: readonly string[], field: string, progress: Progress): Promise<void> {
  const name = names.join(' ')
  const command = `apt-get install --no-install-recommends ${name}`
  if (process.getuid?.() !== 0) {
    throw new ConfigError(field, '', `needs ${names.join(', ')}`, `run: sudo ${command}`)
  }
  await needApt(name)
  await withUpdate(name, progress, async () => {
    progress(`installing ${name}`)
    await outputOf('apt-get', ['install', '-y', '-q', '--no-install-recommends', ...WAIT_FOR_LOCK, ...names])
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
