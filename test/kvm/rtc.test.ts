import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it, onTestFinished } from 'vitest'
import { Machine } from '../../lib/machine/machine.js'
import { elfKernel } from '../guests/elf.js'

/** Has an alarm each second, and prints a dot for each that arrives at the slave PIC's first pin. */
const ALARMS = `
  .macro cmos register, value
    mov al, \\register
    out 0x70, al
    mov al, \\value
    out 0x71, al
  .endm
  cmos 1, 0xff
  cmos 3, 0xff
  cmos 5, 0xff
  cmos 0xb, 0x22        # AIE, 24 hours
wait:
  mov al, 0xa           # OCW3: the request register
  out 0xa0, al
  in al, 0xa0
  test al, 1
  jz wait
  mov al, 0x11          # ICW1: what was requested is forgotten
  out 0xa0, al
  mov al, 0xc           # reading C is what lets the next one come
  out 0x70, al
  in al, 0x71
  mov dx, 0x3f8
  mov al, '.'
  out dx, al
  jmp wait
`

/** More than a second later, when the next alarm but those that are due is some time away. */
async function pastAnAlarm(): Promise<number> {
  await sleep(2100 - (Date.now() % 1000))
  return Date.now()
}

async function machine(): Promise<Machine> {
  // vmx and svm, where the host has them and no nested state, could not be saved.
  const made = await Machine.create({ kernel: elfKernel(ALARMS), memory: '64M', cpu: 'host,-vmx,-svm' })
  onTestFinished(() => made.stop())
  await made.start()
  return made
}

it("the RTC's alarm arrives as IRQ 8, again once it was attended to", { timeout: 20_000 }, async () => {
  const l1 = await machine()
  await l1.console.expect('.')
  const first = Date.now()
  await l1.console.expect('...')
  const seconds = (Date.now() - first) / 1000
  expect(seconds).toBeGreaterThan(2.5)
  expect(seconds).toBeLessThan(5)
})

it('one that is due while the machine is paused, or saved, comes when it goes on', { timeout: 20_000 }, async () => {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-rtc-'))
  onTestFinished(() => rm(directory, { recursive: true }))
  const l1 = await machine()
  await l1.console.expect('.')
  await l1.pause()
  const paused = await pastAnAlarm()
  await l1.resume()
  await l1.console.expect('.')
  expect(Date.now() - paused).toBeLessThan(700)
  await l1.pause()
  await l1.snapshot(join(directory, 'snap'))
  await l1.stop()
  await pastAnAlarm()
  const again = await Machine.restore(join(directory, 'snap'))
  onTestFinished(() => again.stop())
  const restored = Date.now()
  await again.resume()
  await again.console.expect('.')
  expect(Date.now() - restored).toBeLessThan(700)
  await again.console.expect('..')
})
