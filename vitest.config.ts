import { existsSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { defineConfig, type Plugin } from 'vitest/config'

const lib = join(import.meta.dirname, 'lib')

/**
 * In the emulated host, where each transformed file costs seconds, tests import what `npm run build:ts` has compiled already.
 */
const compiledLib: Plugin = {
  name: 'compiled-lib',
  enforce: 'pre',
  resolveId(source, importer) {
    if (!importer || !source.startsWith('.')) return undefined
    const path = resolve(dirname(importer), source)
    if (!path.startsWith(`${lib}/`)) return undefined
    const compiled = join(import.meta.dirname, 'dist', path.slice(lib.length))
    return existsSync(compiled) ? { id: compiled, external: true } : undefined
  },
}

export default defineConfig({
  plugins: process.env.NESTED_KVM_LAB ? [compiledLib] : [],
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    testTimeout: 30_000,
  },
})
