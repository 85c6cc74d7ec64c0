import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { ModuleTree, readModinfo } from '../../../lib/lab/modules.js'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'modules-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

/** The least ELF64 object that has a .modinfo section: header, section headers, contents. */
function moduleObject(...info: string[]): Buffer {
  const names = Buffer.from('\0.modinfo\0.shstrtab\0')
  const text = Buffer.from(info.map(line => `${line}\0`).join(''))
  const object = Buffer.alloc(64 + 3 * 64 + names.length + text.length)
  object.write('\x7fELF\x02\x01\x01', 'latin1')
  object.writeBigUInt64LE(64n, 40)
  object.writeUInt16LE(64, 58)
  object.writeUInt16LE(3, 60)
  object.writeUInt16LE(2, 62)
  const section = (index: number, name: number, bytes: Buffer, at: number) => {
    const header = 64 + 64 * index
    object.writeUInt32LE(name, header)
    object.writeBigUInt64LE(BigInt(at), header + 24)
    object.writeBigUInt64LE(BigInt(bytes.length), header + 32)
    bytes.copy(object, at)
  }
  section(1, 1, text, 256)
  section(2, 10, names, 256 + text.length)
  return object
}

function add(path: string, ...info: string[]): void {
  const file = join(directory, 'kernel', path)
  mkdirSync(join(file, '..'), { recursive: true })
  const object = moduleObject(...info)
  writeFileSync(file, path.endsWith('.gz') ? gzipSync(object) : object)
}

test('modules come after what they depend on, each once, without those built in', async () => {
  add('arch/kvm/kvm-amd.ko', 'license=GPL', 'depends=kvm,ccp,rng-core')
  add('arch/kvm/kvm.ko.gz', 'depends=irqbypass')
  add('virt/irqbypass.ko', 'depends=')
  add('crypto/ccp.ko', 'softdep=pre: sha-helper absent post: later')
  add('crypto/sha_helper.ko')
  add('crypto/later.ko')
  writeFileSync(join(directory, 'modules.builtin'), 'kernel/drivers/rng-core.ko\n')
  const tree = await ModuleTree.open(directory)
  const modules = await tree.load('kvm_amd', 'irqbypass', 'rng_core')
  expect(modules.map(({ name }) => name)).toEqual(['irqbypass', 'kvm', 'sha_helper', 'ccp', 'kvm_amd'])
  // Decompressed.
  expect(modules[1]!.data.readUInt32BE(0)).toBe(0x7f454c46)
  expect([tree.has('kvm-amd'), tree.has('rng-core'), tree.has('kvm-intel')]).toEqual([true, true, false])
})

test('a missing, damaged or circular module is named', async () => {
  add('a.ko', 'depends=b')
  add('c.ko', 'depends=d')
  add('d.ko', 'depends=c')
  writeFileSync(join(directory, 'cut.ko'), moduleObject('depends=').subarray(0, 100))
  const tree = await ModuleTree.open(directory)
  await expect(tree.load('a')).rejects.toThrow(/"b": is not in .*, which a needs/)
  await expect(tree.load('c')).rejects.toThrow(/c -> d -> c/)
  await expect(tree.load('cut')).rejects.toThrow(/cut\.ko": is no kernel module or is damaged/)
})

test('a directory without modules is refused', async () => {
  await expect(ModuleTree.open(directory)).rejects.toThrow(/holds no kernel module/)
  await expect(ModuleTree.open(join(directory, 'none'))).rejects.toThrow(/ENOENT/)
})

test('no cut of an object makes the reader fail', () => {
  const object = moduleObject('depends=kvm', 'name=x')
  expect(readModinfo(object)).toEqual([
    ['depends', 'kvm'],
    ['name', 'x'],
  ])
  for (let length = 0; length < object.length; length++) readModinfo(object.subarray(0, length))
  for (let at = 0; at < 256; at++) {
    const damaged = Buffer.from(object)
    damaged[at] = 0xff
    readModinfo(damaged)
  }
})
