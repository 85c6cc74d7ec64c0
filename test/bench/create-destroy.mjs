/** create-destroy.mjs COUNT WARMUP: see create-destroy.c, its baseline. */
import { Kvm } from 'nested-kvm'
import { CODE, HALT, realMode } from './guests.mjs'

const [count, warmup] = process.argv.slice(2).map(Number)
const kvm = Kvm.open()

function cycle() {
  const vm = kvm.createVm()
  const { bytes } = vm.addMemory({ guestAddress: 0, size: 1 << 20 })
  const vcpu = vm.createVcpu(0)
  bytes.set(HALT, CODE)
  realMode(vcpu)
  const { reason } = vcpu.run()
  vcpu.close()
  vm.close()
  return reason === 'hlt' ? 1 : 0
}

for (let i = 0; i < warmup; i++) cycle()
let check = 0
const start = performance.now()
for (let i = 0; i < count; i++) check += cycle()
const value = ((performance.now() - start) * 1e3) / count
console.log(JSON.stringify({ value, check }))
