import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { ensureAssets } from '../../lib/lab/assets.js'
import { ModuleTree } from '../../lib/lab/modules.js'

const run = promisify(execFile)

/** Loads what is not there yet: in the emulated host nothing loads modules by itself. */
export async function loadModules(names: readonly string[]): Promise<void> {
  const missing = names.filter(name => !existsSync(`/sys/module/${name}`))
  if (missing.length === 0) return
  const { labKernel, busybox } = await ensureAssets(['labKernel', 'busybox'])
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-modules-'))
  for (const { name, data } of await (await ModuleTree.open(labKernel.modulesDir)).load(...missing)) {
    const file = join(directory, `${name}.ko`)
    await writeFile(file, data)
    // What is there already fails.
    await run(busybox.program, ['insmod', file]).catch(() => {})
  }
  await rm(directory, { recursive: true })
}
