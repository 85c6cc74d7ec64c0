/** idle-cpu.mjs COUNT SETTLE_MS IDLE_MS: see idle-cpu.c, its baseline. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Kvm, VcpuThread } from 'nested-kvm'
import { CODE, OUT_THEN_HALT, PORT, realMode } from './guests.mjs'

const [count, settle, idle] = process.argv.slice(2).map(Number)
const kvm = Kvm.open()
const vm = kvm.createVm()
vm.createIrqchip()
const { bytes } = vm.addMemory({ guestAddress: 0, size: 1 << 20 })
const vcpu = vm.createVcpu(0)
bytes.set(OUT_THEN_HALT, CODE)
realMode(vcpu, { rdx: BigInt(PORT), rcx: BigInt(count) })

let check = 0
await new Promise(resolve => {
  const thread = new VcpuThread(vcpu, exit => {
    if (exit.reason !== 'io-out') throw new Error(`unexpected exit ${exit.reason}`)
    if (++check === count) resolve(undefined)
  })
  thread.start()
})
await sleep(settle)
const before = process.cpuUsage()
const start = performance.now()
await sleep(idle)
const { user, system } = process.cpuUsage(before)
const value = (user + system) / (performance.now() - start)
console.log(JSON.stringify({ value, check }))
vm.close()
