import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import { describe, expect, it } from 'vitest'

/** These run the compiled package (`dist`), as its users' processes and Workers do. */
const fixture = (name: string) => new URL(`./fixtures/${name}.mjs`, import.meta.url)

interface Outcome {
  code: number | null
  signal: NodeJS.Signals | null
  stderr: string
}

/** Runs a fixture to its end; after 10 s it counts as hung. */
async function run(name: string, ...args: string[]): Promise<Outcome> {
  const child = spawn(process.execPath, [fixture(name).pathname, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
  let stderr = ''
  child.stderr.on('data', data => {
    stderr += data
  })
  const timer = setTimeout(() => child.kill('SIGKILL'), 10_000)
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null]
  clearTimeout(timer)
  return { code, signal, stderr }
}

describe('a process with running vCPUs', () => {
  it.each([
    ['process.exit()', 'exit', 5],
    ['process.exit() in an exit handler', 'handler', 6],
    ['process.exit() with vCPUs also in a Worker', 'worker', 8],
    ['process.exit() with a Worker in vcpu.run()', 'run', 8],
    ['an uncaught error', 'throw', 1],
    ['closing the VMs', 'close', 0],
    ['stopping the threads', 'stop', 0],
    ['pausing the threads', 'paused', 0],
  ])('ends by %s: no hang, no crash', async (_, how, code) => {
    const outcome = await run('process', how)
    expect(outcome).toMatchObject({ code, signal: null })
    if (how !== 'throw') expect(outcome.stderr).toBe('')
    else expect(outcome.stderr).toMatch(/Error: uncaught/)
  })

  it('is kept alive by them, and ends on SIGTERM', async () => {
    const child = spawn(process.execPath, [fixture('process').pathname, 'none'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    await once(child.stdout, 'data')
    await new Promise(resolve => setTimeout(resolve, 300))
    expect(child.exitCode).toBe(null)
    child.kill('SIGTERM')
    const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null]
    expect([code, signal]).toEqual([null, 'SIGTERM'])
  })
})

it('what a watcher throws is an uncaught exception, and takes nothing from the other watchers', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, [fixture('watchers').pathname], { timeout: 10_000 })
  expect(stdout).toBe('one 3\ntwo 3\nthree 3\n')
})

describe('a Worker', () => {
  /** At the CLI or at the jump to itself. */
  const spinning = (rip: bigint) => rip === 0x1002n || rip === 0x1003n
  const start = (workerData: string) => new Worker(fixture('worker'), { workerData })

  it('runs a VM of its own: created, run, paused, stopped, closed', async () => {
    const worker = start('whole')
    // It may end in the very turn that brings its message.
    const exit = once(worker, 'exit') as Promise<[number]>
    const [message] = (await once(worker, 'message')) as [{ rip: bigint; api: number }]
    expect(message).toMatchObject({ rip: expect.toSatisfy(spinning), api: 12 })
    expect(await exit).toEqual([0])
  })

  it.each([
    ['on a thread', 'spin'],
    ['in vcpu.run()', 'run'],
  ])('is terminated while its vCPU spins %s: at once, ten times over', async (_, how) => {
    for (let i = 0; i < 10; i++) {
      const worker = start(how)
      await once(worker, 'message')
      const begin = performance.now()
      await worker.terminate()
      expect(performance.now() - begin).toBeLessThan(2000)
    }
  })

  it("is not disturbed in a long vcpu.run(): the first exit is the guest's own", async () => {
    const worker = start('long')
    const [{ reason, milliseconds }] = (await once(worker, 'message')) as [{ reason: string; milliseconds: number }]
    expect(reason).toBe('io-out')
    // Longer than the look that the addon takes every 50 ms, or the test says nothing.
    expect(milliseconds).toBeGreaterThan(100)
  })

  it('ends itself in an exit handler', async () => {
    const [code] = (await once(start('exit'), 'exit')) as [number]
    expect(code).toBe(7)
  })

  it('dies of an error in an exit handler, and the others go on', async () => {
    const spinning = start('spin')
    await once(spinning, 'message')
    const [error] = (await once(start('throw'), 'error')) as [Error]
    expect(error.message).toBe('from the handler')
    await spinning.terminate()
  })

  it('four at once', async () => {
    const workers = ['whole', 'whole', 'whole', 'whole'].map(start)
    const exits = workers.map(worker => once(worker, 'exit'))
    const messages = await Promise.all(workers.map(worker => once(worker, 'message')))
    expect(messages.every(([{ rip }]) => spinning(rip))).toBe(true)
    expect((await Promise.all(exits)).flat()).toEqual([0, 0, 0, 0])
  })
})

describe('nothing is left', () => {
  interface Holds {
    fds: number
    threads: number
    vcpuMaps: number
    megabytes: number
  }
  const cycles = async (mode: string, count: number) => {
    const { stdout } = await promisify(execFile)(process.execPath, [
      '--expose-gc',
      fixture('cycles').pathname,
      mode,
      String(count),
    ])
    return JSON.parse(stdout) as { before: Holds; after: Holds }
  }

  it('after 500 VMs were created, run and closed: file descriptors, mappings, threads', async () => {
    const { before, after } = await cycles('closed', 500)
    expect(after).toMatchObject({ fds: before.fds, threads: before.threads, vcpuMaps: 0 })
    // 500 guests of 4 MiB would be 2000; the rest is V8's heap.
    expect(after.megabytes - before.megabytes).toBeLessThan(200)
  }, 60_000)

  it('of VMs that were never closed, once they are garbage', async () => {
    const { before, after } = await cycles('garbage', 50)
    expect(after).toMatchObject({ fds: before.fds, threads: before.threads, vcpuMaps: 0 })
    expect(after.megabytes - before.megabytes).toBeLessThan(100)
  }, 60_000)
})
