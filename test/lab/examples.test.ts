import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

async function example(name: string): Promise<string> {
  return (await promisify(execFile)(process.execPath, ['scripts/example.mjs', name])).stdout
}

it('linux boots, answers in its shell and shows its nested state', { timeout: 300_000 }, async () => {
  const stdout = await example('linux')
  expect(stdout).toMatch(/\n(svm|vmx)\r\n/)
  expect(stdout).toMatch(/\n(svm|vmx) state, in L1; the machine ended by shutdown\n$/)
})

it('nested-snapshot: L2 counts on in another machine', { timeout: 900_000 }, async () => {
  const stdout = await example('nested-snapshot')
  const [, before, after] =
    /^L2 counts: (\d+)\nsaved \d+ MiB: (?:svm|vmx) state, in L[12]\nL2 counts on: (\d+)\n/.exec(stdout) ?? []
  expect(Number(after)).toBeGreaterThan(Number(before))
  expect(stdout).toMatch(/\nthe machine ended by shutdown\n$/)
})
