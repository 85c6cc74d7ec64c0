import { describe, expect, it } from 'vitest'
import type { HostActions } from '../../../lib/host/actions.js'
import { applyNesting } from '../../../lib/host/nesting.js'
import { planNesting } from '../../../lib/host/nesting-plan.js'
import { amd, device, type FakeHost, host, plainCpuid, svmCpuid } from './fake-host.js'

/** A host whose modprobe works, but for the commands in `fails`, and what was done to it. */
function machine({
  fails = {},
  deaf = false,
  half = false,
  uid = 0,
}: {
  fails?: Record<string, string>
  deaf?: boolean
  half?: boolean
  uid?: number
} = {}) {
  const fake: FakeHost = { flags: 'svm', device, uid, kvm: { cpuid: plainCpuid, nestedState: 0 } }
  const load = (value: string) => {
    fake.files = { ...amd(value), '/sys/module/kvm/parameters/halt_poll_ns': '200000\n' }
    fake.kvm = { cpuid: value === '1' && !deaf ? svmCpuid : plainCpuid, nestedState: 0 }
  }
  load('0')
  const done: string[] = []
  const actions: HostActions = {
    run(program, args) {
      const command = [program, ...args].join(' ')
      done.push(command)
      if (half && args[0] === '-r') fake.files = {}
      if (fails[command]) return { code: 1, output: fails[command] }
      if (args[0] === '-r') fake.files = {}
      else load(args[1]!.slice('nested='.length))
      return { code: 0, output: '' }
    },
    stage(path) {
      if (fails[path]) throw Object.assign(new Error(fails[path]), { code: fails[path] })
      done.push(`stage ${path}`)
      return { commit: () => void done.push('commit'), discard: () => void done.push('discard') }
    },
    set(path, value) {
      done.push(`${path}=${value}`)
    },
  }
  const system = host(fake)
  return {
    fake,
    done,
    apply: (persist = false) => applyNesting(planNesting(system, true, { persist }), system, actions),
  }
}

const CONFIG = '/etc/modprobe.d/nested-kvm.conf'
const UNLOAD = 'modprobe -r kvm_amd'
const LOAD = 'modprobe kvm_amd nested=1'
const BACK = 'modprobe kvm_amd nested=0'

describe('applyNesting', () => {
  it('writes the file beside its place first, and puts it there last', () => {
    const { done, apply } = machine()
    expect(apply(true)).toEqual({ restored: [], changed: [] })
    expect(done).toEqual([`stage ${CONFIG}`, UNLOAD, LOAD, 'commit'])
  })

  it('does nothing but for root', () => {
    const { done, apply } = machine({ uid: 1000 })
    expect(() => apply(true)).toThrow('user: 1000: only root may do that')
    expect(done).toEqual([])
  })

  it('does nothing where the file cannot be written', () => {
    const { done, apply } = machine({ fails: { [CONFIG]: 'ENOSPC' } })
    expect(() => apply(true)).toThrow('it cannot be written (ENOSPC); nothing was changed')
    expect(done).toEqual([])
  })

  it('changes nothing where the module does not unload', () => {
    const { done, apply } = machine({ fails: { [UNLOAD]: 'Module kvm_amd is in use.' } })
    expect(() => apply(true)).toThrow('modprobe -r kvm_amd: Module kvm_amd is in use.; nothing was changed')
    expect(done).toEqual([`stage ${CONFIG}`, UNLOAD, 'discard'])
  })

  it('goes on where only what the module needed did not unload', () => {
    const { fake, done, apply } = machine({ fails: { [UNLOAD]: 'Module ccp is in use.' }, half: true })
    expect(apply()).toEqual({ restored: [], changed: [] })
    expect(done).toEqual([UNLOAD, LOAD])
    expect(fake.files).toMatchObject(amd('1'))
  })

  it('loads the module as it was where it does not load as wanted', () => {
    const { fake, done, apply } = machine({ fails: { [LOAD]: 'Invalid argument' } })
    expect(() => apply(true)).toThrow(`${LOAD}: Invalid argument; it is loaded again as it was, with nested=0`)
    expect(done).toEqual([`stage ${CONFIG}`, UNLOAD, LOAD, BACK, 'discard'])
    expect(fake.files).toMatchObject(amd('0'))
  })

  it('says so where it does not load at all any more', () => {
    const { apply } = machine({ fails: { [LOAD]: 'Invalid argument', [BACK]: 'No such device' } })
    expect(() => apply()).toThrow('nor does it load as it was (No such device), so there is no KVM now')
  })

  it('undoes it where KVM does not follow', () => {
    const { done, apply } = machine({ deaf: true })
    expect(() => apply()).toThrow(
      'it is loaded with nested=1, yet KVM does not offer svm to guests; it is loaded again',
    )
    expect(done).toEqual([UNLOAD, LOAD, UNLOAD, BACK])
  })

  it('sets parameters again that the reload has changed', () => {
    const { fake, done, apply } = machine()
    fake.files = { ...fake.files, '/sys/module/kvm/parameters/halt_poll_ns': '0\n' }
    expect(apply()).toEqual({ restored: ['kvm.halt_poll_ns'], changed: [] })
    expect(done.at(-1)).toBe('/sys/module/kvm/parameters/halt_poll_ns=0')
  })
})
