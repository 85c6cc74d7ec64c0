import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type MachineOptions, parseMachineConfig, parseSize } from '../../../lib/config/machine-config.js'
import { parseSavedConfig, saveConfig } from '../../../lib/config/saved-config.js'
import { ConfigError } from '../../../lib/errors.js'

let folder: string
let kernel: string
let initrd: string

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'nested-kvm-'))
  kernel = join(folder, 'vmlinuz')
  initrd = join(folder, 'initrd')
  writeFileSync(kernel, 'k')
  writeFileSync(initrd, 'i')
})

afterAll(() => rmSync(folder, { recursive: true }))

function failure(options: unknown, limits = {}): ConfigError {
  try {
    parseMachineConfig(options as MachineOptions, limits)
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError)
    return error as ConfigError
  }
  throw new Error('this was accepted')
}

describe('parseMachineConfig', () => {
  test('fills in the defaults', () => {
    expect(parseMachineConfig({ kernel })).toEqual({
      boot: 'auto',
      kernel,
      initrd: undefined,
      modules: [],
      firmware: undefined,
      cmdline: 'console=ttyS0 panic=-1',
      cpu: 'host',
      vcpus: 1,
      memory: 512 * 2 ** 20,
      hugePages: 'auto',
      disks: [],
      lost: [],
      reboot: true,
      onTripleFault: 'crash',
      console: 'serial',
      rng: true,
      vsock: null,
      nets: [],
    })
  })

  test('console, rng and vsock', () => {
    expect(parseMachineConfig({ kernel, console: 'virtio', rng: false, vsock: {} })).toMatchObject({
      ...{ cmdline: 'console=hvc0 panic=-1', console: 'virtio', rng: false, vsock: { cid: 3, path: null } },
    })
    expect(parseMachineConfig({ kernel, vsock: { cid: 42, path: 'v.sock' } }).vsock).toEqual({
      cid: 42,
      path: 'v.sock',
    })
    for (const [field, options] of [
      ['hugePages', { hugePages: true }],
      ['name', { name: '' }],
      ['name', { name: 7 }],
      ['memory', { hugePages: 'hugetlb', memory: '513M' }],
      ['console', { console: 'hvc0' }],
      ['rng', { rng: 'yes' }],
      ['vsock', { vsock: 'v.sock' }],
      ['vsock.cid', { vsock: { cid: 2 } }],
      ['vsock.cid', { vsock: { cid: 0xffff_ffff } }],
      ['vsock.path', { vsock: { path: '' } }],
      ['vsock.port', { vsock: { port: 1 } }],
    ] as const) {
      expect(() => parseMachineConfig({ kernel, ...options } as never)).toThrow(expect.objectContaining({ field }))
    }
  })

  test('keeps what is given', () => {
    const modules = [{ file: initrd, cmdline: 'a b' }]
    const boot = { boot: 'pvh', kernel: Uint8Array.of(1), initrd, modules } as const
    const policy = { reboot: false, onTripleFault: 'reset' } as const
    const given = { ...boot, ...policy, cmdline: '', cpu: 'host,-vmx', vcpus: 3, memory: 0x2000 }
    expect(parseMachineConfig(given, { vcpus: 3 })).toMatchObject({ ...given, firmware: undefined })
    expect(parseMachineConfig({ ...given, initrd: Uint8Array.of(2), memory: '8G' }, { memory: 2 ** 40 })).toMatchObject(
      {
        initrd: Uint8Array.of(2),
        memory: 8 * 2 ** 30,
      },
    )
  })

  test('undefined means the default', () => {
    const options = {
      kernel,
      initrd: undefined,
      cmdline: undefined,
      cpu: undefined,
      vcpus: undefined,
      memory: undefined,
      reboot: undefined,
      onTripleFault: undefined,
    }
    expect(parseMachineConfig(options)).toEqual(parseMachineConfig({ kernel }))
  })

  test.each([
    ['reboot', { reboot: 'no' }, 'no boolean'],
    ['onTripleFault', { onTripleFault: 'panic' }, 'no such thing'],
    ['kernel', {}, 'needs one'],
    ['kernel', { kernel: '/does/not/exist' }, 'no such file'],
    ['kernel', { kernel: '/dev/null/x' }, 'no such file'],
    ['kernel', { kernel: tmpdir() }, 'no regular file'],
    ['kernel', { kernel: '/dev/zero' }, 'no regular file'],
    ['kernel', { kernel: '' }, 'neither a path nor bytes'],
    ['kernel', { kernel: 'a\0b' }, 'cannot be read'],
    ['kernel', { kernel: 5 }, 'neither a path nor bytes'],
    ['initrd', { initrd: '/does/not/exist' }, 'no such file'],
    ['modules', { modules: {} }, 'no list'],
    ['boot', { boot: 'grub' }, 'no such way to boot; give one of auto, linux, pvh, multiboot, firmware'],
    ['cmdline', { cmdline: 5 }, 'no string'],
    ['cpu', { cpu: ['host'] }, 'no string'],
    ['vcpus', { vcpus: 0 }, 'no count'],
    ['vcpus', { vcpus: -1 }, 'no count'],
    ['vcpus', { vcpus: 1.5 }, 'no count'],
    ['vcpus', { vcpus: Number.NaN }, 'no count'],
    ['vcpus', { vcpus: '2' }, 'no count'],
    ['vcpus', { vcpus: 9 }, 'KVM on this host allows 8'],
    ['memory', { memory: 0 }, 'needs some'],
    ['memory', { memory: '0G' }, 'needs some'],
    ['memory', { memory: 4097 }, 'no multiple of the page size, 4096; give for example 8192'],
    ['memory', { memory: totalmem() + 2 ** 30 }, ''],
    ['memory', { memory: '1024T' }, 'this host has'],
    ['memory', { memory: 'much' }, 'no size'],
    ['memory', { memory: -4096 }, 'no size'],
    ['memory', { memory: '-1G' }, 'no size'],
    ['memory', { memory: Number.POSITIVE_INFINITY }, 'no size'],
    ['memroy', { memroy: '1G' }, 'the fields are kernel, initrd, modules, boot, firmware, cmdline, cpu, vcpus, memory'],
    ['toString', { toString: 1 }, 'no such field'],
  ])('a bad %s is named, with its value (%#)', (field, options: Record<string, unknown>, message) => {
    const base = field === 'kernel' ? {} : { kernel }
    const error = failure({ ...base, ...options }, { vcpus: 8 })
    expect(error.field).toBe(field)
    expect(error.value).toEqual(options[field])
    expect(error.message).toContain(message)
    expect(error.remedy).not.toBe('')
  })

  test('firmware boots where there is no kernel but firmware, or where it is told to', () => {
    const booted = { boot: 'firmware', kernel: undefined, initrd: undefined, modules: [], firmware: kernel }
    expect(parseMachineConfig({ firmware: kernel })).toMatchObject(booted)
    expect(parseMachineConfig({ firmware: kernel, boot: 'firmware' })).toMatchObject(booted)
    expect(parseMachineConfig({ firmware: Uint8Array.of(1) }).firmware).toEqual(Uint8Array.of(1))
  })

  test('the files of modules are looked at, and their command lines are empty by default', () => {
    const modules = [{ file: initrd }, { file: Uint8Array.of(1), cmdline: 'x' }]
    expect(parseMachineConfig({ kernel, modules }).modules).toEqual([
      { file: initrd, cmdline: '' },
      { file: Uint8Array.of(1), cmdline: 'x' },
    ])
  })

  test.each([
    ['modules[1]', () => ({ kernel, modules: [{ file: kernel }, { file: '/does/not/exist' }] }), 'no such file'],
    ['modules[0]', () => ({ kernel, modules: [null] }), 'neither a path nor bytes'],
    ['modules[0]', () => ({ kernel, modules: [{ file: kernel, cmdline: 1 }] }), 'no string'],
    ['firmware', () => ({ kernel, firmware: kernel }), 'a kernel is booted directly (boot: auto), without firmware'],
    ['firmware', () => ({ kernel, boot: 'pvh', firmware: Uint8Array.of(1, 2) }), 'firmware: "2 bytes": a kernel is'],
    ['firmware', () => ({ firmware: '/does/not/exist' }), 'no such file'],
    ['kernel', () => ({ kernel, boot: 'firmware', firmware: kernel }), 'firmware boots from a disk, and takes none'],
    ['initrd', () => ({ initrd, firmware: kernel }), 'takes none'],
    ['modules', () => ({ modules: [], firmware: kernel }), 'takes none'],
    ['cmdline', () => ({ cmdline: 'x', firmware: kernel }), 'takes none'],
    ['kernel', () => ({ boot: 'multiboot' }), 'a machine needs one'],
  ])('what does not go together is told: %s (%#)', (field, options, message) => {
    const error = failure(options())
    expect(error.field).toBe(field)
    expect(error.message).toContain(message)
  })

  test('a configuration that was saved is the same but for content, which is not kept', () => {
    const limits = { memory: 2 ** 40, vcpus: 8 }
    const again = (options: MachineOptions) =>
      parseSavedConfig(JSON.parse(JSON.stringify(saveConfig(parseMachineConfig(options)))), limits)
    const paths: MachineOptions = { kernel, initrd, boot: 'multiboot', modules: [{ file: initrd, cmdline: 'x y' }] }
    expect(again(paths)).toEqual(parseMachineConfig(paths))
    expect(again({ firmware: kernel })).toEqual(parseMachineConfig({ firmware: kernel }))
    const bytes = Uint8Array.of(1)
    expect(again({ kernel: bytes, modules: [{ file: bytes, cmdline: 'x' }] })).toMatchObject({
      boot: 'auto',
      kernel: undefined,
      modules: [{ file: undefined, cmdline: 'x' }],
    })
    const saved = saveConfig(parseMachineConfig({ kernel }))
    for (const [field, value] of [
      ['boot', 'x'],
      ['modules', null],
      ['modules[0]', [5]],
    ] as const) {
      const bad = { ...saved, [field.replace('[0]', '')]: value }
      expect(() => parseSavedConfig(bad, limits)).toThrow(new RegExp(`^${field.replace(/[[\]]/g, '.')}: `))
    }
  })

  test.each([null, undefined, 'kernel', 5])('%s is no configuration', options => {
    expect(failure(options).field).toBe('machine')
  })

  test('memory may be all that the host has, and no page more', () => {
    expect(parseMachineConfig({ kernel, memory: '1M' }, { memory: 2 ** 20 }).memory).toBe(2 ** 20)
    expect(failure({ kernel, memory: 2 ** 20 + 4096 }, { memory: 2 ** 20 }).message).toContain(
      'this host has 1M in all',
    )
  })
})

describe('parseSize', () => {
  test.each([
    [4096, 4096],
    ['4096', 4096],
    ['512M', 2 ** 29],
    ['512m', 2 ** 29],
    ['512 MiB', 2 ** 29],
    ['1.5GB', 1.5 * 2 ** 30],
    ['64K', 65536],
    ['2T', 2 ** 41],
    [' 1B ', 1],
  ])('%j is %d bytes', (value, expected) => {
    expect(parseSize('memory', value)).toBe(expected)
  })

  test.each(['', 'M', '1.M', '1X', '0x10', '1e3', '1 000', '1.00001', '9007199254740993T', null, {}, true])(
    '%j is none',
    value => {
      expect(() => parseSize('memory', value)).toThrow(ConfigError)
    },
  )
})
