// Builds the addon with node-gyp for the Node that runs this script.
//
//   node scripts/build-native.mjs             build/Release/nested_kvm.node, only what changed
//   node scripts/build-native.mjs --prebuild  prebuilds/linux-x64/nested-kvm.node, stripped, as it ships
//
// Node's headers: the directory in npm_config_nodedir, else those installed beside the running Node, else node-gyp
// downloads them.
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { withLock } from './lock.mjs'
import { root } from './paths.mjs'

const require = createRequire(import.meta.url)

/** The directory that holds include/node/node_api.h, or undefined when node-gyp has to download it. */
function headersDirectory() {
  const candidates = [process.env.npm_config_nodedir, dirname(dirname(process.execPath))]
  return candidates.find(directory => directory && existsSync(join(directory, 'include/node/node_api.h')))
}

/** The environment of every build: binding.gyp and its tools call `node`, which has to be this one. */
function environment() {
  const env = {
    ...process.env,
    PATH: `${dirname(process.execPath)}:${join(root, 'node_modules/.bin')}:${process.env.PATH}`,
  }
  const headers = headersDirectory()
  // As an environment variable, not as an option: prebuildify hands no options on to node-gyp.
  if (headers) env.npm_config_nodedir = headers
  env.npm_config_jobs = 'max'
  env.npm_config_loglevel = 'warn'
  return env
}

function run(script, args, cwd) {
  const result = spawnSync(process.execPath, [script, ...args], { cwd, env: environment(), stdio: ['ignore', 2, 2] })
  if (result.error) throw result.error
  if (result.status !== 0) {
    console.error(`build-native: ${args[0] ?? script} failed (${result.signal ?? `exit code ${result.status}`})`)
    process.exit(1)
  }
}

function build() {
  const nodeGyp = require.resolve('node-gyp/bin/node-gyp.js')
  run(nodeGyp, ['configure', 'build', '--release'], root)
}

/** prebuildify moves the binary out of build/, so it works on a copy and the developer's build stays. */
function prebuild() {
  const copy = mkdtempSync(join(tmpdir(), 'nested-kvm-prebuild-'))
  try {
    for (const path of ['package.json', 'binding.gyp', 'native'])
      cpSync(join(root, path), join(copy, path), { recursive: true })
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
    rmSync(join(root, 'prebuilds'), { recursive: true, force: true })
    const bin = join(dirname(require.resolve('prebuildify')), 'bin.js')
    run(bin, ['--napi', '--strip', '--cwd', copy, '--out', root, '--target', process.versions.node], root)
  } finally {
    rmSync(copy, { recursive: true, force: true })
  }
}

if (process.argv.includes('--prebuild')) prebuild()
else
  await withLock(join(root, 'build/native.lock'), () => console.error('build-native: waiting for another build'), build)
