import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { KvmError } from '../../lib/errors.js'
import { addon } from '../../lib/kvm/binding.js'
import { cap } from '../../lib/kvm/capabilities.js'
import { Kvm } from '../../lib/kvm/kvm.js'
import { VcpuThread } from '../../lib/kvm/vcpu-thread.js'
import { loadGuest, openGuest, runTo } from './guest.js'

function thrown(action: () => unknown): Error {
  try {
    action()
  } catch (error) {
    if (error instanceof Error) return error
  }
  throw new Error('nothing was thrown')
}

describe('opening', () => {
  it('a device that is not there: a KvmError with the path, the code and what to do', () => {
    const error = thrown(() => Kvm.open('/dev/no-kvm-here'))
    expect(error).toBeInstanceOf(KvmError)
    expect(error).toMatchObject({ ioctl: 'open /dev/no-kvm-here', code: 'ENOENT', errno: 2 })
  })

  it('what is no KVM device', () => {
    expect(() => Kvm.open('/dev/null')).toThrow(/KVM_GET_API_VERSION: ENOTTY \(\/dev\/null is not a KVM device/)
    const directory = mkdtempSync(join(tmpdir(), 'nested-kvm-'))
    const file = join(directory, 'kvm')
    writeFileSync(file, '')
    chmodSync(file, 0o600)
    expect(() => Kvm.open(file)).toThrow(/ENOTTY/)
    expect(() => Kvm.open(directory)).toThrow(/EISDIR/)
    rmSync(directory, { recursive: true })
  })

  it('this machine: version 12, its capabilities, and 0 for one that is none', () => {
    using kvm = Kvm.open()
    expect(kvm.apiVersion).toBe(12)
    expect(kvm.vcpuMmapSize).toBeGreaterThanOrEqual(4096 * 3)
    expect(kvm.checkExtension(cap.USER_MEMORY)).toBe(1)
    expect(kvm.checkExtension(cap.IMMEDIATE_EXIT)).toBe(1)
    expect(kvm.checkExtension(99_999)).toBe(0)
  })
})

describe('after close()', () => {
  it('every object refuses, and says that it is closed', () => {
    const { kvm, vm, vcpu } = openGuest()
    const thread = new VcpuThread(vcpu, () => {})
    vcpu.close()
    for (const action of [() => vcpu.run(), () => vcpu.getRegs(), () => vcpu.getXsave(), () => vcpu.setCpuid([])]) {
      expect(thrown(action)).toMatchObject({
        name: 'KvmError',
        code: 'EBADF',
        message: expect.stringContaining('closed'),
      })
    }
    expect(() => new VcpuThread(vcpu, () => {})).toThrow(/EBADF.*closed/)
    thread.close()
    expect(() => thread.start()).toThrow(/EBADF.*closed/)
    vm.close()
    for (const action of [
      () => vm.createVcpu(1),
      () => vm.createIrqchip(),
      () => vm.addMemory({ guestAddress: 0, size: 4096 }),
      () => vm.getClock(),
      () => vm.enableCap(cap.MANUAL_DIRTY_LOG_PROTECT2, 1n),
    ]) {
      expect(thrown(action)).toMatchObject({
        name: 'KvmError',
        code: 'EBADF',
        message: expect.stringContaining('closed'),
      })
    }
    kvm.close()
    expect(() => kvm.createVm()).toThrow(/KVM_CREATE_VM: EBADF.*closed/)
    expect(() => kvm.checkExtension(0)).toThrow(/EBADF/)
    // Once more does nothing.
    vcpu.close()
    vm.close()
    kvm.close()
  })

  it('every view is detached: of memory, of kvm_run, of an exit', () => {
    const { kvm, vm, vcpu, ram } = loadGuest('real', 'mov dx, 0x10\nout dx, al')
    const { data } = runTo(vcpu, 'io-out')
    const { bytes } = ram
    const { runPage } = vcpu
    vm.close()
    kvm.close()
    expect([data.byteLength, bytes.byteLength, runPage.byteLength]).toEqual([0, 0, 0])
    expect(bytes[0x1000]).toBe(undefined)
    bytes[0x1000] = 1
    expect(() => vcpu.coalescedWrites()).not.toThrow()
    expect(ram.chunks).toEqual([])
  })

  it('a VM outlives the Kvm that made it, and a vCPU keeps its memory', () => {
    const { kvm, vm, vcpu } = loadGuest('real', 'hlt')
    kvm.close()
    runTo(vcpu, 'hlt')
    vm.close()
  })
})

describe('the addon itself, whatever it is given', () => {
  const kvm = () => new addon.Kvm('/dev/kvm')

  it('takes a struct of exactly its size', () => {
    const vcpu = kvm().createVm(0).createVcpu(0)
    expect(() => vcpu.getRegs(new Uint8Array(143))).toThrow(/KVM_GET_REGS: takes 144 bytes, not 143/)
    expect(() => vcpu.getRegs(new Uint8Array(145))).toThrow(RangeError)
    expect(() => vcpu.getRegs(new Uint8Array(0))).toThrow()
    expect(() => vcpu.setXsave(new Uint8Array(100))).toThrow(/at least 4096/)
    expect(() => vcpu.getNestedState(new Uint8Array(8))).toThrow(/128-byte header/)
  })

  it('takes a list no longer than its buffer', () => {
    const vcpu = kvm().createVm(0).createVcpu(0)
    const bytes = new Uint8Array(8 + 40)
    bytes[0] = 2
    expect(() => vcpu.setCpuid2(bytes)).toThrow(/asks for 88 bytes, the buffer has 48/)
    bytes.fill(0xff, 0, 4)
    expect(() => vcpu.getMsrs(bytes)).toThrow(RangeError)
    expect(() => vcpu.getMsrs(new Uint8Array(3))).toThrow(RangeError)
    const nested = new Uint8Array(128)
    new DataView(nested.buffer).setUint32(4, 129, true)
    expect(() => vcpu.setNestedState(nested)).toThrow(/larger than the buffer/)
  })

  it('refuses what is not bytes, or may change while the kernel reads', () => {
    const vcpu = kvm().createVm(0).createVcpu(0)
    const wrong = [
      undefined,
      null,
      1,
      'x',
      {},
      [],
      new Uint16Array(72),
      new ArrayBuffer(144),
      new DataView(new ArrayBuffer(144)),
    ]
    for (const value of [...wrong, new Uint8Array(new SharedArrayBuffer(144))]) {
      expect(() => vcpu.getRegs(value as unknown as Uint8Array)).toThrow(TypeError)
    }
  })

  it('refuses numbers that are none', () => {
    const vm = kvm().createVm(0)
    for (const value of [
      undefined,
      null,
      'x',
      {},
      1.5,
      -1,
      Number.NaN,
      Number.POSITIVE_INFINITY,
      2 ** 53,
      1n,
      Symbol('s'),
    ]) {
      expect(() => vm.createVcpu(value as unknown as number), String(value)).toThrow()
    }
    const hostile = {
      toString() {
        throw new Error('from toString')
      },
    }
    expect(() => vm.createVcpu(hostile as unknown as number)).toThrow()
  })

  it('refuses objects of another kind, and methods on another this', () => {
    const vm = kvm().createVm(0)
    const eventFd = new addon.EventFd()
    expect(() => new addon.VcpuThread(vm as never, () => true)).toThrow(TypeError)
    expect(() => new addon.VcpuThread({} as never, () => true)).toThrow(TypeError)
    expect(() => vm.irqfd({} as never, 1, 0, null)).toThrow(TypeError)
    expect(() => vm.irqfd(vm as never, 1, 0, null)).toThrow(TypeError)
    expect(() => vm.setUserMemoryRegion(0, 0, 0, 4096, eventFd as never, 0)).toThrow(TypeError)
    expect(() => vm.createVcpu.call({} as never, 0)).toThrow(TypeError)
    expect(() => vm.createVcpu.call(kvm() as never, 0)).toThrow(TypeError)
    const { Vm, Vcpu } = addon as unknown as Record<string, new (...args: unknown[]) => object>
    expect(() => new Vm!()).toThrow(TypeError)
    expect(() => new Vcpu!(vm)).toThrow(TypeError)
  })

  it('maps memory only inside what is there', () => {
    const vm = kvm().createVm(0)
    const memory = new addon.Memory(8192)
    expect(() => vm.setUserMemoryRegion(0, 0, 0, 8192, memory, 4096)).toThrow(/outside the Memory/)
    expect(() => vm.setUserMemoryRegion(0, 0, 0, 4096, memory, 2 ** 52)).toThrow(/outside the Memory/)
    memory.close()
    expect(() => vm.setUserMemoryRegion(0, 0, 0, 4096, memory, 0)).toThrow(/EBADF/)
    expect(() => new addon.Memory(0)).toThrow()
    expect(() => new addon.Memory(-1)).toThrow(RangeError)
  })

  it('memory outlives its slot: closing it under a running guest changes nothing for the guest', () => {
    const vm = kvm().createVm(0)
    const memory = new addon.Memory(1 << 20)
    vm.setUserMemoryRegion(0, 0, 0, 1 << 20, memory, 0)
    new Uint8Array(memory.buffers()[0]!)[0xfff0] = 0xf4
    const vcpu = vm.createVcpu(0)
    memory.close()
    const sregs = new Uint8Array(312)
    vcpu.getSregs(sregs)
    sregs.fill(0, 0, 8)
    new DataView(sregs.buffer).setUint16(12, 0, true)
    vcpu.setSregs(sregs)
    // Reset leaves RIP at 0xfff0; KVM_EXIT_HLT is 5.
    vcpu.runFunction()()
    expect(new DataView(vcpu.runBuffer()).getUint32(8, true)).toBe(5)
  })
})
