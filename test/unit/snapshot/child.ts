import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const lib = fileURLToPath(new URL('../../../lib', import.meta.url))

/** lib/snapshot as JavaScript below `directory`, for processes of their own; gives the path of its folder. */
export function compileSnapshots(directory: string): string {
  const options = { target: ts.ScriptTarget.ES2023, module: ts.ModuleKind.ESNext }
  mkdirSync(join(directory, 'dist/snapshot'), { recursive: true })
  writeFileSync(join(directory, 'package.json'), '{ "type": "module", "version": "0.0.0" }')
  for (const name of ['errors.ts', ...readdirSync(join(lib, 'snapshot')).map(file => `snapshot/${file}`)]) {
    const { outputText } = ts.transpileModule(readFileSync(join(lib, name), 'utf8'), { compilerOptions: options })
    writeFileSync(join(directory, 'dist', name.replace(/\.ts$/, '.js')), outputText)
  }
  return join(directory, 'dist/snapshot')
}

/** Where memory is not zero: written by other threads, and small enough to be written at once. */
export const HOLEY = [
  [0, 2 ** 19],
  [2 ** 20, 2 ** 20 + 4096],
  [2 ** 21 - 2 ** 17, 2 ** 21],
] as const

/**
 * Saves `count` snapshots, one after the other, to the same directory: memory filled with the seed, which the configuration names
 * too: 2 MiB with holes. With `killAt`, ends itself by SIGKILL before the operation on files of that number.
 */
export const SAVER = `
import fs from 'node:fs'
import promises from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
const [snapshots, directory, first, count, killAt] = process.argv.slice(1)
let operations = 0
let armed = false
function watch(object, name) {
  const original = object[name]
  object[name] = function (...args) {
    if (armed && ++operations === Number(killAt)) process.kill(process.pid, 'SIGKILL')
    return original.apply(this, args)
  }
}
for (const name of ['mkdir', 'open', 'rename', 'rm', 'readdir', 'lstat', 'realpath']) watch(promises, name)
watch(fs, 'writeSync')
const handle = await promises.open('/dev/null')
for (const name of ['sync', 'truncate', 'write', 'writeFile', 'close']) watch(Object.getPrototypeOf(handle), name)
syncBuiltinESMExports()
const { writeSnapshot } = await import(snapshots + '/save.js')
const size = 2 ** 21
const HOLEY = ${JSON.stringify(HOLEY)}
for (let seed = Number(first); seed < Number(first) + Number(count); seed++) {
  const bytes = Buffer.alloc(size)
  for (const [start, end] of HOLEY) bytes.fill(seed, start, end)
  const memory = { regions: [{ guestAddress: 0, size, chunks: [bytes], data: [{ offset: 0, length: size }] }] }
  const state = { config: { seed }, vm: {}, vcpus: [], devices: {} }
  armed = true
  console.log('saving', seed)
  try {
    await writeSnapshot(directory, { state, memory })
  } catch (error) {
    console.log(error.name + ': ' + error.message)
  }
  console.log('saved', seed, 'operations', operations)
}
`

export interface Saver {
  readonly child: ChildProcess
  readonly ended: Promise<{ output: string; signal: string | null }>
}

export function startSaver(
  snapshots: string,
  directory: string,
  { first, count = 1, killAt = 0, prefix = [] }: { first: number; count?: number; killAt?: number; prefix?: string[] },
): Saver {
  const script = [
    '--input-type=module',
    '--eval',
    SAVER,
    snapshots,
    directory,
    String(first),
    String(count),
    String(killAt),
  ]
  const [program, ...args] = [...prefix, process.execPath, ...script]
  const child = spawn(program!, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise<{ output: string; signal: string | null }>((resolve, reject) => {
    let output = ''
    child.stdout!.on('data', data => {
      output += data
    })
    child.on('error', reject)
    child.on('close', (_, signal) => resolve({ output, signal }))
  })
  return { child, ended }
}
