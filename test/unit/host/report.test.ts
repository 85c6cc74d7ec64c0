import { describe, expect, it } from 'vitest'
import { formatReport } from '../../../lib/cli/doctor-text.js'
import { KvmError } from '../../../lib/errors.js'
import type { DeepDiagnosis } from '../../../lib/host/deep/probe.js'
import { examine, HOST_REPORT_SCHEMA, withDeep } from '../../../lib/host/report.js'
import { amd, device, type FakeHost, host, intel, plainCpuid, svmCpuid, vmxCpuid } from './fake-host.js'

const EACCES = 13
const good: FakeHost = { flags: 'svm', device, files: amd('1'), kvm: { cpuid: svmCpuid, nestedState: 4224 }, uid: 0 }
const plain = { cpuid: plainCpuid, nestedState: 0 }

const examined = (fake: FakeHost, files: Record<string, string> = {}) =>
  examine(host({ ...fake, files: { ...fake.files, ...files } }))
const checkOf = (id: string, fake: FakeHost, files?: Record<string, string>) =>
  examined(fake, files).checks.find(check => check.id === id)!

describe('the report', () => {
  it('has the schema that programs rely on', () => {
    const report = examined(good, { '/sys/module/kvm_amd/parameters/npt': 'Y\n' })
    expect(HOST_REPORT_SCHEMA).toBe(1)
    expect(Object.keys(report).sort()).toEqual([
      'checks',
      'commands',
      'deep',
      'extension',
      'facts',
      'hypervisor',
      'ok',
      'parameters',
      'reason',
      'schema',
      'users',
      'way',
    ])
    expect(report).toMatchObject({
      schema: 1,
      ok: true,
      way: 'nested-here',
      extension: 'svm',
      hypervisor: null,
      deep: null,
    })
    expect(report.checks.map(({ id }) => id)).toEqual([
      ...['cpu', 'firmware', 'hypervisor', 'kernel', 'device', 'module', 'nested', 'offer', 'nested-state'],
      ...['paging', 'speed', 'users', 'huge-pages', 'limits', 'confinement'],
    ])
    for (const check of report.checks) {
      expect(Object.keys(check).sort()).toEqual(['detail', 'id', 'remedy', 'status', 'title'])
      expect(['pass', 'warn', 'fail', 'info', 'unknown']).toContain(check.status)
      expect(check.detail).not.toMatch(/undefined|null|NaN|\n/)
    }
    const npt = {
      module: 'kvm_amd',
      name: 'npt',
      value: 'Y',
      nesting: 'speed',
      meaning: expect.stringContaining('nested page tables'),
    }
    expect(report.parameters).toContainEqual(npt)
  })

  it('fails nothing on a host that nests', () => {
    expect(examined(good).checks.filter(({ status }) => status === 'fail')).toEqual([])
  })

  it('says what to do wherever something fails that can be mended here', () => {
    const report = examined({ ...good, files: amd('0'), kvm: plain })
    const failed = report.checks.filter(({ status }) => status === 'fail')
    expect(failed.map(({ id }) => id)).toEqual(['nested', 'offer', 'nested-state'])
    expect(failed[0]!.remedy[0]).toContain('nested-kvm host enable-nested')
    expect(report.commands).toHaveLength(3)
  })

  it('fits a screen, and says each thing once', () => {
    const fake = {
      ...good,
      flags: 'vmx',
      files: intel('N'),
      openError: new KvmError('open /dev/kvm', EACCES),
      uid: 1000,
    }
    const text = formatReport(examined(fake))
    expect(text.split('\n').length).toBeLessThan(40)
    expect(text.match(/usermod -aG kvm ann/g)).toHaveLength(1)
    expect(formatReport(examined(good), { verbose: true })).toContain('kvm_amd.nested=1  needed  guests may have svm')
  })
})

describe('the checks', () => {
  it('cpu', () => {
    expect(checkOf('cpu', good)).toMatchObject({ status: 'pass', detail: 'svm' })
    expect(checkOf('cpu', {})).toMatchObject({ status: 'fail', remedy: [expect.stringContaining('firmware setup')] })
    expect(checkOf('cpu', { flags: 'hypervisor' }).remedy).toEqual([])
  })

  it('firmware: by the MSR of the vendor, of every processor', () => {
    const status = (msrs: Record<number, bigint>, vendor: string) =>
      checkOf('firmware', { msrs }, { '/proc/cpuinfo': `vendor_id\t: ${vendor}\nflags\t\t: fpu\n` })
    expect(status({ 58: 5n }, 'GenuineIntel')).toMatchObject({
      status: 'pass',
      detail: 'IA32_FEATURE_CONTROL allows it (2 processors)',
    })
    // Locked without VMX, and not locked at all.
    expect(status({ 58: 1n }, 'GenuineIntel')).toMatchObject({
      status: 'fail',
      detail: expect.stringContaining('2 of 2'),
    })
    expect(status({ 58: 0n }, 'GenuineIntel').status).toBe('pass')
    expect(status({ 3221291284: 0x18n }, 'AuthenticAMD')).toMatchObject({
      status: 'fail',
      detail: 'VM_CR forbids it (2 of 2 processors)',
    })
    expect(status({ 3221291284: 0x8n }, 'AuthenticAMD').status).toBe('pass')
    expect(status({}, 'AuthenticAMD')).toMatchObject({ status: 'unknown', remedy: ['modprobe msr', expect.anything()] })
    expect(checkOf('firmware', good)).toMatchObject({ status: 'pass', detail: 'not locked: KVM uses svm' })
  })

  it('hypervisor: which, and what its operator does', () => {
    const under = (signatures: string[], dmi: Record<string, string> = {}) => {
      const files = Object.fromEntries(
        Object.entries(dmi).map(([name, text]) => [`/sys/class/dmi/id/${name}`, `${text}\n`]),
      )
      return checkOf('hypervisor', { flags: 'hypervisor', hypervisors: signatures }, files)
    }
    expect(checkOf('hypervisor', good)).toMatchObject({ status: 'pass' })
    expect(under(['KVMKVMKVM'])).toMatchObject({ status: 'fail', detail: expect.stringContaining('KVM ("KVMKVMKVM")') })
    expect(under(['Microsoft Hv']).remedy[0]).toContain('ExposeVirtualizationExtensions')
    expect(under(['Microsoft Hv', 'KVMKVMKVM']).detail).toMatch(/^KVM /)
    expect(under(['VMwareVMware']).remedy[0]).toContain('vhv.enable')
    expect(under(['XenVMMXenVMM']).remedy[0]).toContain('nestedhvm')
    expect(under(['KVMKVMKVM'], { sys_vendor: 'Google' }).remedy[0]).toContain('enableNestedVirtualization')
    expect(under(['KVMKVMKVM'], { sys_vendor: 'Amazon EC2' }).remedy[0]).toContain('.metal')
    const azure = { sys_vendor: 'Microsoft Corporation', chassis_asset_tag: '7783-7084-3265-9085-8269-3286-77' }
    expect(under(['Microsoft Hv'], azure).detail).toMatch(/^Azure /)
    expect(under([], { sys_vendor: 'QEMU' }).detail).toMatch(/^KVM, which/)
    expect(under(['Who knows']).detail).toMatch(/^an unknown hypervisor \("Who knows"\)/)
    const giving = { ...good, flags: 'svm hypervisor', hypervisors: ['TCGTCGTCGTCG'] }
    expect(checkOf('hypervisor', giving)).toMatchObject({ status: 'pass', remedy: [] })
  })

  it('kernel', () => {
    const kernel = (flags: string, release: string) =>
      checkOf('kernel', { flags }, { '/proc/sys/kernel/osrelease': `${release}\n` }).status
    expect(kernel('vmx', '5.2.21-generic')).toBe('warn')
    expect(kernel('vmx', '5.3.0')).toBe('pass')
    expect(kernel('vmx', '6.0.1')).toBe('pass')
    expect(kernel('vmx', '5.14.0-427.el9')).toBe('pass')
    expect(kernel('svm', '6.1.0-50-amd64')).toBe('info')
    expect(kernel('svm', '5.10.0')).toBe('warn')
    expect(kernel('', '6.18.1')).toBe('info')
  })

  it('device', () => {
    expect(checkOf('device', good)).toMatchObject({ status: 'pass', detail: 'KVM API 12; group kvm, mode 0660' })
    const openError = new KvmError('open /dev/kvm', EACCES)
    expect(checkOf('device', { ...good, openError, uid: 1000 })).toMatchObject({
      status: 'fail',
      remedy: ['usermod -aG kvm ann', 'log out and in again'],
    })
    expect(checkOf('device', { flags: 'vmx' })).toMatchObject({ status: 'fail', remedy: ['modprobe kvm_intel'] })
  })

  it('module: one that cannot nest', () => {
    expect(checkOf('module', good)).toMatchObject({ status: 'pass', detail: 'kvm_amd' })
    const other = { device, kvm: plain, files: { '/sys/module/kvm/holders/kvm_pvm/x': '' } }
    expect(checkOf('module', other)).toMatchObject({ status: 'fail', detail: expect.stringContaining('kvm_pvm') })
    expect(checkOf('module', { ...other, kvm: good.kvm! })).toMatchObject({ status: 'info' })
  })

  it('nested, offer and nested state follow each their own', () => {
    const vmx = { flags: 'vmx', device, files: intel('N'), kvm: { cpuid: vmxCpuid, nestedState: 0 } }
    expect(checkOf('nested', vmx).status).toBe('fail')
    expect(checkOf('offer', vmx).status).toBe('pass')
    expect(checkOf('nested-state', vmx)).toMatchObject({ status: 'warn', remedy: [expect.anything()] })
    expect(checkOf('offer', {}).status).toBe('unknown')
  })

  it('paging and speed, by the parameters', () => {
    const parameters = (values: Record<string, string>) =>
      Object.fromEntries(
        Object.entries(values).map(([name, value]) => [`/sys/module/kvm_amd/parameters/${name}`, value]),
      )
    expect(checkOf('paging', good).status).toBe('unknown')
    expect(checkOf('paging', good, parameters({ npt: 'Y\n' })).status).toBe('pass')
    expect(checkOf('paging', good, parameters({ npt: 'N\n' }))).toMatchObject({
      status: 'warn',
      remedy: ['modprobe -r kvm_amd; modprobe kvm_amd npt=1'],
    })
    const nx = { '/sys/module/kvm/parameters/nx_huge_pages': 'N\n' }
    expect(checkOf('speed', good, { ...parameters({ vgif: '1', vls: '0', sev: 'N', npt: 'N' }), ...nx })).toMatchObject(
      {
        status: 'info',
        detail: 'off, or not in this processor: vls',
      },
    )
  })

  it('users', () => {
    const links = {
      '/proc/12/fd/5': 'anon_inode:kvm-vm',
      '/proc/12/fd/6': 'anon_inode:kvm-vm',
      '/proc/13/fd/0': '/dev/null',
    }
    const used = { ...good, links }
    expect(checkOf('users', used, { '/proc/12/comm': 'qemu\n' }).detail).toBe('qemu (pid 12, 2 VMs)')
    const many = [21, 22, 23, 24, 25, 26].map(pid => [`/proc/${pid}/fd/3`, '/dev/kvm'])
    const crowd = checkOf('users', { ...good, links: Object.fromEntries(many) }, { '/proc/21/comm': 'a\x1b[2Jb\n' })
    expect(crowd.detail).toBe('a?[2Jb (pid 21), ? (pid 22), ? (pid 23), ? (pid 24), 2 more')
    expect(checkOf('users', good).detail).toBe('no process')
    expect(checkOf('users', { ...good, uid: 1000 }).status).toBe('unknown')
  })

  it('huge pages, limits, confinement', () => {
    const thp = '/sys/kernel/mm/transparent_hugepage/enabled'
    const pool = { '/proc/meminfo': 'HugePages_Total:      16\nHugePages_Free:       12\n' }
    expect(checkOf('huge-pages', good, { [thp]: 'always [madvise] never\n', ...pool })).toMatchObject({
      status: 'pass',
      detail: 'transparent: madvise; pool 12 of 16 free',
    })
    expect(checkOf('huge-pages', good, { [thp]: 'always madvise [never]\n' }).status).toBe('warn')
    const limits = (files: string) => ({
      '/proc/self/limits': `Max open files            ${files}                 4096      files\nMax locked memory         8388608              8388608   bytes\n`,
    })
    expect(checkOf('limits', good, limits('1024'))).toMatchObject({
      status: 'pass',
      detail: '1024 open files, 8192 KiB of locked memory',
    })
    expect(checkOf('limits', good, limits('256'))).toMatchObject({ status: 'warn', remedy: ['ulimit -n 1024'] })
    const free = { '/proc/self/status': 'Name:\tnode\nSeccomp:\t0\n' }
    const filtered = { '/proc/self/status': 'Name:\tnode\nSeccomp:\t2\n' }
    expect(checkOf('confinement', good, free)).toMatchObject({
      status: 'pass',
      detail: 'no seccomp filter, no container',
    })
    const inside = { ...filtered, '/proc/1/environ': 'A=1\0container=lxc\0' }
    expect(checkOf('confinement', good, inside)).toMatchObject({
      status: 'info',
      detail: 'a seccomp filter, container (lxc)',
    })
    expect(checkOf('confinement', { flags: 'vmx' }, inside)).toMatchObject({
      status: 'warn',
      remedy: [expect.stringContaining('--device /dev/kvm')],
    })
  })
})

it('a host whose L2 does not come through does not nest, whatever KVM offers', () => {
  const progress = { extension: 'svm', nestedPaging: true, nestedStateBytes: 4224 } as const
  const deep: DeepDiagnosis = {
    ok: true,
    ...progress,
    passed: ['enter', 'save', 'restore', 'continue', 'exit'],
    failed: null,
  }
  const report = withDeep(examined(good), deep)
  expect(report).toMatchObject({ ok: true, deep: { ok: true } })
  expect(report.checks.at(-1)).toMatchObject({
    id: 'deep',
    status: 'pass',
    detail: expect.stringContaining('4224 bytes'),
  })
  const failed = { step: 'restore', problem: 'KVM_SET_NESTED_STATE: EINVAL' } as const
  const broken = withDeep(examined(good), { ...deep, ok: false, passed: ['enter', 'save'], failed })
  expect(broken).toMatchObject({ ok: false })
  expect(formatReport(broken)).toContain(
    'Nested virtualization does not work here (svm).\n  KVM_SET_NESTED_STATE: EINVAL.',
  )
})
