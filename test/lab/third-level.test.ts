import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'
import { LAST_COUNT } from '../../lib/lab/tower-image.js'

/** Half a minute by the clock that counts instructions, more than two where it is this machine's. */
const LONG = { timeout: 1_400_000 }

it(
  'L2 boots an L3 to user space, and the tower goes on in a new process in the middle of what L3 does',
  LONG,
  async () => {
    const args = ['dist/cli/main.js', 'demo', '--levels', '3', '--where', 'host', '--json', '--timeout', '1350']
    const failed = (error: { stdout: string }) => error
    const { stdout } = await promisify(execFile)(process.execPath, args).catch(failed)
    const { ok, reason, vendor, levels, snapshot, ...rest } = JSON.parse(stdout)
    expect(reason).toBeUndefined()
    // How long each level took is worth knowing where it nearly took too long.
    console.log(JSON.stringify({ levels, snapshot, ...rest }))
    expect(ok).toBe(true)
    expect(levels.map(({ level }: { level: number }) => level)).toEqual([0, 1, 2, 3])
    // That L3 has the extension means that L2's KVM nests.
    for (const { level, flag, hypervisor } of levels.slice(1)) {
      expect([level, flag, hypervisor]).toEqual([level, vendor, 'KVMKVMKVM'])
    }
    expect(snapshot.lastCount).toBe(LAST_COUNT)
  },
)
