import { describe, expect, it } from 'vitest'
import { planNesting } from '../../../lib/host/nesting-plan.js'
import { amd, device, type FakeHost, host, intel, plainCpuid, svmCpuid } from './fake-host.js'

const CONFIG = '/etc/modprobe.d/nested-kvm.conf'
const off: FakeHost = { flags: 'svm', device, files: amd('0'), kvm: { cpuid: plainCpuid, nestedState: 0 }, uid: 0 }
const on: FakeHost = { ...off, files: amd('1'), kvm: { cpuid: svmCpuid, nestedState: 4224 } }
const withFiles = (base: FakeHost, files: Record<string, string>): FakeHost => ({
  ...base,
  files: { ...base.files, ...files },
})
const plan = (fake: FakeHost, nested = true, persist = false) => planNesting(host(fake), nested, { persist })
const commands = (fake: FakeHost, nested?: boolean) =>
  plan(fake, nested).steps.map(step => (step.kind === 'write' ? step.path : step.command.join(' ')))

describe('planNesting', () => {
  it('reloads the module', () => {
    expect(plan(off)).toMatchObject({ extension: 'svm', module: 'kvm_amd', former: '0', already: false, notes: [] })
    expect(commands(off)).toEqual(['modprobe -r kvm_amd', 'modprobe kvm_amd nested=1'])
    expect(commands(on, false)).toEqual(['modprobe -r kvm_amd', 'modprobe kvm_amd nested=0'])
  })

  it("goes by the CPU's extension", () => {
    expect(commands({ ...off, flags: 'vmx', files: intel('N') })).toEqual([
      'modprobe -r kvm_intel',
      'modprobe kvm_intel nested=1',
    ])
  })

  it('loads a module that is not there, and leaves it where it is not to nest', () => {
    const absent = { ...off, files: {} }
    expect(plan(absent)).toMatchObject({ former: null, steps: [{ kind: 'load' }] })
    expect(plan(absent, false)).toMatchObject({ steps: [], notes: ['kvm_amd is not loaded'] })
  })

  it('does nothing where it is so already, and makes it last when asked', () => {
    expect(plan(on)).toMatchObject({ already: true, steps: [] })
    const { steps } = plan(on, true, true)
    expect(steps).toMatchObject([{ kind: 'write', path: CONFIG }])
    const written = withFiles(on, { [CONFIG]: (steps[0] as { content: string }).content })
    expect(plan(written, true, true)).toMatchObject({
      already: true,
      steps: [],
      notes: [`it lasts already: ${CONFIG}`],
    })
  })

  it('refuses while processes use it, and names them', () => {
    const links = { '/proc/4711/fd/3': '/dev/kvm', '/proc/4711/fd/4': 'anon_inode:kvm-vm', '/proc/4711/fd/5': '/x' }
    const used = { ...withFiles(off, { '/proc/4711/comm': 'qemu-system-x86\n' }), links }
    expect(() => plan(used)).toThrow('module: "kvm_amd": it is in use by qemu-system-x86 (pid 4711, 1 VM); stop')
    // Making it last needs no reload.
    expect(plan({ ...used, files: { ...used.files, ...amd('1') } }, true, true).steps).toHaveLength(1)
  })

  it('refuses while somebody uses it who is not seen', () => {
    const used = withFiles(off, { '/sys/module/kvm_amd/refcnt': '3\n' })
    expect(() => plan(used)).toThrow('it is in use (3 references) by processes that are not seen from here')
  })

  it("names the kernel's command line where the module is built in", () => {
    const builtIn = withFiles(off, { '/proc/modules': 'loop 1 0 - Live 0x0\n' })
    expect(() => plan(builtIn)).toThrow("add kvm_amd.nested=1 to the kernel's command line and restart")
    const already = plan(withFiles(on, { '/proc/modules': '' }), true, true)
    expect(already.steps).toEqual([])
    expect(already.notes[0]).toContain('built into the kernel')
  })

  it('refuses without an extension, and without modprobe', () => {
    expect(() => plan({ ...off, flags: 'hypervisor' })).toThrow(/^CPU: "neither vmx nor svm": .*nested-kvm lab/)
    expect(() => plan({ ...off, programs: [] })).toThrow(
      'modprobe: "": there is no such program; install the package kmod',
    )
  })

  it('refuses to write against another file, which is named', () => {
    const against = withFiles(off, { '/etc/modprobe.d/mine.conf': 'options kvm_amd nested=0\n' })
    expect(() => plan(against, true, true)).toThrow(
      'configuration: "/etc/modprobe.d/mine.conf:1": it sets nested=0 for kvm_amd; change or remove that',
    )
    // Without it nothing is written, and what comes of the next boot is said.
    expect(plan(against).notes).toEqual(['after the next boot it is as /etc/modprobe.d/mine.conf:1 says (nested=0)'])
  })

  it('writes nothing where another file says the same', () => {
    const same = withFiles(on, { '/etc/modprobe.d/mine.conf': 'options kvm-amd nested=y\n' })
    expect(plan(same, true, true)).toMatchObject({
      steps: [],
      notes: ['it lasts already: /etc/modprobe.d/mine.conf:1'],
    })
  })

  it('says that our own file is left as it is without --persist', () => {
    const written = withFiles(on, { [CONFIG]: 'options kvm_amd nested=1\n' })
    expect(plan(written, false).notes).toEqual([`after the next boot it is as ${CONFIG} says; --persist changes that`])
  })

  it('refuses a read-only /etc before anything is done', () => {
    const readOnly = { ...off, unwritable: { '/etc/modprobe.d': 'EROFS' } }
    expect(() => plan(readOnly, true, true)).toThrow('"/etc/modprobe.d": it cannot be written (EROFS); remount')
    const none = { ...off, unwritable: { '/etc/modprobe.d': 'ENOENT', '/etc': 'EROFS' } }
    expect(() => plan(none, true, true)).toThrow('"/etc": it cannot be written (EROFS)')
    expect(plan({ ...off, unwritable: { '/etc/modprobe.d': 'ENOENT' } }, true, true).steps).toHaveLength(3)
  })
})
