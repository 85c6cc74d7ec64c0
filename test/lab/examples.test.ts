import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

it('linux boots, answers in its shell and shows its nested state', { timeout: 300_000 }, async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['scripts/example.mjs', 'linux'])
  expect(stdout).toMatch(/\n(svm|vmx)\r\n/)
  expect(stdout).toMatch(/\n(svm|vmx) state, in L1; the machine ended by shutdown\n$/)
})
