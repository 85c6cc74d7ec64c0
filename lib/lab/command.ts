import { execFile, spawn } from 'node:child_process'
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** Where superusers' programs are, which an ordinary user's PATH may lack. */
const FURTHER_DIRECTORIES = ['/usr/local/bin', '/usr/bin', '/bin', '/usr/sbin', '/sbin']

/** The path of a program, or undefined. */
export async function findProgram(name: string): Promise<string | undefined> {
  for (const directory of [...(process.env.PATH ?? '').split(delimiter), ...FURTHER_DIRECTORIES]) {
    if (!directory.startsWith('/')) continue
    const path = join(directory, name)
    if (await isExecutable(path)) return path
  }
  return undefined
}

export async function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  )
}

/** Runs a program in the C locale and gives its standard output. Rejects with an Error that holds what it complained of. */
export async function outputOf(program: string, args: readonly string[], cwd?: string): Promise<string> {
  const env = { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' }
  try {
    return (await run(program, args, { env, maxBuffer: 1 << 26, ...(cwd === undefined ? {} : { cwd }) })).stdout
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string }
    const complaint = stderr?.trim().split('\n').slice(-5).join('\n')
    throw new Error(`${program} ${args.join(' ')}: ${complaint || message}`)
  }
}

/** Sends bytes through a program. Rejects when it cannot be started or fails. */
export function filter(program: string, args: readonly string[], input: Uint8Array): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'ignore'] })
    const pieces: Buffer[] = []
    child.stdout.on('data', piece => pieces.push(piece))
    child.once('error', reject)
    child.once('close', code => {
      if (code === 0) resolve(Buffer.concat(pieces))
      else reject(new Error(`${program} ended with code ${code}`))
    })
    // It fails by its exit code; a broken pipe says no more.
    child.stdin.on('error', () => {})
    child.stdin.end(input)
  })
}
