/**
 * lab-boot-image.mjs DIRECTORY: what both sides of lab-boot boot. Writes `initrd` and `options.json` for `lab-boot.mjs`, and for
 * `vmm.c` the same machine as it stands before its first instruction: `memory` and the vCPU's state.
 */
import { createWriteStream } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { finished } from 'node:stream/promises'
import { Kvm, KvmError, kvm_cpuid2, kvm_msrs, kvm_regs, kvm_sregs, Machine } from 'nested-kvm'
import { writeInitImage } from './init-image.mjs'

const PAGE = 4096
const ZEROS = new Uint8Array(PAGE)
const [directory] = process.argv.slice(2)
// No device that vmm.c does not have.
const options = await writeInitImage(directory, 'exec /bin/busybox poweroff -f', { reboot: false, rng: false })

const machine = await Machine.create(options)
const [vcpu] = machine.vcpus
await writeFile(join(directory, 'regs'), kvm_regs.encode(vcpu.getRegs()))
await writeFile(join(directory, 'sregs'), kvm_sregs.encode(vcpu.getSregs()))
const cpuid = vcpu.getCpuid().map(entry => ({ ...entry, padding: [0, 0, 0] }))
await writeFile(join(directory, 'cpuid'), kvm_cpuid2.encode({ nent: cpuid.length, padding: 0, entries: cpuid }))
const msrs = msrEntries()
await writeFile(join(directory, 'msrs'), kvm_msrs.encode({ nmsrs: msrs.length, pad: 0, entries: msrs }))
await writeMemory(join(directory, 'memory'))
await machine.stop()

/** Every MSR that can be read and set to what it is. */
function msrEntries() {
  const kvm = Kvm.open()
  const indices = kvm.msrIndices()
  kvm.close()
  return indices.flatMap(index => {
    try {
      const [{ value }] = vcpu.getMsrs([index])
      vcpu.setMsrs([{ index, value }])
      return [{ index, reserved: 0, data: value }]
    } catch (error) {
      if (error instanceof KvmError) return []
      throw error
    }
  })
}

/**
 * The memory's size, then runs of pages that are not all zero: address and length, 8 bytes each, and the bytes.
 * @param {string} path
 */
async function writeMemory(path) {
  const [region] = machine.memory.regions
  const [bytes] = region.chunks
  const file = createWriteStream(path)
  /** @param {...number} values */
  const words = (...values) => file.write(new Uint8Array(BigUint64Array.from(values, BigInt).buffer))
  words(region.size)
  const used = address => Buffer.compare(bytes.subarray(address, address + PAGE), ZEROS) !== 0
  for (let start = 0; start < bytes.length; start += PAGE) {
    if (!used(start)) continue
    let end = start + PAGE
    while (end < bytes.length && used(end)) end += PAGE
    words(start, end - start)
    file.write(bytes.slice(start, end))
    start = end
  }
  file.end()
  await finished(file)
}
