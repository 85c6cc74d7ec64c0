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
  loaded = [],
}: {
  fails?: Record<string, string>
  deaf?: boolean
  half?: boolean
  uid?: number
  /** What it was loaded with by hand, but for `nested`. */
  loaded?: string[]
} = {}) {
  const fake: FakeHost = { flags: 'svm', device, uid, kvm: { cpuid: plainCpuid, nestedState: 0 } }
  const parameter = (module: string, name: string) => `/sys/module/${module}/parameters/${name}`
  /** Not to be written while a module is loaded. */
  const fixed = [
    parameter('kvm', 'mmio_caching'),
    parameter('kvm_amd', 'npt'),
    parameter('kvm_amd', 'enable_shadow_vmcs'),
  ]
  let common: string[] = []
  const load = (options: readonly string[]) => {
    const value = options.includes('nested=1') ? '1' : '0'
    const files: Record<string, string> = {
      ...amd(value),
      [parameter('kvm', 'halt_poll_ns')]: '200000\n',
      [parameter('kvm', 'mmio_caching')]: 'Y\n',
      [parameter('kvm_amd', 'npt')]: '1\n',
      // As kvm_intel has it.
      [parameter('kvm_amd', 'enable_shadow_vmcs')]: value === '1' ? 'Y\n' : 'N\n',
    }
    for (const [module, given] of [
      ['kvm', common],
      ['kvm_amd', options],
    ] as const) {
      for (const option of given) {
        const [name, value] = option.split('=')
        files[parameter(module, name!)] = `${value}\n`
      }
    }
    fake.files = files
    fake.kvm = { cpuid: value === '1' && !deaf ? svmCpuid : plainCpuid, nestedState: 0 }
  }
  load(['nested=0', ...loaded])
  const done: string[] = []
  const actions: HostActions = {
    run(program, args) {
      const command = [program, ...args].join(' ')
      done.push(command)
      if (half && args[0] === '-r') fake.files = {}
      if (fails[command]) return { code: 1, output: fails[command] }
      if (args[0] === '-r') {
        fake.files = {}
        common = []
      } else if (args[0] === 'kvm') common = args.slice(1)
      else load(args.slice(1))
      return { code: 0, output: '' }
    },
    stage(path) {
      if (fails[path]) throw Object.assign(new Error(fails[path]), { code: fails[path] })
      done.push(`stage ${path}`)
      return { commit: () => void done.push('commit'), discard: () => void done.push('discard') }
    },
    set(path, value) {
      if (fixed.includes(path)) throw Object.assign(new Error('EACCES'), { code: 'EACCES' })
      fake.files = { ...fake.files, [path]: `${value}\n` }
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

/** Also of what follows `nested` by itself. */
const NOTHING_ELSE = { restored: [], changed: [] }

describe('applyNesting', () => {
  it('writes the file beside its place first, and puts it there last', () => {
    const { done, apply } = machine()
    expect(apply(true)).toEqual(NOTHING_ELSE)
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
    expect(apply()).toEqual(NOTHING_ELSE)
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
    expect(apply()).toEqual({ changed: [], restored: ['kvm.halt_poll_ns'] })
    expect(done).toEqual([UNLOAD, LOAD, '/sys/module/kvm/parameters/halt_poll_ns=0'])
  })

  describe('with what a module takes at its load alone', () => {
    const AGAIN = 'modprobe kvm_amd nested=1 npt=0'
    const POLL = '/sys/module/kvm/parameters/halt_poll_ns'

    it('loads it once more, and sets the others then', () => {
      const { fake, done, apply } = machine({ loaded: ['npt=0'] })
      fake.files = { ...fake.files, [POLL]: '0\n' }
      expect(apply()).toEqual({ changed: [], restored: ['kvm.halt_poll_ns', 'kvm_amd.npt'] })
      expect(done).toEqual([UNLOAD, LOAD, `${POLL}=0`, UNLOAD, AGAIN, `${POLL}=0`])
      expect(fake.files).toMatchObject({ '/sys/module/kvm_amd/parameters/npt': '0\n', [POLL]: '0\n' })
    })

    it('loads kvm with its own first', () => {
      const { fake, done, apply } = machine()
      fake.files = { ...fake.files, '/sys/module/kvm/parameters/mmio_caching': 'N\n' }
      expect(apply()).toEqual({ changed: [], restored: ['kvm.mmio_caching'] })
      expect(done).toEqual([UNLOAD, LOAD, UNLOAD, 'modprobe kvm mmio_caching=N', LOAD])
    })

    it('is the same where it goes back to what it was', () => {
      const { fake, done, apply } = machine({ loaded: ['npt=0'], deaf: true })
      expect(() => apply()).toThrow('it is loaded again as it was, with nested=0')
      expect(done).toEqual([UNLOAD, LOAD, UNLOAD, BACK, UNLOAD, `${BACK} npt=0`])
      expect(fake.files).toMatchObject({ ...amd('0'), '/sys/module/kvm_amd/parameters/npt': '0\n' })
    })

    it('is told where it does not go back with it', () => {
      const { apply } = machine({ loaded: ['npt=0'], deaf: true, fails: { [`${BACK} npt=0`]: 'Invalid argument' } })
      expect(() => apply()).toThrow('as it was, with nested=0, but for kvm_amd.npt: 1, was 0: see dmesg')
    })

    it('leaves it as it is loaded where that fails, and says what is different', () => {
      const { fake, done, apply } = machine({ loaded: ['npt=0'], fails: { [AGAIN]: 'Invalid argument' } })
      fake.files = { ...fake.files, [POLL]: '0\n' }
      expect(apply()).toEqual({
        restored: ['kvm.halt_poll_ns'],
        changed: ['kvm_amd.npt: 1, was 0'],
      })
      expect(done.slice(3)).toEqual([UNLOAD, AGAIN, UNLOAD, LOAD, `${POLL}=0`])
      expect(fake.files).toMatchObject(amd('1'))
    })
  })
})
