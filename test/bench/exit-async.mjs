/** exit-async.mjs real|user COUNT WARMUP: see exit-loop.c, its baseline. */
import { Kvm, VcpuThread } from 'nested-kvm'
import { CODE, longModeUser, OUT_FOREVER, PORT, realMode } from './guests.mjs'

const [mode, count, warmup] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])]
const kvm = Kvm.open()
const vm = kvm.createVm()
const { bytes } = vm.addMemory({ guestAddress: 0, size: 1 << 20 })
const vcpu = vm.createVcpu(0)
vcpu.setCpuid(kvm.supportedCpuid())
bytes.set(OUT_FOREVER, CODE)
if (mode === 'user') longModeUser(vcpu, bytes, { rdx: BigInt(PORT) })
else realMode(vcpu, { rdx: BigInt(PORT) })

let seen = 0
let check = 0
let start = 0
/** @type {(end: number) => void} */
let finish
/** @type {Promise<number>} */
const finished = new Promise(resolve => {
  finish = resolve
})

const thread = new VcpuThread(vcpu, exit => {
  if (exit.reason !== 'io-out' || exit.port !== PORT) throw new Error(`unexpected exit ${exit.reason}`)
  if (seen++ === warmup) start = performance.now()
  if (seen <= warmup) return
  if (seen <= warmup + count) check = (Math.imul(check, 31) + exit.data[0]) >>> 0
  if (seen === warmup + count) finish(performance.now())
})
thread.start()
const value = (((await finished) - start) * 1e3) / (count - 1)
await thread.stop()
console.log(JSON.stringify({ value, check }))
