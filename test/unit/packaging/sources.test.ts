import { readdirSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'

const root = new URL('../../../', import.meta.url)
const read = (path: string) => readFileSync(new URL(path, root), 'utf8')

/** The native/*.cc that a build file names, in its order. */
const named = (path: string) => read(path).match(/native\/\w+\.cc/g) ?? []

describe('the two native builds', () => {
  const onDisk = readdirSync(new URL('native', root))
    .filter(name => name.endsWith('.cc'))
    .map(name => `native/${name}`)
    .sort()

  it.each(['binding.gyp', 'CMakeLists.txt'])('%s names every source once, sorted', path => {
    expect(onDisk.length).toBeGreaterThan(0)
    expect(named(path)).toEqual(onDisk)
  })

  it('agree on the target and the Node-API version', () => {
    expect(read('binding.gyp')).toContain("'target_name': 'nested_kvm'")
    expect(read('CMakeLists.txt')).toMatch(/add_library\(nested_kvm MODULE/)
    const version = JSON.parse(read('package.json')).binary.napi_versions[0]
    for (const path of ['binding.gyp', 'CMakeLists.txt']) expect(read(path)).toContain(`NAPI_VERSION=${version}`)
  })
})
