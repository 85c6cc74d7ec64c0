import { execFile, execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { onTestFinished } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
import { ModuleTree } from '../../lib/lab/modules.js'

const run = promisify(execFile)

export const ip = (words: string) => execFileSync('ip', words.split(' '))
/** The bridge, and the host's and the guest's addresses on it. */
export const BRIDGE = 'nkbr0'
export const [HOST, GUEST] = ['10.199.7.1', '10.199.7.2']

/** Makes the bridge, until the test's end. */
export async function makeBridge(): Promise<void> {
  const missing = ['tun', 'bridge'].filter(name => !existsSync(`/sys/module/${name}`))
  if (missing.length > 0) await loadModules(missing)
  ip(`link add ${BRIDGE} type bridge`)
  onTestFinished(() => void ip(`link del ${BRIDGE}`))
  ip(`addr add ${HOST}/24 dev ${BRIDGE}`)
  ip(`link set ${BRIDGE} up`)
}

/** In the emulated host nothing loads modules by itself. */
async function loadModules(names: string[]): Promise<void> {
  const { labKernel, busybox } = await ensureAssets(['labKernel', 'busybox'])
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-modules-'))
  for (const { name, data } of await (await ModuleTree.open(labKernel.modulesDir)).load(...names)) {
    const file = join(directory, `${name}.ko`)
    await writeFile(file, data)
    // What is there already fails.
    await run(busybox.program, ['insmod', file]).catch(() => {})
  }
  await rm(directory, { recursive: true })
}
