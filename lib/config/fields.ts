import { accessSync, constants, statSync } from 'node:fs'
import { ConfigError } from '../errors.js'

/**
 * The path of a file that can be read, or its content. The file is looked at, but not read.
 * @throws {ConfigError} `field`: it is none
 */
export function fileContent(field: string, value: unknown): string | Uint8Array {
  if (value instanceof Uint8Array) return value
  if (typeof value !== 'string' || value === '') {
    throw new ConfigError(field, value, 'it is neither a path nor bytes', 'give the path of a file')
  }
  let problem: string | undefined
  try {
    if (!statSync(value).isFile()) problem = 'it is no regular file'
    else accessSync(value, constants.R_OK)
  } catch (error) {
    problem = fileProblem(error)
  }
  if (problem) throw new ConfigError(field, value, problem, 'give the path of a file that this user may read')
  return value
}

/** @throws {ConfigError} `field`: it is no string */
export function text(field: string, value: unknown): string {
  if (typeof value !== 'string') throw new ConfigError(field, value, 'it is no string', 'give a string')
  return value
}

function fileProblem(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? String(error.code) : String(error)
  if (code === 'ENOENT' || code === 'ENOTDIR') return 'there is no such file'
  if (code === 'EACCES') return 'it may not be read'
  return `it cannot be read (${code})`
}
