import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { KvmError } from '../../lib/errors.js'
import type { VcpuExit } from '../../lib/kvm/exit.js'
import { VcpuThread } from '../../lib/kvm/vcpu-thread.js'
import { loadGuest, type Mode, ORIGIN } from './guest.js'

/** Resolves when `done` says so of what came before. */
function until(condition: () => boolean, what: string): Promise<void> {
  return (async () => {
    for (const start = Date.now(); !condition(); await sleep(1)) {
      if (Date.now() - start > 5000) throw new Error(`timed out: ${what}`)
    }
  })()
}

describe('VcpuThread', () => {
  it('hands exits to the handler in order, and answers reach the guest', async () => {
    using guest = loadGuest('protected', 'again: in al, 0x60\nout 0x61, al\ncmp al, 5\njne again\nhlt')
    const seen: number[] = []
    let next = 1
    const halted = new Promise<void>((resolve, reject) => {
      const thread = new VcpuThread(
        guest.vcpu,
        exit => {
          if (exit.reason === 'io-in') exit.data[0] = next++
          else if (exit.reason === 'io-out') seen.push(exit.data[0]!)
          else if (exit.reason === 'hlt') resolve(thread.stop())
        },
        reject,
      )
      thread.start()
    })
    await halted
    expect(seen).toEqual([1, 2, 3, 4, 5])
    expect(guest.vcpu.getRegs().rax & 0xffn).toBe(5n)
  })

  it('leaves the event loop free while the guest computes', async () => {
    using guest = loadGuest('protected', 'jmp .')
    using thread = new VcpuThread(guest.vcpu, () => {})
    thread.start()
    let ticks = 0
    const timer = setInterval(() => ticks++, 5)
    await sleep(200)
    clearInterval(timer)
    expect(ticks).toBeGreaterThan(15)
    await thread.stop()
  })

  it('waits for an asynchronous handler before the guest goes on', async () => {
    using guest = loadGuest('protected', 'in al, 0x60\nout 0x61, al\nhlt')
    const order: string[] = []
    await new Promise<void>((resolve, reject) => {
      const thread = new VcpuThread(
        guest.vcpu,
        async exit => {
          order.push(exit.reason)
          if (exit.reason === 'io-in') {
            await sleep(20)
            exit.data[0] = 0x99
            order.push('answered')
          } else if (exit.reason === 'io-out') expect(exit.data[0]).toBe(0x99)
          else resolve(thread.stop())
        },
        reject,
      )
      thread.start()
    })
    expect(order).toEqual(['io-in', 'answered', 'io-out', 'hlt'])
  })

  it.each(['real', 'protected', 'long', 'user'] satisfies Mode[])(
    'pause() and stop() take a guest out that spins with interrupts off, in %s mode, within milliseconds',
    async mode => {
      using guest = loadGuest(mode, mode === 'user' ? 'again: inc rbx\njmp again' : 'cli\nagain: inc bx\njmp again')
      const { vcpu } = guest
      using thread = new VcpuThread(vcpu, exit => expect(exit).toBe('no exit'))
      const times: number[] = []
      const timed = async (action: Promise<void>) => {
        const start = performance.now()
        await action
        times.push(performance.now() - start)
      }
      thread.start()
      for (let i = 0; i < 20; i++) {
        await sleep(2)
        await timed(thread.pause())
        expect(thread.state).toBe('paused')
        const { rip } = vcpu.getRegs()
        expect(rip >= 0x1000n && rip < 0x1010n).toBe(true)
        thread.resume()
      }
      await sleep(2)
      await timed(thread.stop())
      expect(thread.state).toBe('stopped')
      // The middle one: a busy machine may take its time with a single one.
      expect(times.toSorted((a, b) => a - b)[10]).toBeLessThan(10)
      expect(Math.max(...times)).toBeLessThan(1000)
    },
  )

  it('pause() completes a pending port read, and the guest goes on after resume()', async () => {
    using guest = loadGuest('protected', 'again: in al, 0x60\ninc ebx\njmp again')
    let reads = 0
    using thread = new VcpuThread(guest.vcpu, exit => {
      if (exit.reason !== 'io-in') return
      exit.data[0] = 0x40 + (reads++ % 16)
    })
    thread.start()
    await until(() => reads > 10, 'the guest reads')
    await thread.pause()
    const before = reads
    // Every read that was answered has arrived; the last may not be counted yet, when RIP is behind it.
    const { rip, rbx } = guest.vcpu.getRegs()
    expect(before - Number(rbx)).toBe(rip === 0x1002n ? 1 : 0)
    await sleep(20)
    expect(reads).toBe(before)
    thread.resume()
    await until(() => reads > before + 10, 'the guest reads on')
    await thread.stop()
    const after = reads
    await sleep(20)
    expect(reads).toBe(after)
  })

  it('pause() from inside the handler holds after that exit', async () => {
    using guest = loadGuest('protected', 'again: inc ebx\nout 0x60, al\njmp again')
    let exits = 0
    let paused: Promise<void> | undefined
    using thread = new VcpuThread(guest.vcpu, () => {
      if (++exits === 5) paused = thread.pause()
    })
    thread.start()
    await until(() => paused !== undefined, 'five exits')
    await paused
    expect(exits).toBe(5)
    expect(guest.vcpu.getRegs().rbx).toBe(5n)
    thread.resume()
    await until(() => exits > 20, 'more exits')
    await thread.stop()
  })

  it('may be started again after stop(), and goes on where it was', async () => {
    using guest = loadGuest('protected', 'again: inc ebx\nout 0x60, al\njmp again')
    // Behind inc, of one byte.
    const OUT = BigInt(ORIGIN + 1)
    let exits = 0
    using thread = new VcpuThread(guest.vcpu, () => void exits++)
    for (let goal = 10; goal <= 1000; goal += 10) {
      thread.start()
      await until(() => exits >= goal, `${goal} exits`)
      await thread.stop()
      // It may have come between two instructions: then what is counted is yet to be told.
      const { rip, rbx } = guest.vcpu.getRegs()
      expect(rbx).toBe(BigInt(exits + (rip === OUT ? 1 : 0)))
    }
  })

  it('stop() and pause() at once both resolve', async () => {
    using guest = loadGuest('protected', 'jmp .')
    using thread = new VcpuThread(guest.vcpu, () => {})
    thread.start()
    await sleep(5)
    await Promise.all([thread.pause(), thread.stop(), thread.stop()])
    expect(thread.state).toBe('stopped')
  })

  it('stop() wins over a pause() whose news has not been heard yet', async () => {
    using guest = loadGuest('protected', 'jmp .')
    using thread = new VcpuThread(guest.vcpu, () => {})
    thread.start()
    await sleep(5)
    const paused = thread.pause()
    // The vCPU comes out of KVM_RUN meanwhile; the event loop hears of it only after stop().
    for (const start = performance.now(); performance.now() - start < 50; );
    await thread.stop()
    await paused
    expect(thread.state).toBe('stopped')
  })

  it('a handler that throws stops the guest there; stop() still works', async () => {
    using guest = loadGuest('protected', 'again: inc ebx\nout 0x60, al\njmp again')
    const errors: Error[] = []
    let exits = 0
    using thread = new VcpuThread(
      guest.vcpu,
      () => {
        if (++exits === 3) throw new Error('device broke')
      },
      error => errors.push(error),
    )
    thread.start()
    await until(() => errors.length > 0, 'the error')
    await sleep(20)
    expect([exits, errors.map(({ message }) => message)]).toEqual([3, ['device broke']])
    await thread.stop()
    expect(guest.vcpu.getRegs().rbx).toBe(3n)
  })

  it('a handler whose promise is rejected does the same', async () => {
    using guest = loadGuest('protected', 'again: out 0x60, al\njmp again')
    const errors: Error[] = []
    using thread = new VcpuThread(
      guest.vcpu,
      async () => {
        await sleep(1)
        throw new Error('disk broke')
      },
      error => errors.push(error),
    )
    thread.start()
    await until(() => errors.length > 0, 'the error')
    await thread.stop()
    expect(errors.map(({ message }) => message)).toEqual(['disk broke'])
  })

  it('keeps everybody else out while the vCPU runs, and says so', async () => {
    using guest = loadGuest('protected', 'jmp .')
    const { vcpu } = guest
    using thread = new VcpuThread(vcpu, () => {})
    thread.start()
    expect(() => vcpu.getRegs()).toThrow(/KVM_GET_REGS: EBUSY.*pause\(\) it first/)
    expect(() => vcpu.run()).toThrow(/KVM_RUN: EBUSY/)
    expect(() => new VcpuThread(vcpu, () => {})).toThrow(/EBUSY/)
    expect(() => thread.resume()).toThrow(/EINVAL \(the vCPU is not paused/)
    await thread.pause()
    expect(() => vcpu.run()).toThrow(/KVM_RUN: EBUSY/)
    vcpu.setRegs(vcpu.getRegs())
    await thread.stop()
    expect(() => new VcpuThread(vcpu, () => {})).not.toThrow()
  })

  it('reports what KVM refuses to run', async () => {
    using guest = loadGuest('protected', 'nop')
    const { vcpu } = guest
    // Neither real nor protected: paging without protection is refused when the registers are set ...
    const sregs = vcpu.getSregs()
    expect(() => vcpu.setSregs({ ...sregs, cr0: 0x80000000n })).toThrow(/KVM_SET_SREGS: EINVAL/)
    // ... and code outside memory is an exit, or an error that names it.
    vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x8000_0000n })
    const outcome = await new Promise<VcpuExit['reason'] | Error>(resolve => {
      const thread = new VcpuThread(
        vcpu,
        exit => {
          resolve(exit.reason)
          thread.close()
        },
        resolve,
      )
      thread.start()
    })
    if (outcome instanceof Error) expect(outcome).toBeInstanceOf(KvmError)
    else expect(['internal-error', 'mmio-read', 'shutdown', 'memory-fault']).toContain(outcome)
  })

  it('close() ends it at once, also in the middle of a handler', async () => {
    using guest = loadGuest('protected', 'again: out 0x60, al\njmp again')
    let exits = 0
    await new Promise<void>(resolve => {
      const thread = new VcpuThread(guest.vcpu, () => {
        exits++
        thread.close()
        resolve()
      })
      thread.start()
    })
    await sleep(20)
    expect(exits).toBe(1)
    expect(guest.vcpu.getRegs().rip).toBeGreaterThanOrEqual(0x1000n)
  })

  it('closing the VM ends its threads', async () => {
    const guest = loadGuest('protected', 'jmp .')
    const thread = new VcpuThread(guest.vcpu, () => {})
    thread.start()
    await sleep(5)
    const start = performance.now()
    guest.vm.close()
    expect(performance.now() - start).toBeLessThan(500)
    expect(thread.state).toBe('closed')
    guest.kvm.close()
  })
})
