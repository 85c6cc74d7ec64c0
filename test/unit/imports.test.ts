import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'

const lib = fileURLToPath(new URL('../../lib', import.meta.url))

/**
 * Who may import whom: a folder, or a file of it where only that one is meant. Any folder may import `errors`. Layouts of
 * the kernel's structs stand once, in `kvm/structs`, so whoever reads one imports that.
 */
const allowed: Record<string, readonly string[]> = {
  // The rules are checked before the ioctl; they need nothing but layouts.
  kvm: ['nested/rules', 'nested/vmx-capabilities'],
  memory: [],
  config: [],
  nested: ['kvm/structs'],
  arch: ['kvm', 'memory', 'nested'],
  boot: ['memory', 'arch'],
  devices: ['memory', 'storage'],
  storage: [],
  // What a network card has at the other end: the addon's tap, and programs beside us.
  net: ['kvm/binding', 'kvm/throw-later', 'config/nets', 'devices/virtio/chain-batch', 'devices/virtio/net-backend'],
  snapshot: ['memory', 'nested'],
  machine: ['kvm', 'memory', 'config', 'nested', 'arch', 'boot', 'devices', 'snapshot', 'storage', 'net', 'sockets'],
  // The deep diagnosis runs guests of its own.
  host: ['kvm', 'nested', 'arch'],
  lab: ['boot', 'host', 'config'],
  sockets: [],
  // Beside the public API: how a socket is made that only this user reaches.
  cli: ['index', 'sockets'],
}

/** [folder, what it imports of another folder] for every import in lib. */
const imports = readdirSync(lib, { recursive: true, encoding: 'utf8' })
  .filter(path => path.endsWith('.ts'))
  .flatMap(path => {
    const source = readFileSync(join(lib, path), 'utf8')
    return [...source.matchAll(/^(?:import|export|\}) ?.*from '(\.[^']+)\.js'/gm)].map(match => ({
      path,
      folder: path.includes('/') ? path.split('/')[0]! : 'index',
      target: relative(lib, join(lib, dirname(path), match[1]!)),
    }))
  })

it('sees the imports', () => {
  expect(imports.length).toBeGreaterThan(100)
  expect(imports).toContainEqual({ path: 'machine/life-cycle.ts', folder: 'machine', target: 'kvm/vcpu-thread' })
})

it.each(Object.keys(allowed))('%s imports only what it may', folder => {
  const allows = [...allowed[folder]!, folder, 'errors']
  const forbidden = imports
    .filter(
      ({ folder: from, target }) => from === folder && !allows.some(a => target === a || target.startsWith(`${a}/`)),
    )
    .map(({ path, target }) => `${path} imports ${target}`)
  expect(forbidden).toEqual([])
})

it('every folder is in the table', () => {
  const folders = readdirSync(lib, { withFileTypes: true }).filter(entry => entry.isDirectory())
  expect(folders.map(({ name }) => name).sort()).toEqual(Object.keys(allowed).sort())
})

it('only kvm/binding loads the addon', () => {
  const loaders = readdirSync(lib, { recursive: true, encoding: 'utf8' })
    .filter(path => path.endsWith('.ts'))
    .filter(path => /\('node-gyp-build'\) as \(root/.test(readFileSync(join(lib, path), 'utf8')))
  expect(loaders).toEqual(['kvm/binding.ts'])
})
