/** exit-sync.mjs real|user COUNT WARMUP: see exit-loop.c, its baseline. */
import { Kvm } from 'nested-kvm'
import { CODE, longModeUser, OUT_FOREVER, PORT, realMode } from './guests.mjs'

const [mode, count, warmup] = process.argv.slice(2)
const kvm = Kvm.open()
const vm = kvm.createVm()
const { bytes } = vm.addMemory({ guestAddress: 0, size: 1 << 20 })
const vcpu = vm.createVcpu(0)
vcpu.setCpuid(kvm.supportedCpuid())
bytes.set(OUT_FOREVER, CODE)
if (mode === 'user') longModeUser(vcpu, bytes, { rdx: BigInt(PORT) })
else realMode(vcpu, { rdx: BigInt(PORT) })

/** @param {number} exits */
function handle(exits) {
  let sum = 0
  for (let i = 0; i < exits; i++) {
    const exit = vcpu.run()
    if (exit.reason !== 'io-out' || exit.port !== PORT) throw new Error(`unexpected exit ${exit.reason}`)
    sum = (Math.imul(sum, 31) + exit.data[0]) >>> 0
  }
  return sum
}

handle(Number(warmup))
const start = performance.now()
const check = handle(Number(count))
const value = ((performance.now() - start) * 1e3) / Number(count)
console.log(JSON.stringify({ value, check }))
