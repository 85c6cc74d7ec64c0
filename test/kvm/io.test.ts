import { describe, expect, it } from 'vitest'
import { loadGuest, type Mode, runTo } from './guest.js'

const modes = ['real', 'protected', 'long', 'user'] satisfies Mode[]

describe.each(modes)('port I/O in %s mode', mode => {
  it('out of 1, 2 and 4 bytes, to a port in DX or in the instruction', () => {
    using guest = loadGuest(
      mode,
      `mov eax, 0x87654321
       mov dx, 0xcf8
       out dx, al
       out dx, ax
       out dx, eax
       out 0x80, al`,
    )
    const seen = Array.from({ length: 4 }, () => {
      const { port, size, count, data } = runTo(guest.vcpu, 'io-out')
      return { port, size, count, data: [...data] }
    })
    expect(seen).toEqual([
      { port: 0xcf8, size: 1, count: 1, data: [0x21] },
      { port: 0xcf8, size: 2, count: 1, data: [0x21, 0x43] },
      { port: 0xcf8, size: 4, count: 1, data: [0x21, 0x43, 0x65, 0x87] },
      { port: 0x80, size: 1, count: 1, data: [0x21] },
    ])
  })

  it('in of 1, 2 and 4 bytes: the answer is what stands in `data` at the next run', () => {
    using guest = loadGuest(
      mode,
      `mov dx, 0x1f0
       mov eax, 0xffffffff
       in al, dx
       mov ebx, eax
       mov eax, 0xffffffff
       in ax, dx
       mov ecx, eax
       mov eax, 0xffffffff
       in eax, dx
       mov dx, 0x10
       out dx, al`,
    )
    const { vcpu } = guest
    for (const answer of [[0x11], [0x22, 0x33], [0x44, 0x55, 0x66, 0x77]]) {
      const exit = runTo(vcpu, 'io-in')
      expect([exit.port, exit.size, exit.count, exit.data.length]).toEqual([0x1f0, answer.length, 1, answer.length])
      exit.data.set(answer)
    }
    runTo(vcpu, 'io-out')
    const { rax, rbx, rcx } = vcpu.getRegs()
    expect([rbx, rcx, rax].map(value => value.toString(16))).toEqual(['ffffff11', 'ffff3322', '77665544'])
  })

  it('rep outs and rep ins of each width move all of memory through the exits', () => {
    const [si, di, cx] =
      mode === 'real' ? ['si', 'di', 'cx'] : mode === 'protected' ? ['esi', 'edi', 'ecx'] : ['rsi', 'rdi', 'rcx']
    const move = (width: string) => `mov ${cx}, 6\nrep outs${width}\nmov ${cx}, 6\nrep ins${width}\n`
    using guest = loadGuest(
      mode,
      `cld\nmov dx, 0x1f0\nmov ${si}, 0x6000\nmov ${di}, 0x7000\n${move('b')}${move('w')}${move('d')}mov dx, 0x10\nout dx, al`,
    )
    const { vcpu, ram } = guest
    const sent = Uint8Array.from({ length: 42 }, (_, i) => i + 1)
    ram.bytes.set(sent, 0x6000)
    const out: number[] = []
    let next = 100
    const answers: number[] = []
    for (;;) {
      const exit = vcpu.run()
      if (exit.reason === 'io-out' && exit.port === 0x10) break
      if (exit.reason !== 'io-out' && exit.reason !== 'io-in') throw new Error(`unexpected ${exit.reason}`)
      expect(exit.data.length).toBe(exit.size * exit.count)
      if (exit.reason === 'io-out') out.push(...exit.data)
      else {
        for (const i of exit.data.keys()) {
          exit.data[i] = next
          answers.push(next++)
        }
      }
    }
    expect(out).toEqual([...sent])
    expect([...ram.bytes.subarray(0x7000, 0x7000 + 42)]).toEqual(answers)
    expect(answers.length).toBe(42)
  })
})

describe('`data` of a port exit', () => {
  it('is a view over kvm_run, not a copy', () => {
    using guest = loadGuest('real', 'mov dx, 0x10\nmov al, 1\nout dx, al\nmov al, 2\nout dx, al')
    const first = runTo(guest.vcpu, 'io-out').data
    expect(first[0]).toBe(1)
    const second = runTo(guest.vcpu, 'io-out').data
    expect(second.buffer).toBe(first.buffer)
    expect(first[0]).toBe(2)
  })
})

describe.each(['protected', 'long', 'user'] satisfies Mode[])('MMIO in %s mode', mode => {
  const widths = mode === 'protected' ? [1, 2, 4] : [1, 2, 4, 8]
  const register: Record<number, string> = { 1: 'al', 2: 'ax', 4: 'eax', 8: 'rax' }
  const base = mode === 'protected' ? '[ebx]' : '[rbx]'

  it.each(widths)('writes of %i bytes', width => {
    using guest = loadGuest(mode, `mov ${base}, ${register[width]}\nmov dx, 0x10\nout dx, al`, {
      regs: { rax: 0x8877665544332211n, rbx: 0xd0000010n },
    })
    const exit = runTo(guest.vcpu, 'mmio-write')
    expect(exit.address).toBe(0xd0000010)
    expect([...exit.data]).toEqual([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88].slice(0, width))
    runTo(guest.vcpu, 'io-out')
  })

  it.each(widths)('reads of %i bytes', width => {
    using guest = loadGuest(mode, `mov ${register[width]}, ${base}\nmov dx, 0x10\nout dx, al`, {
      regs: { rax: 0n, rbx: 0xd0000020n },
    })
    const exit = runTo(guest.vcpu, 'mmio-read')
    expect(exit.address).toBe(0xd0000020)
    expect(exit.data.length).toBe(width)
    exit.data.set([0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88].slice(0, width))
    runTo(guest.vcpu, 'io-out')
    const expected = 0x8887868584838281n & ((1n << BigInt(width * 8)) - 1n)
    expect(guest.vcpu.getRegs().rax).toBe(expected)
  })
})

describe('memory that is not RAM', () => {
  it('lies above 4 GiB as well: the address is whole', () => {
    using guest = loadGuest('long', 'mov [rbx], al\nhlt', { regs: { rax: 0x5an, rbx: 0xd0000018n } })
    // The second 2 MiB page of the guest's map, at 0xd0000000, now leads to 0x23_4560_0000.
    new DataView(guest.ram.bytes.buffer).setBigUint64(0x5000 + 0x80 * 8, 0x23_4560_0087n, true)
    const exit = runTo(guest.vcpu, 'mmio-write')
    expect([exit.address, ...exit.data]).toEqual([0x23_4560_0018, 0x5a])
  })

  it('a write to a read-only region is an MMIO exit and leaves it as it was; a read is none', () => {
    using guest = loadGuest('protected', 'mov eax, [ebx]\ninc eax\nmov [ebx], eax\nmov dx, 0x10\nout dx, al', {
      regs: { rbx: 0x200000n },
    })
    const { vm, vcpu } = guest
    const rom = vm.addMemory({ guestAddress: 0x200000, size: 4096, readonly: true })
    rom.bytes.set([0xfe, 0xca, 0, 0])
    const exit = runTo(vcpu, 'mmio-write')
    expect([exit.address, ...exit.data]).toEqual([0x200000, 0xff, 0xca, 0, 0])
    runTo(vcpu, 'io-out')
    expect([...rom.bytes.subarray(0, 2)]).toEqual([0xfe, 0xca])
  })
})
