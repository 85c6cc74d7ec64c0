import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it, onTestFinished } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
import { LAST_COUNT, QUICK_CMDLINE, writeTowerImage } from '../../lib/lab/tower-image.js'
import { Machine } from '../../lib/machine/machine.js'
import { decodeNestedState, type NestedState } from '../../lib/nested/state.js'
import { readSnapshot } from '../../lib/snapshot/read.js'
import { squashSnapshot } from '../../lib/snapshot/squash.js'
import { BOOT } from './linux.js'

const run = promisify(execFile)
const LONG = { timeout: 1_200_000 }

it('the demo boots L1, and in it L2, saves both while L2 counts, and a new process lets them go on', LONG, async () => {
  const args = ['dist/cli/main.js', 'demo', '--where', 'host', '--json', '--timeout', '1000']
  const { stdout } = await run(process.execPath, args)
  const lines = stdout.trim().split('\n')
  expect(lines).toHaveLength(1)
  const result = JSON.parse(lines[0]!)
  expect(result).toMatchObject({ ok: true, where: 'host', vendor: expect.stringMatching(/^(svm|vmx)$/) })
  expect(result.levels.map((level: { level: number }) => level.level)).toEqual([0, 1, 2])
  for (const { level, kernel, flag, hypervisor, bootSeconds } of result.levels) {
    expect(kernel).toMatch(/^\d+\.\d+/)
    expect(flag).toBe(result.vendor)
    if (level > 0) expect([hypervisor, bootSeconds > 0]).toEqual(['KVMKVMKVM', true])
  }
  expect(result.snapshot.count).toBeGreaterThanOrEqual(5)
  expect(result.snapshot.count).toBeLessThan(LAST_COUNT)
  expect(result.snapshot.lastCount).toBe(LAST_COUNT)
})

/** Follows what L2 counts, over the machines that it lives in. */
class Counts {
  readonly all: number[] = []
  #begun = ''

  get last(): number {
    return this.all.at(-1) ?? 0
  }

  /** Waits until L2 has counted to `count`. */
  async reach(machine: Machine, count: number): Promise<void> {
    while (this.last < count) this.#line((await machine.console.expect('\n', BOOT)).before)
  }

  /** Takes what a paused machine has said. */
  take(machine: Machine): void {
    const lines = machine.console.takeText().split('\n')
    const begun = lines.pop()!
    for (const line of lines) this.#line(line)
    this.#begun += begun
  }

  /** The same, of a machine that goes on in two. */
  fork(): Counts {
    const counts = new Counts()
    counts.all.push(...this.all)
    counts.#begun = this.#begun
    return counts
  }

  #line(text: string): void {
    const count = /"count":(\d+)/.exec(this.#begun + text)?.[1]
    this.#begun = ''
    if (count) this.all.push(Number(count))
  }
}

const upTo = (count: number) => Array.from({ length: count }, (_, i) => i + 1)

it(
  'a Linux L1 with its Linux L2 goes back, forks, and lives on through three generations of snapshots',
  LONG,
  async () => {
    const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-tower-'))
    onTestFinished(() => rm(directory, { recursive: true, force: true }))
    const assets = await ensureAssets(['guestKernel', 'busybox'])
    const initrd = join(directory, 'l1.cpio')
    await writeTowerImage(initrd, assets, [['demo', '--level', '1']])
    const first = await Machine.create({
      kernel: assets.guestKernel.vmlinuz,
      initrd,
      cmdline: QUICK_CMDLINE,
      memory: '1G',
      reboot: false,
    })
    onTestFinished(() => first.stop())
    await first.start()
    await first.console.expect('booting the L2 kernel', BOOT)
    await seeL2(first)

    // L2 was stopped in the middle of its work several times, and comes up all the same.
    let counts = new Counts()
    await counts.reach(first, 3)
    await first.pause()
    counts.take(first)
    const then = counts.fork()
    const checkpoint = await first.checkpoint()
    await first.resume()
    await counts.reach(first, then.last + 2)
    expect(counts.all).toEqual(upTo(counts.last))
    await first.rollback(checkpoint)
    checkpoint.close()
    // What was said between the checkpoint and the rollback has not happened.
    first.console.takeText()
    counts = then
    await counts.reach(first, then.last + 2)
    expect(counts.all).toEqual(upTo(counts.last))

    await first.pause()
    counts.take(first)
    const twin = await first.fork()
    onTestFinished(() => twin.stop())
    const its = counts.fork()
    await twin.resume()
    await its.reach(twin, its.last + 2)
    expect(its.all).toEqual(upTo(its.last))
    await twin.stop()

    // Each generation is saved as what it wrote since the one before, and goes on from there; the last from the chain made one.
    const [full, second, third, one] = ['full', 'second', 'third', 'one'].map(name => join(directory, name)) as [
      string,
      string,
      string,
      string,
    ]
    await first.snapshot(full)
    await first.stop()
    const child = await goOn(full, counts)
    await child.snapshot(second, { differential: true })
    await child.stop()
    const grandchild = await goOn(second, counts)
    const { bytes } = await grandchild.snapshot(third, { differential: true })
    await grandchild.stop()
    expect(counts.all).toEqual(upTo(counts.last))
    expect((await readSnapshot(third)).chain).toEqual([third, second, full])
    const { bytes: all } = await squashSnapshot(third, one)
    expect(bytes).toBeLessThan(all / 2)
    await rm(full, { recursive: true })
    const last = await goOn(one, counts)
    await last.resume()
    await counts.reach(last, LAST_COUNT)
    expect(counts.all).toEqual(upTo(LAST_COUNT))
    expect(await last.wait()).toEqual({ reason: 'shutdown' })
  },
)

/** Restores a snapshot, sees L2 count on, and leaves it paused. */
async function goOn(snapshot: string, counts: Counts): Promise<Machine> {
  const machine = await Machine.restore(snapshot)
  onTestFinished(() => machine.stop())
  await machine.resume()
  await counts.reach(machine, counts.last + 2)
  await machine.pause()
  counts.take(machine)
  return machine
}

/** Samples the nested state until it has shown L2 three times. */
async function seeL2(machine: Machine): Promise<void> {
  const inL2: NestedState[] = []
  for (let sample = 0; sample < 200 && inL2.length < 3; sample++) {
    await new Promise(resolve => setTimeout(resolve, 50))
    await machine.pause()
    const state = decodeNestedState(machine.vcpus[0]!.getNestedState())
    if (state.guestMode) inL2.push(state)
    await machine.resume()
  }
  expect(inL2).toHaveLength(3)
  for (const state of inL2) {
    const block = state.format === 'svm' ? state.vmcbPa : state.vmcs12Pa
    expect(machine.memory.contains(Number(block), 4096)).toBe(true)
    expect(Number(block) % 4096).toBe(0)
    expect(state.data.length).toBeGreaterThanOrEqual(4096)
  }
}
