import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'

/** A disk that is a script, until the test's end: in whole sectors, filled with empty lines. `cat /dev/vdc | bash` runs it. */
export async function scriptDisk(script: string): Promise<{ path: string; readonly: true }> {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-script-'))
  onTestFinished(() => rm(directory, { recursive: true, force: true }))
  const path = join(directory, 'script')
  await writeFile(path, script.padEnd(Math.ceil(script.length / 512) * 512, '\n'))
  return { path, readonly: true }
}
