import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { newestNode, npm, npmScript, root } from './nodes.js'

const run = promisify(execFile)
const minutes = 60_000

/** Uses the package as a project would, and says what it ran on and which addon it loaded. */
const program = `
import { readFileSync } from 'node:fs'
import { Kvm } from 'nested-kvm'
const kvm = Kvm.open()
const vm = kvm.createVm()
const addon = readFileSync('/proc/self/maps', 'utf8').match(/\\S+nested-kvm\\S*\\.node/)?.[0]
console.log(JSON.stringify({ node: process.versions.node, apiVersion: kvm.apiVersion, addon }))
vm.close()
kvm.close()
`

let work: string
let tarball: string

beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'nested-kvm-package-'))
  await npm(['pack', '--pack-destination', work], root)
  const packed = (await readdir(work)).filter(name => name.endsWith('.tgz'))
  expect(packed).toHaveLength(1)
  tarball = join(work, packed[0]!)
}, 5 * minutes)

afterAll(() => rm(work, { recursive: true, force: true }))

/** An empty project and an environment in which `node` is the given one and no compiler can be found. */
async function emptyProject(name: string, node: string) {
  const project = join(work, name)
  const bin = join(work, `${name}-bin`)
  await mkdir(project)
  await mkdir(bin)
  await writeFile(join(project, 'package.json'), '{ "type": "module", "private": true }')
  await writeFile(join(project, 'program.js'), program)
  await symlink(node, join(bin, 'node'))
  await symlink('/bin/sh', join(bin, 'sh'))
  const keep = Object.entries(process.env).filter(([key]) => !/^(npm_|NESTED_KVM_|NODE_PATH$|NODE_OPTIONS$)/i.test(key))
  const env = { ...Object.fromEntries(keep), PATH: bin, CC: 'false', CXX: 'false' }
  return { project, env }
}

describe('the packed package', () => {
  it('holds what is needed to run and to rebuild, and nothing else', async () => {
    const { stdout } = await run('tar', ['-tzf', tarball])
    const files = stdout.trim().split('\n')
    for (const file of [
      'package.json',
      'README.md',
      'LICENSE',
      'CHANGELOG.md',
      'binding.gyp',
      'native/addon.cc',
      'dist/index.js',
      'dist/index.d.ts',
      'dist/cli/main.js',
      'prebuilds/linux-x64/nested-kvm.node',
    ]) {
      expect(files).toContain(`package/${file}`)
    }
    const top = new Set(files.map(file => file.split('/')[1]))
    expect([...top].sort()).toEqual([
      'CHANGELOG.md',
      'LICENSE',
      'README.md',
      'binding.gyp',
      'dist',
      'native',
      'package.json',
      'prebuilds',
    ])
    // Compiled tests or sources that are gone would show up here.
    const stray = files.filter(
      file =>
        /^package\/dist\/.*\.js$/.test(file) && !existsSync(join(root, 'lib', file.slice(13).replace(/\.js$/, '.ts'))),
    )
    expect(stray).toEqual([])
  })

  it.each([20, 22, 24, 26])(
    'installs without a compiler and runs on Node %d',
    async major => {
      const node = await newestNode(major)
      expect(node.version).toMatch(new RegExp(`^${major}\\.`))
      const { project, env } = await emptyProject(`node${major}`, node.binary)
      const install = [await npmScript(), 'install', '--no-audit', '--no-fund', '--foreground-scripts', tarball]
      await run(node.binary, install, { cwd: project, env })

      const { stdout } = await run(node.binary, ['program.js'], { cwd: project, env })
      const addon = join(project, 'node_modules/nested-kvm/prebuilds/linux-x64/nested-kvm.node')
      expect(JSON.parse(stdout)).toEqual({ node: node.version, apiVersion: 12, addon })
      expect(existsSync(join(project, 'node_modules/nested-kvm/build'))).toBe(false)

      // The README's first program, as somebody would paste it.
      const readme = await readFile(join(root, 'README.md'), 'utf8')
      const vmm = /```js\n([^`]*kvm\.createVm\(\)[^`]*)```/.exec(readme)?.[1] ?? ''
      await writeFile(join(project, 'vmm.js'), vmm)
      expect((await run(node.binary, ['vmm.js'], { cwd: project, env })).stdout).toBe('Hi')

      const command = await run(join(project, 'node_modules/.bin/nested-kvm'), ['--version'], { cwd: project, env })
      expect(command.stdout).toMatch(/^\d+\.\d+\.\d+\n$/)
    },
    5 * minutes,
  )

  it(
    'types a project under strict TypeScript',
    async () => {
      const { project } = await emptyProject('typed', process.execPath)
      await npm(['install', '--no-audit', '--no-fund', '--ignore-scripts', tarball], project)
      const source = `import { Kvm } from 'nested-kvm'
const kvm = Kvm.open()
const version: number = kvm.apiVersion
// @ts-expect-error: it is no string, so the types are really there
const wrong: string = kvm.apiVersion
console.log(version, wrong)
`
      await writeFile(join(project, 'use.ts'), source)
      const options = ['--strict', '--noEmit', '--target', 'es2023', '--module', 'nodenext', '--types', 'node']
      // The declarations need Node's own types, as every Node project has them; esnext.disposable for Symbol.dispose.
      const libraries = ['--lib', 'es2023,esnext.disposable', '--typeRoots', join(root, 'node_modules/@types')]
      const tsc = join(root, 'node_modules/typescript/bin/tsc')
      const { stdout } = await run(process.execPath, [tsc, ...options, ...libraries, 'use.ts'], { cwd: project }).catch(
        (error: { stdout: string }) => error,
      )
      expect(stdout).toBe('')
    },
    2 * minutes,
  )
})
