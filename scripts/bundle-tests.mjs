// Bundles the tests of test/lab into build/lab-tests, one module a file and what they share: in an emulated host, starting vitest takes
// half a minute and each file that it transforms takes seconds.
//
//   import { bundleTests } from './bundle-tests.mjs'      gives the paths of the modules, by test file's name
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { build } from 'rolldown'
import { root } from './paths.mjs'

const out = join(root, 'build/lab-tests')
const lib = join(root, 'lib')
const dist = join(root, 'dist')

/** Tests run what `npm run build:ts` has compiled, which is what is shipped, and which finds its files from where it stands. */
const compiledLib = {
  name: 'compiled-lib',
  resolveId(source, importer) {
    if (!importer || !source.startsWith('.')) return undefined
    const path = resolve(dirname(importer), source)
    if (!path.startsWith(`${lib}/`)) return undefined
    const compiled = join(dist, path.slice(lib.length))
    return existsSync(compiled) ? compiled : undefined
  },
  transform(code, id) {
    if (!id.startsWith(`${dist}/`) || !code.includes('import.meta.url')) return undefined
    // Which moves no line.
    return { code: code.replaceAll('import.meta.url', JSON.stringify(pathToFileURL(id).href)), map: null }
  },
}

/** Bundles them anew, and returns what to run: `main`, and the module of each test file by its name. */
export async function bundleTests() {
  const names = readdirSync(join(root, 'test/lab')).filter(file => file.endsWith('.test.ts'))
  rmSync(out, { recursive: true, force: true })
  const entries = names.map(name => [name.replace(/\.ts$/, ''), join(root, 'test/lab', name)])
  await build({
    input: { main: join(root, 'test/quick/main.ts'), ...Object.fromEntries(entries) },
    platform: 'node',
    plugins: [compiledLib],
    resolve: { alias: { vitest: join(root, 'test/quick/vitest.ts') } },
    // Node 20 does not know `using`.
    transform: { target: 'node20' },
    output: {
      dir: out,
      format: 'esm',
      entryFileNames: '[name].mjs',
      chunkFileNames: '[name]-[hash].mjs',
      sourcemap: true,
    },
    logLevel: 'warn',
  })
  const modules = new Map(names.map(name => [name, join(out, name.replace(/\.ts$/, '.mjs'))]))
  return { main: join(out, 'main.mjs'), modules }
}
