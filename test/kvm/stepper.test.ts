import { expect, it } from 'vitest'
import { GuestError, TimeoutError } from '../../lib/errors.js'
import { diagnoseDeeply } from '../../lib/host/deep/probe.js'
import { Stepper } from '../../lib/host/deep/stepper.js'
import { loadGuest } from './guest.js'

it('goes from report to report, with the vCPU paused at each', async () => {
  using guest = loadGuest('long', 'mov edx, 0x510\nmov eax, 7\nout dx, eax\ninc eax\nout dx, eax\nhlt')
  const steps = new Stepper(guest.vcpu, 10_000)
  expect(await steps.next()).toEqual({ port: 0x510, value: 7 })
  // The instruction is completed, and the next has not run.
  expect(guest.vcpu.getRegs().rax).toBe(7n)
  expect(await steps.next()).toEqual({ port: 0x510, value: 8 })
  await expect(steps.next()).rejects.toThrow(GuestError)
  steps.close()
})

it('takes 32 bits for a report, and nothing less', async () => {
  using guest = loadGuest('long', 'mov edx, 0x510\nout dx, al\nhlt')
  const steps = new Stepper(guest.vcpu, 10_000)
  await expect(steps.next()).rejects.toThrow(/the exit io-out at 0x1/)
  steps.close()
})

it('ends a guest that never reports', async () => {
  using guest = loadGuest('long', 'cli\n1: jmp 1b')
  const steps = new Stepper(guest.vcpu, 100)
  await expect(steps.next()).rejects.toThrow(TimeoutError)
  steps.close()
  // It can be looked at again.
  expect(guest.vcpu.getRegs().rip).toBeGreaterThan(0n)
})

it('the deep diagnosis says where it stopped, or that all went well', async () => {
  const found = await diagnoseDeeply()
  if (found.ok) expect(found).toMatchObject({ failed: null, passed: expect.arrayContaining(['exit']) })
  else
    expect(found).toMatchObject({
      extension: null,
      passed: [],
      failed: { step: 'enter', problem: expect.stringContaining('neither vmx nor svm') },
    })
})
