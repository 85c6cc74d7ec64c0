import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

const run = promisify(execFile)
const example = (name: string) => run(process.execPath, ['scripts/example.mjs', name])

it('tiny-vmm prints what its guest prints', async () => {
  expect((await example('tiny-vmm')).stdout).toBe('Hello from a guest\n')
})

it('vcpu-thread counts every ring of the doorbell', async () => {
  expect((await example('vcpu-thread')).stdout).toBe('the guest counted to 1000 and rang 1000 times, at rip 0x100d\n')
})

it('an example that is not there is told with those that are', async () => {
  await expect(example('nothing')).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining('tiny-vmm') })
})
