import { execFileSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { setBatch } from '../../lib/kvm/scheduling.js'
import { VcpuThread } from '../../lib/kvm/vcpu-thread.js'
import { loadGuest } from './guest.js'
import { BATCH, OTHER, policyOf, thisThread } from './thread-policy.js'

const threads = () => readdirSync('/proc/self/task')

describe('the batch policy', () => {
  it('is set on this thread alone, and taken back', () => {
    const others = threads().filter(tid => tid !== thisThread())
    expect(policyOf()).toBe(OTHER)
    expect(setBatch(true)).toBe(true)
    try {
      expect(policyOf()).toBe(BATCH)
      expect(setBatch(true)).toBe(true)
      for (const tid of others) expect(policyOf(tid)).toBe(OTHER)
    } finally {
      expect(setBatch(false)).toBe(false)
    }
    expect(policyOf()).toBe(OTHER)
  })

  it('is not inherited by the thread of a vCPU', async () => {
    using guest = loadGuest('protected', 'jmp .')
    using thread = new VcpuThread(guest.vcpu, () => {})
    const before = new Set(threads())
    setBatch(true)
    try {
      thread.start()
      // KVM may begin one of its own besides.
      const made = threads().filter(tid => !before.has(tid))
      expect(made).not.toHaveLength(0)
      for (const tid of made) expect(policyOf(tid)).toBe(OTHER)
    } finally {
      setBatch(false)
    }
    await thread.stop()
  })

  it('leaves a policy alone that somebody else has set', () => {
    const chrt = (option: string) => execFileSync('chrt', [option, '-p', '0', thisThread()])
    setBatch(true)
    chrt('-o')
    expect(setBatch(false)).toBe(false)
    expect(policyOf()).toBe(OTHER)
    chrt('-b')
    try {
      expect(setBatch(true)).toBe(false)
      expect(setBatch(false)).toBe(false)
      expect(policyOf()).toBe(BATCH)
    } finally {
      chrt('-o')
    }
  })
})
