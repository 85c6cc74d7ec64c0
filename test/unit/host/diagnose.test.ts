import { describe, expect, it } from 'vitest'
import { KvmError } from '../../../lib/errors.js'
import { diagnose } from '../../../lib/host/diagnose.js'
import { counts, device, host, intel, plainCpuid, svmCpuid, vmxCpuid } from './fake-host.js'

const EACCES = 13

describe('diagnose', () => {
  it('finds nesting where KVM offers vmx, and closes the device', () => {
    const before = counts.closed
    const found = diagnose(
      host({ flags: 'vmx', device, files: intel('Y'), kvm: { cpuid: vmxCpuid, nestedState: 4224 } }),
    )
    expect(found).toMatchObject({ ok: true, way: 'nested-here', extension: 'vmx', commands: [] })
    expect(found.facts).toMatchObject({
      kernel: '6.1.0-test',
      apiVersion: 12,
      nestedStateBytes: 4224,
      offered: ['vmx'],
      cpu: ['vmx'],
      virtual: false,
      device: { present: true, permitted: true, problem: null },
      modules: { vendor: ['kvm_intel'], nested: { kvm_intel: 'Y' } },
    })
    expect(counts.closed).toBe(before + 1)
  })

  it('finds svm in leaf 0x80000001, whatever the module is called', () => {
    const files = { '/sys/module/kvm/holders/kvm_other/x': '' }
    const found = diagnose(
      host({ flags: 'svm hypervisor', device, files, kvm: { cpuid: svmCpuid, nestedState: 4224 } }),
    )
    expect(found).toMatchObject({ ok: true, way: 'nested-here', extension: 'svm' })
    expect(found.facts.modules.vendor).toEqual(['kvm_other'])
  })

  it('says that a kernel without nested state cannot snapshot an L2', () => {
    const found = diagnose(host({ flags: 'vmx', device, kvm: { cpuid: vmxCpuid, nestedState: 0 } }))
    expect(found.ok).toBe(true)
    expect(found.reason).toContain('KVM_CAP_NESTED_STATE is 0')
  })

  it('does not believe the nested parameter or a nested state size when the CPUID offers nothing', () => {
    const kvm = { cpuid: plainCpuid, nestedState: 4224 }
    const found = diagnose(host({ flags: 'vmx', device, files: intel('Y'), kvm }))
    expect(found).toMatchObject({ ok: false, way: 'lab', commands: [] })
    expect(found.reason).toContain('nested=Y')
  })

  it('reloads a loaded module to switch nesting on', () => {
    const kvm = { cpuid: plainCpuid, nestedState: 0 }
    const found = diagnose(host({ flags: 'vmx', device, files: intel('N'), kvm }))
    expect(found).toMatchObject({ ok: false, way: 'enable', extension: 'vmx' })
    expect(found.commands).toEqual([
      "echo 'options kvm_intel nested=1' > /etc/modprobe.d/nested-kvm.conf",
      'modprobe -r kvm_intel',
      'modprobe kvm_intel',
    ])
  })

  it('names the kernel parameter where the module is built in', () => {
    const files = { '/sys/module/kvm_amd/parameters/nested': '0\n', '/proc/modules': 'loop 1 0 - Live 0x0\n' }
    const found = diagnose(host({ flags: 'svm', device, files, kvm: { cpuid: plainCpuid, nestedState: 0 } }))
    expect(found).toMatchObject({ way: 'enable', extension: 'svm' })
    expect(found.commands).toHaveLength(1)
    expect(found.commands[0]).toContain('kvm_amd.nested=1')
    expect(found.facts.modules).toEqual({ vendor: ['kvm_amd'], nested: { kvm_amd: '0' } })
  })

  it('loads the module where there is no /dev/kvm but a CPU that has the extension', () => {
    const found = diagnose(host({ flags: 'svm' }))
    expect(found).toMatchObject({ way: 'enable', extension: 'svm' })
    expect(found.commands.at(-1)).toBe('modprobe kvm_amd')
    expect(found.facts).toMatchObject({ device: { present: false, permitted: false }, apiVersion: null, offered: null })
    expect(found.facts.device.problem).toContain('ENOENT')
  })

  it('tells a container without the device from a kernel without KVM', () => {
    const files = { ...intel('Y'), '/proc/misc': '232 kvm\n229 fuse\n' }
    const found = diagnose(host({ flags: 'vmx', files }))
    expect(found).toMatchObject({ way: 'enable' })
    expect(found.commands).toEqual(['start the container with: --device /dev/kvm'])
    const off = diagnose(host({ flags: 'vmx', files: { ...files, ...intel('N') } }))
    expect(off.commands).toContain('modprobe -r kvm_intel')
    expect(off.commands.at(-1)).toContain('--device /dev/kvm')
  })

  it('names the group that owns the device', () => {
    const openError = new KvmError('open /dev/kvm', EACCES)
    const found = diagnose(host({ flags: 'vmx', device: { ...device, gid: 105 }, files: intel('Y'), openError }))
    expect(found).toMatchObject({ way: 'enable', extension: 'vmx' })
    expect(found.commands).toEqual(['usermod -aG virt ann', 'log out and in again'])
    expect(found.facts.device).toMatchObject({ present: true, permitted: false })
  })

  it('gives the device a group where it has none, and never suggests the group root', () => {
    const openError = new KvmError('open /dev/kvm', EACCES)
    const own = { mode: 0o20660, uid: 0, gid: 0 }
    const found = diagnose(host({ flags: 'vmx', device: own, files: intel('N'), openError }))
    expect(found.commands).toEqual([
      'chgrp kvm /dev/kvm',
      'chmod 660 /dev/kvm',
      'usermod -aG kvm ann',
      'log out and in again',
      "echo 'options kvm_intel nested=1' > /etc/modprobe.d/nested-kvm.conf",
      'modprobe -r kvm_intel',
      'modprobe kvm_intel',
    ])
  })

  it('sends a cloud machine whose /dev/kvm does not nest to the lab', () => {
    const kvm = { cpuid: plainCpuid, nestedState: 0 }
    const found = diagnose(host({ flags: 'hypervisor', device, kvm }))
    expect(found).toMatchObject({ ok: false, way: 'lab', extension: null, commands: [] })
    expect(found.reason).toContain('itself a virtual machine')
    expect(found.reason).toContain('/dev/kvm runs guests')
  })

  it('sends a virtual machine without KVM, and a machine without virtualization, to the lab', () => {
    expect(diagnose(host({ flags: 'hypervisor' })).reason).toContain('whose hypervisor gives it neither')
    expect(diagnose(host({})).reason).toContain('firmware')
    expect(diagnose(host({})).way).toBe('lab')
  })

  it('reports a device that does not answer as KVM does', () => {
    const openError = new Error('KVM API version 11, need 12')
    const found = diagnose(host({ flags: 'vmx', device, files: intel('Y'), openError }))
    expect(found).toMatchObject({ ok: false, way: 'lab' })
    expect(found.reason).toContain('KVM API version 11')
    expect(found.facts.device).toMatchObject({ present: true, permitted: true })
  })
})
