// Runs one of examples/, compiled for a Node that does not read TypeScript: npm run example NAME
import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { root } from './paths.mjs'

const [name = '', ...args] = process.argv.slice(2)
const names = readdirSync(join(root, 'examples')).map(file => file.replace(/\.ts$/, ''))
if (!names.includes(name)) {
  console.error(`example: ${name ? `there is no ${name}` : 'say which'}: ${names.join(', ')}`)
  process.exit(2)
}
const source = readFileSync(join(root, 'examples', `${name}.ts`), 'utf8')
const { outputText } = ts.transpileModule(source, {
  compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
})
// Below the package's root, so that 'nested-kvm' is this package.
const directory = join(root, 'build/examples')
mkdirSync(directory, { recursive: true })
const file = join(directory, `${name}.mjs`)
writeFileSync(file, outputText)
process.exitCode = spawnSync(process.execPath, [file, ...args], { stdio: 'inherit' }).status ?? 1
