import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'

/** These run the compiled command line (`dist`), as its users do. */
function cpu(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  return new Promise(resolve => {
    const child = execFile(process.execPath, ['dist/cli/main.js', 'cpu', ...args], (_error, out, err) => {
      resolve({ code: child.exitCode ?? -1, out, err })
    })
  })
}

async function directory(): Promise<string> {
  const made = await mkdtemp(join(tmpdir(), 'nested-kvm-cpu-'))
  onTestFinished(() => rm(made, { recursive: true }))
  return made
}

it('lists the models, and what this host lacks of each', async () => {
  const { code, out } = await cpu('list')
  expect(code).toBe(0)
  expect(out).toMatch(/^MODEL +VENDOR +HERE +BRAND\n/)
  expect(out).toMatch(/^EPYC-Milan +AuthenticAMD +(yes|lacks \d+) +AMD EPYC-Milan Processor$/m)
  const { models } = JSON.parse((await cpu('list', '--json')).out)
  expect(models).toHaveLength(18)
  for (const { name, missing } of models) {
    const shown = JSON.parse((await cpu('show', name, '--json')).out)
    expect(shown).toMatchObject({ ok: true, cpu: name, missing })
  }
}, 60_000)

it('shows a model, and says which name was meant', async () => {
  const { code, out } = await cpu('show', 'SapphireRapids')
  expect(code).toBe(0)
  expect(out).toContain('family    6, model 143, stepping 4')
  expect(out).toContain('rdctl-no ibrs-all')
  expect(out).not.toContain('vmx offers')
  const nesting = await cpu('show', 'Skylake-Client,+vmx,-vmx-ept')
  expect(nesting.code).toBe(0)
  expect(nesting.out).toContain('vmx offers 63 features:')
  expect(await cpu('show', 'Hasvel')).toMatchObject({ code: 2, err: expect.stringContaining('did you mean Haswell?') })
  const { code: usage, out: json } = await cpu('show', 'Hasvel', '--json')
  expect(usage).toBe(2)
  expect(JSON.parse(json)).toMatchObject({ ok: false, reason: expect.stringContaining('Haswell') })
})

it('tells two CPUs apart', async () => {
  const { code, out } = await cpu('diff', 'Haswell', 'Broadwell')
  expect(code).toBe(1)
  expect(out).toContain('only Broadwell:\n    rdseed adx smap 3dnowprefetch\n')
  expect(await cpu('diff', 'EPYC', 'EPYC')).toMatchObject({ code: 0, out: 'EPYC and EPYC do not differ\n' })
})

it('a dump of this host is this host, and one of a newer version is refused', async () => {
  const file = join(await directory(), 'host.json')
  const { code, out } = await cpu('dump')
  expect(code).toBe(0)
  await writeFile(file, out)
  expect(await cpu('diff', 'host', file)).toMatchObject({ code: 0 })
  const [here, there] = await Promise.all([cpu('baseline', 'host', '--json'), cpu('baseline', file, file, '--json')])
  expect(JSON.parse(there.out)).toEqual(JSON.parse(here.out))
  expect(there.code).toBe(JSON.parse(there.out).model === null ? 1 : 0)
  await writeFile(file, JSON.stringify({ ...JSON.parse(out), schema: 99 }))
  expect(await cpu('baseline', file)).toMatchObject({
    code: 2,
    err: expect.stringContaining('from a newer nested-kvm'),
  })
  expect(await cpu('baseline', `${file}.json`)).toMatchObject({ code: 2, err: expect.stringContaining('ENOENT') })
}, 30_000)
