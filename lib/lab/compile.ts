import { spawn } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { ConfigError } from '../errors.js'
import type { Progress } from './apt.js'

/** How a program is compiled from its source. */
export interface Compilation {
  /** The program's name. */
  readonly what: string
  /** make(1) or ninja(1), which both know `-j`. */
  readonly command: string
  readonly args: readonly string[]
  readonly directory: string
  /** How much of it is done, from 0 to 1, after what the command has said now. */
  readonly done: (text: string) => number
  /** What to do where it fails. */
  readonly remedy: string
}

/**
 * Compiles on all processors, and tells every tenth how far it is.
 *
 * @throws ConfigError with the last that it complained of.
 */
export async function compile(compilation: Compilation, progress: Progress): Promise<void> {
  const { what, command, args, directory, done, remedy } = compilation
  const jobs = availableParallelism()
  progress(`building ${what} with ${jobs} processes: some minutes`)
  await new Promise<void>((resolve, reject) => {
    const child = spawn(command, [`-j${jobs}`, ...args], { cwd: directory, stdio: ['ignore', 'pipe', 'pipe'] })
    let [told, said, complaint] = [0, '', '']
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-4000)
      const percent = Math.min(99, Math.floor(done(text) * 100))
      if (percent < told + 10) return
      told = percent - (percent % 10)
      progress(`building ${what}: ${told} %`)
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      complaint = (complaint + text).slice(-4000)
    })
    child.once('error', reject)
    child.once('close', code => {
      if (code === 0) return resolve()
      // ninja has the compiler's complaints on its standard output.
      const why = (complaint.trim() || said.trim()).split('\n').slice(-20).join('\n')
      reject(new ConfigError(what, '', `does not build: ${why}`, remedy))
    })
  })
}
