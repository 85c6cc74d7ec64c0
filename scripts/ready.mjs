// Makes a checkout ready to use, from whatever state it is in: compiler, dependencies, addon, compiled TypeScript.
// Does only what is missing or out of date, and says on stderr what it does; nothing to do takes a few milliseconds.
//
//   node scripts/ready.mjs [--quiet]     --quiet: no progress lines, only failures
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { delimiter, dirname, join, relative } from 'node:path'
import { withLock } from './lock.mjs'
import { root } from './paths.mjs'

const quiet = process.argv.includes('--quiet')
const stampFile = join(root, 'node_modules/.cache/nested-kvm/ready.json')

function say(text) {
  if (!quiet) process.stderr.write(`ready: ${text}\n`)
}

function fail(text) {
  process.stderr.write(`ready: ${text}\n`)
  process.exit(1)
}

function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch {
    return undefined
  }
}

/** Runs a program; its output goes to stderr, or with --quiet only when it fails. */
function run(command, args, env = process.env) {
  const result = spawnSync(command, args, { cwd: root, env, stdio: quiet ? 'pipe' : ['ignore', 2, 2] })
  if (result.status === 0) return true
  if (quiet) process.stderr.write(Buffer.concat([result.stdout ?? Buffer.alloc(0), result.stderr ?? Buffer.alloc(0)]))
  return false
}

function onPath(program) {
  return (process.env.PATH ?? '').split(delimiter).some(directory => directory && existsSync(join(directory, program)))
}

/** Every file below a directory, sorted. */
function filesBelow(directory) {
  if (!existsSync(directory)) return []
  return readdirSync(directory, { withFileTypes: true, recursive: true })
    .filter(entry => entry.isFile())
    .map(entry => join(entry.parentPath ?? entry.path, entry.name))
    .sort()
}

/** One hash over names and contents, so that a checkout's time stamps do not matter. */
function fingerprint(files) {
  const hash = createHash('sha256')
  for (const file of files) {
    const content = readFileSync(file)
    hash.update(`${relative(root, file)}\0${content.length}\0`).update(content)
  }
  return hash.digest('hex')
}

/** What was built from which sources; read once the lock is held. */
let stamps = {}

function stamp(key, value) {
  stamps[key] = value
  mkdirSync(dirname(stampFile), { recursive: true })
  writeFileSync(stampFile, JSON.stringify(stamps))
}

// ---- Dependencies --------------------------------------------------------------------------------------------------

/** True when node_modules holds what package-lock.json asks for: npm keeps its own record of what it installed. */
function dependenciesInstalled() {
  const wanted = readJson(join(root, 'package-lock.json'))?.packages
  const installed = readJson(join(root, 'node_modules/.package-lock.json'))?.packages
  if (!wanted || !installed) return false
  return Object.entries(wanted).every(([path, { version, optional, peer }]) => {
    if (path === '') return true
    const found = installed[path]
    return found ? found.version === version : Boolean(optional || peer)
  })
}

function installDependencies() {
  say('installing dependencies (npm ci)')
  // npm_execpath is the npm that runs us; it need not be on PATH.
  const npm = process.env.npm_execpath
  const [command, ...prefix] = npm ? [process.execPath, npm] : ['npm']
  // The install scripts are not needed: the addon is built below, the other packages bring their binaries with them.
  const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund']
  if (!run(command, [...prefix, ...args])) {
    fail('npm ci failed (above). It needs the npm registry, or a filled npm cache with `npm ci --offline`')
  }
}

// ---- Addon ---------------------------------------------------------------------------------------------------------

function installCompiler() {
  const missing = ['g++', 'make', 'python3'].filter(program => !onPath(program))
  if (missing.length === 0) return
  const packages = ['build-essential', 'python3']
  const byHand = `apt-get update && apt-get install -y --no-install-recommends ${packages.join(' ')}`
  if (!onPath('apt-get')) fail(`${missing.join(', ')} missing: install a C++20 compiler, make and Python 3`)
  if (process.getuid?.() !== 0) fail(`${missing.join(', ')} missing, and only root may install: sudo sh -c '${byHand}'`)
  say(`${missing.join(', ')} missing: installing ${packages.join(' ')}`)
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  run('apt-get', ['update', '-q'], env)
  if (!run('apt-get', ['install', '-y', '-q', '--no-install-recommends', ...packages], env)) {
    fail(`apt-get failed (above). Install by hand: ${byHand}`)
  }
}

function buildAddon() {
  const sources = [join(root, 'binding.gyp'), ...filesBelow(join(root, 'native'))]
  const current = fingerprint(sources)
  const output = join(root, 'build/Release/nested_kvm.node')
  if (stamps.native === current && existsSync(output)) return
  installCompiler()
  say('building the addon (node-gyp)')
  if (!run(process.execPath, [join(root, 'scripts/build-native.mjs')])) fail('the addon did not build (above)')
  stamp('native', current)
}

// ---- TypeScript ----------------------------------------------------------------------------------------------------

function compileTypeScript() {
  const bundler = join(root, 'scripts/bundle-cli.mjs')
  const sources = filesBelow(join(root, 'lib')).filter(file => file.endsWith('.ts'))
  const current = fingerprint([join(root, 'tsconfig.json'), join(root, 'tsconfig.build.json'), bundler, ...sources])
  const main = join(root, 'dist/cli/main.js')
  const ofCli = join(root, 'lib/cli/')
  const outputs = new Set(
    sources
      .filter(file => !file.startsWith(ofCli))
      .map(file => join(root, 'dist', relative(join(root, 'lib'), file).replace(/\.ts$/, '')))
      .flatMap(base => [`${base}.js`, `${base}.d.ts`]),
  )
  const existing = new Set(filesBelow(join(root, 'dist')))
  outputs.add(main)
  if (stamps.typescript === current && [...outputs].every(file => existing.has(file))) return
  say('compiling TypeScript (tsc)')
  const tsc = join(root, 'node_modules/typescript/bin/tsc')
  if (!run(process.execPath, [tsc, '-p', 'tsconfig.build.json'])) fail('tsc reports errors (above)')
  if (!run(process.execPath, [bundler])) fail('the command line could not be bundled (above)')
  // What is left of sources that are gone must not be packed.
  for (const file of existing) if (!outputs.has(file)) rmSync(file, { force: true })
  stamp('typescript', current)
}

// --------------------------------------------------------------------------------------------------------------------

const [major, minor] = process.versions.node.split('.').map(Number)
if (major < 20 || (major === 20 && minor < 19))
  fail(`Node ${process.versions.node} is too old: 20.19 or later is needed`)
if (process.platform !== 'linux' || process.arch !== 'x64') {
  fail(`${process.platform} on ${process.arch}: /dev/kvm with nested virtualization needs Linux on x86-64`)
}

await withLock(
  join(root, 'build/ready.lock'),
  () => say('waiting for another run to finish'),
  () => {
    if (!dependenciesInstalled()) installDependencies()
    stamps = readJson(stampFile) ?? {}
    buildAddon()
    compileTypeScript()
  },
)
