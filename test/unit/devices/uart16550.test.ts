import { beforeEach, describe, expect, test } from 'vitest'
import { Uart16550 } from '../../../lib/devices/uart16550.js'

const [RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR] = [0, 1, 2, 3, 4, 5, 6, 7] as const
const [THR, FCR] = [RBR, IIR] as const
const [RDI, THRI, RLSI, MSI] = [1, 2, 4, 8] as const

let lines: boolean[]
let output: string[]
let flushes: (() => void)[]
let drains: number
let uart: Uart16550

beforeEach(() => {
  lines = []
  output = []
  flushes = []
  drains = 0
  uart = create()
})

function create(): Uart16550 {
  return new Uart16550({
    interrupt: { set: level => lines.push(level) },
    output: bytes => output.push(Buffer.from(bytes).toString('latin1')),
    schedule: flush => flushes.push(flush),
    drain: () => drains++,
  })
}

function inb(register: number, from = uart): number {
  const data = new Uint8Array(1)
  from.read(register, data)
  return data[0]!
}

function outb(register: number, value: number): void {
  uart.write(register, Uint8Array.of(value))
}

function type(text: string): boolean {
  return uart.input(Buffer.from(text))
}

function readAll(): string {
  let text = ''
  while (inb(LSR) & 1) text += String.fromCharCode(inb(RBR))
  return text
}

describe('registers', () => {
  test('start as after a reset', () => {
    expect([IER, IIR, LCR, MCR, LSR, MSR].map(register => inb(register))).toEqual([0, 0x01, 0, 0, 0x60, 0xb0])
  })

  test('IER has four bits, MCR five, SCR and LCR eight', () => {
    for (const register of [IER, MCR, SCR, LCR]) outb(register, 0xff)
    expect([LCR, SCR, MCR].map(register => inb(register))).toEqual([0xff, 0xff, 0x1f])
    outb(LCR, 0)
    expect(inb(IER)).toBe(0x0f)
  })

  test('DLAB turns the first two registers into the divisor', () => {
    outb(LCR, 0x83)
    outb(0, 0x34)
    outb(1, 0x12)
    expect([inb(0), inb(1)]).toEqual([0x34, 0x12])
    outb(LCR, 0x03)
    expect(inb(IER)).toBe(0)
    expect(output).toEqual([])
  })

  test('IIR shows the FIFOs as Linux looks for a 16550A, and nothing of later kinds', () => {
    outb(FCR, 0x01)
    expect(inb(IIR) >> 6).toBe(3)
    outb(FCR, 0x21)
    expect(inb(IIR)).toBe(0xc1)
    outb(FCR, 0x00)
    expect(inb(IIR) >> 6).toBe(0)
  })

  test('a wide access is one to each register', () => {
    uart.write(SCR - 1, Uint8Array.of(0, 0x5a))
    const data = new Uint8Array(2)
    uart.read(LSR, data)
    expect([...data]).toEqual([0x60, 0xb0])
    expect(inb(SCR)).toBe(0x5a)
  })
})

describe('loopback', () => {
  test('MCR’s outputs are MSR’s inputs: Linux’s test for a UART', () => {
    outb(MCR, 0x1a)
    expect(inb(MSR) & 0xf0).toBe(0x90)
    outb(MCR, 0x15)
    expect(inb(MSR) & 0xf0).toBe(0x60)
  })

  test('what is sent is received, until it overruns, and does not get out', () => {
    outb(MCR, 0x10)
    type('later')
    outb(THR, 0x41)
    outb(THR, 0x42)
    expect(inb(LSR)).toBe(0x63)
    expect(inb(LSR)).toBe(0x61)
    expect(inb(RBR)).toBe(0x41)
    expect(inb(LSR)).toBe(0x60)
    uart.flush()
    expect(output).toEqual([])
    outb(MCR, 0)
    expect(readAll()).toBe('later')
  })

  test('a change of the modem lines raises an interrupt that reading MSR ends', () => {
    outb(MCR, 0x1f)
    inb(MSR)
    outb(IER, MSI)
    expect(lines).toEqual([])
    outb(MCR, 0x1b) // RI goes off
    expect([lines, inb(IIR)]).toEqual([[true], 0x00])
    expect(inb(MSR) & 0x0f).toBe(0x04)
    expect(inb(MSR) & 0x0f).toBe(0)
    expect(lines).toEqual([true, false])
    outb(MCR, 0x1f) // RI goes on: no event
    expect(lines).toEqual([true, false])
    outb(MCR, 0x12) // CTS stays, DSR and DCD and RI go
    expect(inb(MSR) & 0x0f).toBe(0x0e)
  })
})

describe('sending', () => {
  test('output comes in batches, when it is scheduled to', () => {
    for (const byte of Buffer.from('hello')) outb(THR, byte)
    expect([output, flushes.length]).toEqual([[], 1])
    flushes[0]!()
    expect(output).toEqual(['hello'])
    outb(THR, 0x21)
    expect(flushes.length).toBe(2)
    uart.flush()
    flushes[1]!()
    expect(output).toEqual(['hello', '!'])
  })

  test('a long batch does not wait', () => {
    for (let i = 0; i < 10_000; i++) outb(THR, 0x61 + (i % 26))
    expect(output.map(text => text.length)).toEqual([4096, 4096])
    uart.flush()
    expect(output.join('')).toHaveLength(10_000)
    expect(output.join('').slice(4090, 4105)).toBe(
      Array.from({ length: 15 }, (_, i) => String.fromCharCode(0x61 + ((4090 + i) % 26))).join(''),
    )
  })

  test('enabling THRI raises the line at once, reading IIR drops it, and so for each byte', () => {
    outb(IER, THRI)
    expect(lines).toEqual([true])
    expect(inb(IIR)).toBe(0x02)
    expect(lines).toEqual([true, false])
    expect(inb(IIR)).toBe(0x01)
    outb(THR, 0x41)
    expect(lines).toEqual([true, false, true])
    expect(inb(IIR)).toBe(0x02)
  })

  test('THRI counts anew each time that it is enabled: Linux’s test for UART_BUG_THRE and UART_BUG_TXEN', () => {
    for (let i = 0; i < 2; i++) {
      outb(IER, THRI)
      expect(inb(IIR) & 1).toBe(0)
      outb(IER, 0)
      expect(inb(IIR) & 1).toBe(1)
    }
    expect(lines).toEqual([true, false, true, false])
  })

  test('without IER.THRI, sending raises nothing', () => {
    outb(IER, RDI)
    outb(THR, 0x41)
    expect(lines).toEqual([])
  })
})

describe('receiving', () => {
  beforeEach(() => {
    outb(FCR, 0x01)
    outb(IER, RDI)
  })

  test('input raises the line until it is read', () => {
    type('a')
    expect([lines, inb(LSR), inb(IIR)]).toEqual([[true], 0x61, 0xc4])
    expect(inb(RBR)).toBe(0x61)
    expect([lines, inb(LSR), inb(IIR)]).toEqual([[true, false], 0x60, 0xc1])
  })

  test('nothing to be read reads 0', () => {
    expect(inb(RBR)).toBe(0)
    expect(lines).toEqual([])
  })

  test('below the trigger level it is a timeout', () => {
    outb(FCR, 0x81) // 8 bytes
    type('1234567')
    expect(inb(IIR)).toBe(0xcc)
    type('8')
    expect(inb(IIR)).toBe(0xc4)
    inb(RBR)
    expect(inb(IIR)).toBe(0xcc)
  })

  test('more than the FIFO holds comes in lots, with an edge for each', () => {
    const text = 'abcdefghijklmnopqrstuvwxyz0123456789ABCD'
    type(text)
    for (let i = 0; i < 16; i++) inb(RBR)
    expect(lines).toEqual([true, false, true])
    expect(readAll()).toBe(text.slice(16))
    expect(lines).toEqual([true, false, true, false, true, false])
  })

  test('without FIFOs, one byte at a time', () => {
    outb(FCR, 0)
    type('xyz')
    expect(inb(IIR)).toBe(0x04)
    outb(FCR, 0x02)
    expect(readAll()).toBe('yz')
  })

  test('clearing the FIFO loses at most what it held', () => {
    type('0123456789abcdefGHI')
    outb(FCR, 0x03)
    expect(lines).toEqual([true, false, true])
    expect(readAll()).toBe('GHI')
  })

  test('received data goes before an empty THR, and an overrun before both', () => {
    outb(IER, RDI | THRI | RLSI)
    type('a')
    expect(inb(IIR)).toBe(0xc4)
    outb(MCR, 0x10)
    for (let i = 0; i < 16; i++) outb(THR, i)
    expect(inb(IIR)).toBe(0xc6)
    expect(inb(LSR) & 2).toBe(2)
    expect(inb(IIR)).toBe(0xc4)
    while (inb(LSR) & 1) inb(RBR)
    expect(inb(IIR)).toBe(0xc2)
    expect(inb(IIR)).toBe(0xc1)
    expect(lines.at(-1)).toBe(false)
  })

  test('asks the writer to hold back when much waits, and tells it when to go on', () => {
    expect(uart.input(new Uint8Array(0x10000))).toBe(true)
    expect(uart.input(new Uint8Array(0x100))).toBe(false)
    expect(type('x')).toBe(false)
    for (let i = 0; i < 0x10100 - 16; i++) inb(RBR)
    expect(drains).toBe(0)
    expect(readAll().endsWith('x')).toBe(true)
    expect(drains).toBe(1)
    expect(type('y')).toBe(true)
  })
})

describe('state', () => {
  test('survives as JSON, with its interrupt', () => {
    outb(LCR, 0x80)
    outb(0, 1)
    outb(LCR, 3)
    outb(FCR, 0xc1)
    outb(IER, RDI | THRI)
    outb(MCR, 0x0b)
    outb(SCR, 0x77)
    type('0123456789abcdefGHI')
    const saved = JSON.parse(JSON.stringify(uart.saveState()))
    lines = []
    uart = create()
    uart.loadState(saved)
    expect(lines).toEqual([true])
    expect([LCR, MCR, SCR, IER, IIR].map(register => inb(register))).toEqual([3, 0x0b, 0x77, 3, 0xc4])
    expect(uart.saveState()).toEqual(saved)
    expect(readAll()).toBe('0123456789abcdefGHI')
  })

  test.each([
    ['nothing', null],
    ['a list', []],
    ['a missing member', { ier: 0 }],
  ])('%s is refused', (_, state) => {
    expect(() => uart.loadState(state)).toThrow(TypeError)
  })

  test.each([
    ['ier', 16],
    ['lcr', -1],
    ['divisor', 1.5],
    ['fifo', Array(17).fill(0)],
    ['fifo', [256]],
    ['waiting', 'text'],
  ])('a bad %s is refused and changes nothing', (name, value) => {
    const state = uart.saveState() as Record<string, never>
    expect(() => uart.loadState({ ...state, scr: 1, [name]: value })).toThrow(name)
    expect(inb(SCR)).toBe(0)
  })
})
