import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { expect, it, onTestFinished } from 'vitest'
import type { MachineOptions } from '../../lib/config/machine-config.js'
import { ConfigError } from '../../lib/errors.js'
import { Machine } from '../../lib/machine/machine.js'
import { assemble } from '../guests/assemble.js'
import { elf32, multibootHeader, pvhNote } from '../unit/boot/images.js'

const ORIGIN = 0x10_0000
const ENTRY = ORIGIN + 12

/** 32-bit code behind a Multiboot header, which leaves 64 KiB to be cleared behind itself: its stack is there. */
function kernel(source: string, way: 'multiboot' | 'pvh'): Uint8Array {
  const code = assemble(`.code32\n.fill 12\n${source}`, ORIGIN)
  if (way === 'multiboot') code.set(multibootHeader())
  const segment = { physical: BigInt(ORIGIN), content: code, memorySize: 0x10000n }
  return elf32({ entry: BigInt(ENTRY), segments: way === 'pvh' ? [segment, pvhNote(ENTRY)] : [segment] })
}

/** Subroutines: `puts` prints the text at ESI and a blank, `checks` ends the machine if this is no flat protected mode without paging. */
const library = `
puts:
  lodsb
  test al, al
  jz 1f
  mov dx, 0x3f8
  out dx, al
  jmp puts
1:
  mov al, ' '
  mov dx, 0x3f8
  out dx, al
  ret
checks:
  mov ecx, cr0
  and ecx, 0x80000001
  cmp ecx, 1
  jne failed
  pushfd
  pop ecx
  test ecx, 0x20200     # interrupts, virtual 8086 mode
  jnz failed
  mov edx, ds
  mov ecx, ss
  cmp edx, ecx
  jne failed
  ret
failed:
  mov eax, 1
  out 0xf4, eax
  hlt
off:
  mov dx, 0x604
  mov ax, 0x3400
  out dx, ax
  hlt
`

async function output(options: Partial<MachineOptions>): Promise<string> {
  const l1 = await Machine.create({ memory: '64M', cmdline: 'one two', ...options })
  onTestFinished(() => l1.stop())
  await l1.start()
  expect(await l1.wait()).toEqual({ reason: 'shutdown' })
  return l1.console.takeText()
}

function files(contents: Record<string, string | Uint8Array>): Record<string, string> {
  const folder = mkdtempSync(join(tmpdir(), 'nested-kvm-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  return Object.fromEntries(
    Object.entries(contents).map(([name, content]) => {
      writeFileSync(join(folder, name), content)
      return [name, join(folder, name)]
    }),
  )
}

const multiboot = () =>
  kernel(
    `
  mov esp, 0x110000
  cmp eax, 0x2badb002
  jne failed
  call checks
  mov esi, [ebx + 16]   # command line
  call puts
  mov esi, [ebx + 64]   # boot loader
  call puts
  mov ecx, [ebx + 20]   # modules
  mov edi, [ebx + 24]
next:
  mov esi, [edi + 8]    # string, then content
  call puts
  mov esi, [edi]
  test esi, 0xfff
  jnz failed
  call puts
  add edi, 16
  loop next
  jmp off
${library}`,
    'multiboot',
  )

it('a Multiboot kernel gets its magic number, its command line and its modules', async () => {
  const { xen, dom0 } = files({ xen: multiboot(), dom0: 'content of a file\0' })
  const modules = [{ file: dom0!, cmdline: 'a=1 b' }, { file: Buffer.from('bytes\0') }]
  expect(await output({ kernel: xen, modules })).toBe(
    'xen one two nested-kvm dom0 a=1 b content of a file module bytes ',
  )
})

it('a PVH kernel gets its start info, gzip’d as it may be', async () => {
  const image = kernel(
    `
  mov esp, 0x110000
  call checks
  cmp dword ptr [ebx], 0x336ec578
  jne failed
  mov esi, [ebx + 24]   # command line
  call puts
  mov edi, [ebx + 32]   # RSDP
  cmp dword ptr [edi], 0x20445352
  jne failed
  cmp dword ptr [ebx + 12], 2
  jne failed
  mov edi, [ebx + 16]   # modules: the initrd first
  mov esi, [edi]
  call puts
  mov esi, [edi + 32]
  call puts
  mov esi, [edi + 32 + 16]
  call puts
  mov edi, [ebx + 40]   # memory map: the last entry is the RAM from 1 MiB on
  cmp dword ptr [edi + 48], 0x100000
  jne failed
  jmp off
${library}`,
    'pvh',
  )
  const { initrd } = files({ initrd: 'initrd\0' })
  const modules = [{ file: Buffer.from('module\0'), cmdline: 'words' }]
  expect(await output({ kernel: gzipSync(image), initrd, modules })).toBe('one two initrd module words ')
})

/** Firmware of 64 KiB: writes to itself at 4 GiB and below 1 MiB, asks fw_cfg, waits for a byte and asks it on. */
function firmware(): Uint8Array {
  const image = new Uint8Array(0x10000)
  image.set(
    assemble(
      `.code16
  xor ax, ax            # CS is still at 0xffff0000, as the reset has it
  mov ds, ax
  mov ss, ax
  mov sp, 0x8000
  mov byte ptr cs:[probe], 'W'
  mov al, cs:[probe]
  call putc
  .byte 0xea            # far jump to 0xf000:low
  .word low, 0xf000
low:
  mov byte ptr cs:[probe], 'W'
  mov al, cs:[probe]
  call putc
  xor ax, ax            # the signature, byte by byte
  mov dx, 0x510
  out dx, ax
  call getc
  call getc
  mov dword ptr [0x1000], 0x0a001900    # the directory's count, by DMA: control 0x19000a, length 4, address 0x2000
  mov dword ptr [0x1004], 0x04000000
  mov dword ptr [0x1008], 0
  mov dword ptr [0x100c], 0x00200000
  mov dx, 0x518
  mov eax, 0x00100000
  out dx, eax
  cmp dword ptr [0x1000], 0
  jne failed
  mov al, [0x2003]
  add al, '0'
  call putc
  xor ax, ax
  mov dx, 0x510
  out dx, ax
  call getc
  call getc
  call getc
wait:
  mov dx, 0x3fd
  in al, dx
  test al, 1
  jz wait
  mov dx, 0x3f8
  in al, dx
  call putc
  call getc             # goes on behind the three bytes of the signature
  mov dx, 0x604
  mov ax, 0x3400
  out dx, ax
failed:
  hlt
getc:
  mov dx, 0x511
  in al, dx
putc:
  mov dx, 0x3f8
  out dx, al
  ret
probe: .byte 'R'`,
      0,
    ),
  )
  image.set([0xe9, 0x0d, 0x00], 0xfff0) // jmp 0
  return image
}

it('firmware starts at the reset vector, reads fw_cfg, and goes on from a snapshot', async () => {
  const { bios } = files({ bios: firmware() })
  const l1 = await Machine.create({ firmware: bios, memory: '64M', vcpus: 2 })
  onTestFinished(() => l1.stop())
  expect(l1.config).toMatchObject({ boot: 'firmware', kernel: undefined })
  await l1.start()
  // Read-only at 4 GiB, RAM below 1 MiB; five files: e820, sercon-port, and three of ACPI.
  await l1.console.expect('RWQE5QEM')
  const folder = mkdtempSync(join(tmpdir(), 'nested-kvm-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  await l1.snapshot(join(folder, 'snapshot'))
  const twin = await Machine.restore(join(folder, 'snapshot'))
  onTestFinished(() => twin.stop())
  for (const machine of [twin, l1]) {
    if (machine === twin) await machine.resume()
    machine.console.write('!')
    await machine.console.expect('!U')
    expect(await machine.wait()).toEqual({ reason: 'shutdown' })
  }
})

it('what cannot be booted is a ConfigError, and leaves nothing open', async () => {
  const { whole } = files({ whole: multiboot() })
  for (const [field, options] of [
    ['firmware', { firmware: new Uint8Array(0x41000) }],
    ['kernel', { kernel: whole, boot: 'linux' }],
    ['kernel', { kernel: whole, boot: 'pvh' }],
    ['initrd', { kernel: whole, initrd: whole }],
    ['modules[1]', { kernel: whole, modules: [{ file: whole }, { file: new Uint8Array(64 << 20) }] }],
  ] as const) {
    const failure = await Machine.create({ memory: '64M', ...options } as MachineOptions).catch(error => error)
    expect(failure).toBeInstanceOf(ConfigError)
    expect(failure.field).toBe(field)
  }
})
