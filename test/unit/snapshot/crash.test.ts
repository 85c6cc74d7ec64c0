import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { afterAll, describe, expect, test } from 'vitest'
import { readSnapshot } from '../../../lib/snapshot/read.js'
import { writeSnapshot } from '../../../lib/snapshot/save.js'
import { verifySnapshot } from '../../../lib/snapshot/verify.js'
import { compileSnapshots, HOLEY, startSaver } from './child.js'
import { expectMemory, PAGE, PlainMemory, scratch, someState } from './machines.js'

const directory = scratch()
const snapshots = compileSnapshots(directory)

/** The seed of the snapshot in `path`, after all of it was found to be of that seed. */
async function seedOf(path: string): Promise<number> {
  const snapshot = await readSnapshot(path)
  await verifySnapshot(path)
  const { seed } = snapshot.state.config as { seed: number }
  const expected = Buffer.alloc(2 ** 21)
  for (const [start, end] of HOLEY) expected.fill(seed, start, end)
  expectMemory(snapshot, [expected])
  return seed
}

describe('a process that is killed while it saves', () => {
  test('before any one of its operations leaves the old snapshot or the new one, whole', {
    timeout: 120_000,
  }, async () => {
    const measured = await startSaver(snapshots, join(directory, 'measure'), { first: 1, count: 2 }).ended
    const counts = [...measured.output.matchAll(/operations (\d+)/g)].map(match => Number(match[1]))
    // The second save, which replaces a snapshot.
    const operations = counts[1]! - counts[0]!
    expect(operations).toBeGreaterThan(30)
    // What a save before left behind has to be removed, with some more.
    const moments = Array.from({ length: operations + 15 }, (_, i) => i + 1)
    const seen = { old: 0, new: 0, aside: 0 }
    await Promise.all(
      [0, 1, 2].map(async worker => {
        const own = join(directory, `worker${worker}`)
        const target = join(own, 'snap')
        mkdirSync(own)
        await startSaver(snapshots, target, { first: 1 }).ended
        let old = 1
        for (let moment = moments.shift(); moment !== undefined; moment = moments.shift()) {
          const next = old + 1
          const { signal } = await startSaver(snapshots, target, { first: next, killAt: moment }).ended
          if (moment <= operations) expect(signal).toBe('SIGKILL')
          if (!readdirSync(own).includes('snap')) seen.aside++
          const seed = await seedOf(target)
          expect(signal ? [old, next] : [next]).toContain(seed)
          seen[seed === old ? 'old' : 'new']++
          old = seed
        }
        // What they all left behind is gone with the next save.
        await startSaver(snapshots, target, { first: 99 }).ended
        expect(readdirSync(own)).toEqual(['snap'])
        expect(await seedOf(target)).toBe(99)
      }),
    )
    expect(seen.old).toBeGreaterThan(10)
    expect(seen.new).toBeGreaterThan(1)
    // The moment between the two renames, when the old snapshot is nowhere but aside.
    expect(seen.aside).toBeGreaterThan(0)
  })

  test('at random moments does so too', { timeout: 120_000 }, async () => {
    const own = join(directory, 'random')
    const target = join(own, 'snap')
    mkdirSync(own)
    await startSaver(snapshots, target, { first: 1 }).ended
    let old = 1
    for (let round = 0; round < 8; round++) {
      const { child, ended } = startSaver(snapshots, target, { first: old + 1, count: 25 })
      await new Promise(resolve => child.stdout!.once('data', resolve))
      await setTimeout(Math.random() * 60)
      child.kill('SIGKILL')
      const last = [...(await ended).output.matchAll(/^saving (\d+)$/gm)].at(-1)
      const seed = await seedOf(target)
      expect([Number(last![1]) - 1, Number(last![1])]).toContain(seed)
      old = seed
    }
  })
})

describe('a disk that is full', () => {
  const mounted = join(directory, 'small')
  mkdirSync(mounted)
  const mount = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=6m', 'tmpfs', mounted])
  const isMounted = mount.status === 0
  afterAll(() => {
    if (isMounted) spawnSync('umount', [mounted])
  })

  test.skipIf(!isMounted)(
    'leaves the old snapshot and nothing else (skipped where tmpfs cannot be mounted)',
    async () => {
      const small = new PlainMemory([[0, 2 ** 20]])
      small.fill(0, 0, 2 ** 20)
      const target = join(mounted, 'snap')
      const { id } = await writeSnapshot(target, { state: someState(), memory: small.source() })
      for (const page of [2 ** 20, 5 * PAGE, PAGE]) {
        // In large writes, by other threads, and in small ones.
        const large = new PlainMemory([[0, 2 ** 24]])
        for (let at = 0; at < 2 ** 24; at += 2 * page) large.fill(0, at, Math.min(page, 2 ** 24 - at))
        const save = writeSnapshot(target, { state: someState(), memory: large.source() })
        await expect(save).rejects.toThrow(/snap: saving a snapshot: ENOSPC: .*; free some space/)
        expect(readdirSync(mounted)).toEqual(['snap'])
        await verifySnapshot(target)
        expect((await readSnapshot(target)).id).toBe(id)
      }
    },
  )

  test('or a limit on the size of files leaves nothing', async () => {
    const own = join(directory, 'limited')
    mkdirSync(own)
    const prefix = ['prlimit', `--fsize=${2 ** 20}`]
    const { output } = await startSaver(snapshots, join(own, 'snap'), { first: 1, prefix }).ended
    expect(output).toMatch(/^SnapshotError: .*EFBIG: .*ulimit -f/m)
    expect(readdirSync(own)).toEqual([])
  })
})
