/** reset-run.mjs DIRECTORY: the baseline of reset: the same guest started as users do, from the new process to the line that its init writes. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

const cli = join(import.meta.dirname, '../../dist/cli/main.js')
const { kernel, initrd, cmdline, memory } = JSON.parse(readFileSync(join(process.argv[2], 'options.json'), 'utf8'))
const guest = ['--kernel', kernel, '--initrd', initrd, '--append', cmdline, '--memory', memory]
const start = performance.now()
const child = spawn(process.execPath, [cli, 'run', ...guest], { stdio: ['ignore', 'pipe', 'inherit'] })
let text = ''
for await (const data of child.stdout.setEncoding('utf8')) {
  text += data
  if (text.includes('@init')) break
}
const value = (performance.now() - start) / 1e3
if (!text.includes('@init')) throw new Error(`nested-kvm run ended without the line of init: ${text}`)
child.kill()
if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
console.log(JSON.stringify({ value, check: 1 }))
