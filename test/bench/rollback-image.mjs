/** rollback-image.mjs DIRECTORY: a guest of 256 MiB as a snapshot, and what the baseline needs of its state. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Machine, readSnapshot } from 'nested-kvm'
import { DIRTY, machineOptions } from './guests.mjs'

const directory = process.argv[2]
const saved = join(directory, 'saved')
const machine = await Machine.create(machineOptions(DIRTY, '256M'))
await machine.snapshot(saved)
await machine.stop()
const { state } = (await readSnapshot(saved)).state.vcpus[0]
for (const name of ['KVM_SET_CPUID2', 'KVM_GET_MSRS', 'KVM_GET_SREGS2', 'KVM_GET_REGS']) {
  writeFileSync(join(directory, name), state[name])
}
