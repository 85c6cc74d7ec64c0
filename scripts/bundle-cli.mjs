// Makes one file of the command line and of what it uses of the library, in the place of the modules of dist/cli: to find, read and link 250
// modules takes longer than all else that a short command does, most of all in an emulated host. The paths that modules make of their own
// hold in it, since all of them stand two directories below the package's root.
import { chmodSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { rolldown } from 'rolldown'
import { root } from './paths.mjs'

const directory = join(root, 'dist/cli')
const main = join(directory, 'main.js')
const bundle = join(directory, 'main.bundle.js')

const build = await rolldown({
  input: main,
  platform: 'node',
  // What package.json depends on stays a package.
  external: source => /^[a-z@]/.test(source),
  transform: { target: 'node20' },
  onLog(_level, log) {
    throw new Error(log.message)
  },
})
await build.write({ file: bundle, format: 'esm', comments: false })
await build.close()
for (const name of readdirSync(directory)) if (join(directory, name) !== bundle) rmSync(join(directory, name))
renameSync(bundle, main)
chmodSync(main, 0o755)
